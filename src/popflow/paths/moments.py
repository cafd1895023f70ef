r"""Gaussian laws that change in time, as affine images of a standard normal, and the drifts that carry them.

    x = mu_t + S_t z,    z ~ N(0, I),    grad log q_t = -S^-T z

    flow   u°(x) = mu' + (S' + S Omega) z             any antisymmetric Omega: it turns z, which no marginal sees
    drift  u(x)  = u° + (xi^2 / 2) grad log q_t       the diffusion with noise xi and the same marginals

Drifts are written in z, never as (x - mu) / sigma, which loses all digits where sigma is small. Moments are tensors ``[rows, K, ...]`` of K
components; points and z broadcast against them, ``[..., rows, K, D]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def log_normal(z: Tensor) -> Tensor:
    """``log N(z; 0, I)`` over the last dimension."""
    return -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Diagonal:
    """Independent coordinates: mean, standard deviations ``sd``, their time derivatives, ``noise`` (a number or ``[D]``)."""

    mean: Tensor
    sd: Tensor
    mean_rate: Tensor
    sd_rate: Tensor
    noise: Tensor

    def point(self, z: Tensor) -> Tensor:
        """States of base points."""
        return self.mean + self.sd * z

    def base(self, x: Tensor) -> Tensor:
        """Base points of states."""
        return (x - self.mean) / self.sd

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density at the states of base points."""
        return log_normal(z) - self.sd.log().sum(-1)

    def velocity(self, z: Tensor) -> Tensor:
        """Probability flow."""
        return self.mean_rate + self.sd_rate * z

    def drift(self, z: Tensor) -> Tensor:
        """Drift of the diffusion."""
        return self.velocity(z) - 0.5 * self.noise**2 * z / self.sd

    def control(self, z: Tensor) -> Tensor:
        """Mean-zero part of ``|drift / noise|^2 / 2`` that needs no force: ``(|Mz|^2 - |M|^2) / 2 + a.Mz`` with ``drift = noise (a + M z)``."""
        slope = (self.sd_rate - 0.5 * self.noise**2 / self.sd) / self.noise
        return (0.5 * slope.square() * (z.square() - 1) + self.mean_rate / self.noise * slope * z).sum(-1)

    def transition(self, z: Tensor, noise: Tensor, later: Diagonal, middle: Diagonal, h: float) -> Tensor:
        """Base points a time ``h`` later: ``dz = -lambda z / 2 dt + sqrt(lambda) dW`` with ``lambda = (xi / sd)^2`` keeps N(0, I) at any ``h``."""
        rates = [(self.noise / one.sd).square() for one in (self, middle, later)]
        clock = (rates[0] + 4 * rates[1] + rates[2]) * (h / 6)
        return torch.exp(-clock / 2) * z + torch.sqrt(-torch.expm1(-clock)) * noise


@dataclass(frozen=True, eq=False)
class Full:
    """Correlated coordinates: ``factor`` is the lower-triangular S, ``turn`` the antisymmetric Omega, both ``[rows, K, D, D]``."""

    mean: Tensor
    factor: Tensor
    mean_rate: Tensor
    factor_rate: Tensor
    turn: Tensor
    noise: Tensor

    def point(self, z: Tensor) -> Tensor:
        """States of base points."""
        return self.mean + _apply(self.factor, z)

    def base(self, x: Tensor) -> Tensor:
        """Base points of states."""
        gap = x - self.mean
        return torch.linalg.solve_triangular(self.factor.expand(*gap.shape, -1), gap[..., None], upper=False)[..., 0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density at the states of base points."""
        return log_normal(z) - self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def velocity(self, z: Tensor) -> Tensor:
        """Probability flow."""
        return self.mean_rate + _apply(self.factor_rate + self.factor @ self.turn, z)

    def inverse(self) -> Tensor:
        """``S^-1``."""
        eye = torch.eye(self.factor.shape[-1], dtype=self.factor.dtype, device=self.factor.device).expand_as(self.factor)
        return torch.linalg.solve_triangular(self.factor, eye, upper=False)

    def slope(self) -> Tensor:
        """Matrix M of ``drift = mean_rate + M z``."""
        return self.factor_rate + self.factor @ self.turn - 0.5 * (self.noise**2)[..., None] * self.inverse().mT

    def drift(self, z: Tensor) -> Tensor:
        """Drift of the diffusion."""
        return self.mean_rate + _apply(self.slope(), z)

    def control(self, z: Tensor) -> Tensor:
        """Mean-zero part of ``|drift / noise|^2 / 2`` that needs no force, see `Diagonal.control`."""
        slope = self.slope() / self.noise[..., None]
        moved = _apply(slope, z)
        return 0.5 * (moved.square().sum(-1) - slope.square().sum((-1, -2))) + (self.mean_rate / self.noise * moved).sum(-1)

    def rate(self) -> Tensor:
        """Matrix ``Omega - xi^2 S^-1 S^-T / 2`` of ``dz = rate z dt + ...``."""
        scaled = self.inverse() * self.noise[..., None, :]
        return self.turn - 0.5 * scaled @ scaled.mT

    def transition(self, z: Tensor, noise: Tensor, later: Full, middle: Full, h: float) -> Tensor:
        """Base points a time ``h`` later: a contraction A and noise of covariance ``I - A A^T`` keep N(0, I) at any ``h``."""
        step = torch.linalg.matrix_exp((self.rate() + 4 * middle.rate() + later.rate()) * (h / 6))
        values, vectors = torch.linalg.eigh(torch.eye(z.shape[-1], dtype=z.dtype, device=z.device) - step @ step.mT)
        return _apply(step, z) + _apply(vectors * values.clamp(min=0).sqrt()[..., None, :], noise)


@dataclass(frozen=True, eq=False)
class Kinematic:
    r"""Positions and velocities of an underdamped process, each degree of freedom with its own 2 x 2 covariance ``[[a, c], [c, e]]``.

    Exactly ``dx = v dt`` needs ``mean_v = mean_x'`` and ``c = a' / 2``; the velocities then have the drift

        u_v = mean_x'' + Jx (x - mean_x) + Jv (v - mean_v),    [a c; c e] (Jx, Jv) = (c' - e, (e' - xi^2) / 2)

    Base points are ``[z1, z2]``: ``x = mean_x + sqrt(a) z1``, ``v = mean_v + c / sqrt(a) z1 + sqrt(e - c^2 / a) z2``.
    """

    mean: Tensor
    speed: Tensor
    speed_rate: Tensor
    a: Tensor
    c: Tensor
    e: Tensor
    c_rate: Tensor
    e_rate: Tensor
    noise: Tensor

    def _lower(self) -> tuple[Tensor, Tensor, Tensor]:
        first = self.a.sqrt()
        return first, self.c / first, (self.e - self.c.square() / self.a).sqrt()

    def point(self, z: Tensor) -> Tensor:
        """States of base points."""
        z1, z2 = z.chunk(2, -1)
        p, q, r = self._lower()
        return torch.cat([self.mean + p * z1, self.speed + q * z1 + r * z2], -1)

    def base(self, x: Tensor) -> Tensor:
        """Base points of states."""
        position, velocity = x.chunk(2, -1)
        p, q, r = self._lower()
        z1 = (position - self.mean) / p
        return torch.cat([z1, (velocity - self.speed - q * z1) / r], -1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density at the states of base points."""
        p, _, r = self._lower()
        return log_normal(z) - p.log().sum(-1) - r.log().sum(-1)

    def gains(self) -> tuple[Tensor, Tensor]:
        """``Jx`` and ``Jv``."""
        f, g = self.c_rate - self.e, 0.5 * (self.e_rate - self.noise**2)
        det = self.a * self.e - self.c.square()
        return (self.e * f - self.c * g) / det, (self.a * g - self.c * f) / det

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Coefficients of z1 and z2 in the drift of the velocities."""
        (jx, jv), (p, q, r) = self.gains(), self._lower()
        return jx * p + jv * q, jv * r

    def drift(self, z: Tensor) -> Tensor:
        """Drift ``[..., D]`` of the velocities."""
        z1, z2 = z.chunk(2, -1)
        first, second = self.slopes()
        return self.speed_rate + first * z1 + second * z2

    def velocity(self, z: Tensor) -> Tensor:
        """Probability flow ``[..., 2 D]``: without noise, the score of the velocities takes its place."""
        z2 = z.chunk(2, -1)[1]
        return torch.cat([self.point(z).chunk(2, -1)[1], self.drift(z) + 0.5 * self.noise**2 * z2 / self._lower()[2]], -1)

    def control(self, z: Tensor) -> Tensor:
        """Mean-zero part of ``|drift / noise|^2 / 2`` that needs no force, see `Diagonal.control`."""
        z1, z2 = z.chunk(2, -1)
        first, second = (slope / self.noise for slope in self.slopes())
        moved = first * z1 + second * z2
        return (0.5 * (moved.square() - first.square() - second.square()) + self.speed_rate / self.noise * moved).sum(-1)


@dataclass(frozen=True, eq=False)
class Comoving:
    """Positions and velocities at some times: tensors ``[rows, K, D]`` and matrices ``[rows, K, D, D]`` of the mass-weighted frame.

    Base points are ``[z1, z2]``: ``y = factor z1`` and ``r = sqrt(kT) z2``; ``lower`` is the inverse of the transposed factor, ``stretch`` is N,
    ``pull`` is ``(N' + N^2 - kT Lambda) factor``.
    """

    mean: Tensor
    speed: Tensor
    speed_rate: Tensor
    lower: Tensor
    factor: Tensor
    stretch: Tensor
    pull: Tensor
    root_mass: Tensor
    friction: float
    kt: float

    def point(self, z: Tensor) -> Tensor:
        """States of base points."""
        z1, z2 = z.chunk(2, -1)
        y = _carry(self.factor, z1)
        w = _carry(self.stretch, y) + math.sqrt(self.kt) * z2
        return torch.cat([self.mean + y / self.root_mass, self.speed + w / self.root_mass], -1)

    def base(self, x: Tensor) -> Tensor:
        """Base points of states."""
        position, velocity = x.chunk(2, -1)
        y = self.root_mass * (position - self.mean)
        r = self.root_mass * (velocity - self.speed) - _carry(self.stretch, y)
        return torch.cat([_carry(self.lower.mT, y), r / math.sqrt(self.kt)], -1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density at the states of base points."""
        volume = self.lower.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 2 * self.root_mass.log().sum()
        return log_normal(z) + volume - 0.5 * len(self.root_mass) * math.log(self.kt)

    def drift(self, z: Tensor) -> Tensor:
        """Drift ``[..., D]`` of the velocities."""
        z1, z2 = z.chunk(2, -1)
        r = math.sqrt(self.kt) * z2
        return self.speed_rate + (_carry(self.pull, z1) + _carry(self.stretch, r) - self.friction * r) / self.root_mass

    def velocity(self, z: Tensor) -> Tensor:
        """Probability flow ``[..., 2 D]``."""
        z2 = z.chunk(2, -1)[1]
        score = self.friction * math.sqrt(self.kt) * z2 / self.root_mass
        return torch.cat([self.point(z).chunk(2, -1)[1], self.drift(z) + score], -1)

    def control(self, z: Tensor) -> Tensor:
        """None: drift and force are large and cancel, so that the drift alone says nothing about the noise of the cost."""
        return torch.zeros_like(z[..., 0])


Moments = Diagonal | Full | Kinematic | Comoving


def _apply(matrix: Tensor, z: Tensor) -> Tensor:
    return (matrix @ z[..., None])[..., 0]


def _carry(matrix: Tensor, z: Tensor) -> Tensor:
    """As `_apply`, without a copy of the matrices ``[rows, K, D, D]`` for each of many points ``[..., rows, K, D]``."""
    return torch.einsum("rkij,...rkj->...rki", matrix, z)
