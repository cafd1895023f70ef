"""Paths that meet every snapshot by construction: strands of mass from ``a`` to ``b``, each of least action on its own, and a learned bend.

A strand carries the mass ``h0`` from a cell ``a`` of one snapshot to ``h1`` at a cell ``b`` of the next. For every kinetic energy and every
quadratic potential its path of least action is known (``u`` runs from 0 to 1 over the interval of length ``L``):

    transport            q = A(1-u) a + A(u) b,   A(u) = u,  sin(w u) / sin w  or  sinh(w u) / sinh w,   w = sqrt|k| L
    acceleration a(t)    q gains the solution of q'' = a(t) that vanishes at both ends
    noise                x = q + nu z,   nu^2 = sigma^2 L A(u) A(1-u) A'(0) -> sigma^2 L u (1-u): the Brownian bridge
    growth               sqrt(mass) and position are modulus and angle of z = A(1-u) sqrt(h0) + A(u) sqrt(h1) exp(i tau),
                         tau = sqrt(lam) |b - a| / 2; A(u) = u for true masses, sin(theta u) / sin(theta) for normalised ones

Strands with ``tau >= pi/2`` do not travel: they are drawn as one that dies at ``a`` and one that grows at ``b``. With the best coupling
of cells (`popflow.transport.plans`) these paths together are the path of least action; with any other coupling, and for any other
potential, the learned bend ``q += sum_k phi_k(u) c_k(a, b)``, ``mass *= exp(sum_k phi_k(u) r_k(a, b))`` with ``phi_k(0) = phi_k(1) = 0``
takes them there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from popflow.learn import MLP
from popflow.transport.lagrangian import WFR, Harmonic, Lagrangian, Linear, MeanAcceleration

BENDS = 3
"""How many bubbles ``phi_k(u) = 4 u (1-u) (2u-1)^k`` a bend is made of."""

Batch = dict[str, Tensor]
"""Strands and times: a, b, z ``[rows, d]``; h0, h1, t, start, length, theta ``[slices, n]`` flattened; rows of one slice share t."""


@dataclass(frozen=True, slots=True)
class Point:
    """Where strands are at their times.

    Attributes:
        x: Positions ``[rows, d]``.
        velocity: Of the position without noise, ``[rows, d]``.
        mass: ``[rows]``, mean one over all strands at a time when normalised.
        mass_rate: Its derivative in time ``[rows]``.
        spread: ``nu nu'``, half the derivative of the variance of the bridge, ``[rows]``.
    """

    x: Tensor
    velocity: Tensor
    mass: Tensor
    mass_rate: Tensor
    spread: Tensor


class Bend(nn.Module):
    """Learned coefficients ``c_k, r_k`` of a strand; zero at first."""

    def __init__(self, dim: int, *, growth: bool, width: int, depth: int, shift: Tensor, scale: float):
        super().__init__()
        self.dim, self.per, self.scale = dim, dim + growth, scale
        self.network = MLP(2 * dim, out=BENDS * self.per, width=width, depth=depth)
        self.register_buffer("shift", shift)
        nn.init.zeros_(self.network.last.weight)
        nn.init.zeros_(self.network.last.bias)

    def forward(self, a: Tensor, b: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Positions ``[rows, BENDS, d]`` and growths ``[rows, BENDS]``; ``middle [rows]`` is that of the interval, from 0 to 1."""
        ends = torch.cat([a - self.shift, b - self.shift], 1) / self.scale
        out = self.network(ends, middle).reshape(len(a), BENDS, self.per)
        growth = out[..., self.dim] if self.per > self.dim else out.new_zeros(len(a), BENDS)
        return self.scale * out[..., : self.dim], growth


def follow(lagrangian: Lagrangian, batch: Batch, bend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None) -> Point:
    """Put strands where they are at their times: least action for each on its own, bent by ``bend(a, b, middle)``.

    Args:
        lagrangian: Its kinetic energy, noise and quadratic or linear potential shape the strands; all else is left to the bend.
        batch: See `Batch`; ``slices`` is the shape ``[slices, n]`` of rows that share a time.
        bend: A `Bend`, or None.
    """
    a, b, length = batch["a"], batch["b"], batch["length"]
    u = (batch["t"] - batch["start"]) / length
    if isinstance(lagrangian.kinetic, WFR):
        x, velocity, mass, rate = _cone(lagrangian.kinetic, batch, u)
    else:
        (back, fall), (on, rise) = _ramps(lagrangian, u, length)
        centre = lagrangian.potential.centre if isinstance(lagrangian.potential, Harmonic) else 0.0
        x = back[:, None] * (a - centre) + on[:, None] * (b - centre) + centre
        velocity = (rise[:, None] * (b - centre) - fall[:, None] * (a - centre)) / length[:, None]
        mass, rate = torch.ones_like(u), torch.zeros_like(u)
        pull, change = _accelerated(lagrangian, batch, u)
        x, velocity = x + pull, velocity + change
    if bend is not None:
        c, r = bend(a, b, batch["middle"])
        value, slope = bubbles(u)
        slope = slope / length[:, None]
        x = x + (value[..., None] * c).sum(1)
        velocity = velocity + (slope[..., None] * c).sum(1)
        if isinstance(lagrangian.kinetic, WFR):
            factor = (value * r).sum(1).exp()
            rate = factor * (rate + mass * (slope * r).sum(1))
            mass = factor * mass
            if lagrangian.normalized:  # so that every slice keeps mass one
                mass, rate = _per_slice(mass, rate, batch["slices"])
    if not lagrangian.noise:
        return Point(x, velocity, mass, rate, torch.zeros_like(u))
    variance, spread = _bridge(lagrangian, u, length)
    return Point(x + variance.sqrt()[:, None] * batch["z"], velocity, mass, rate, spread)


def _stiffness(lagrangian: Lagrangian) -> float:
    return lagrangian.potential.stiffness if isinstance(lagrangian.potential, Harmonic) else 0.0


def _ramps(lagrangian: Lagrangian, u: Tensor, length: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Values and slopes in ``u`` of the two solutions of ``f'' = -k f`` that are 1 at one end and 0 at the other."""
    k = _stiffness(lagrangian)
    if k == 0:
        one = torch.ones_like(u)
        return (1 - u, one), (u, one)
    w = math.sqrt(abs(k)) * length
    sine, cosine = (torch.sin, torch.cos) if k > 0 else (torch.sinh, torch.cosh)

    def solution(u: Tensor) -> tuple[Tensor, Tensor]:
        return sine(w * u) / sine(w), w * cosine(w * u) / sine(w)

    return solution(1 - u), solution(u)


def _bridge(lagrangian: Lagrangian, u: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of the bridge, and half its derivative in time."""
    k, s2 = _stiffness(lagrangian), lagrangian.noise**2
    if k == 0 or isinstance(lagrangian.kinetic, WFR):
        return s2 * length * u * (1 - u), s2 / 2 * (1 - 2 * u)
    w = math.sqrt(abs(k)) * length
    sine = torch.sin if k > 0 else torch.sinh
    return s2 * length * sine(w * u) * sine(w * (1 - u)) / (w * sine(w)), s2 / 2 * sine(w * (1 - 2 * u)) / sine(w)


def _accelerated(lagrangian: Lagrangian, batch: Batch, u: Tensor) -> tuple[Tensor, Tensor]:
    """Displacement and velocity by an acceleration that is constant, or changes once in the middle of the interval."""
    potential, a, length = lagrangian.potential, batch["a"], batch["length"][:, None]
    if isinstance(potential, Linear):
        early = late = potential.acceleration.to(a)[None]
    elif isinstance(potential, MeanAcceleration):
        early, late = potential.at(batch["start"]).to(a), potential.at(batch["start"] + batch["length"]).to(a)
    else:
        return torch.zeros_like(a), torch.zeros_like(a)
    first, v = (u < 0.5)[:, None], u[:, None]
    p, q = -(3 * early + late) / 8, -(early + 3 * late) / 8
    place = torch.where(first, early * v.square() / 2 + p * v, late * (1 - v).square() / 2 + q * (1 - v))
    return length.square() * place, length * torch.where(first, early * v + p, -late * (1 - v) - q)


def _cone(kinetic: WFR, batch: Batch, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Position, velocity, mass and its rate of strands under transport and growth: straight lines in the plane of ``z``."""
    a, b, length = batch["a"], batch["b"], batch["length"]
    left, right = batch["h0"].sqrt(), batch["h1"].sqrt()
    gap = b - a
    distance = gap.square().sum(1).clamp_min(1e-30).sqrt()
    tau = math.sqrt(kinetic.lam) * distance / 2
    if kinetic.normalized:
        theta = batch["theta"]
        (back, fall), (on, rise) = _slerp(1 - u, theta), _slerp(u, theta)
    else:
        back, fall, on, rise = 1 - u, 1.0, u, 1.0
    real, imaginary = back * left + on * right * tau.cos(), on * right * tau.sin()
    real_rate, imaginary_rate = rise * right * tau.cos() - fall * left, rise * right * tau.sin()
    mass = real.square() + imaginary.square()
    angle, turning = torch.atan2(imaginary, real), (real * imaginary_rate - imaginary * real_rate) / mass.clamp_min(1e-12)
    along = gap / distance[:, None]
    reach = 2 / math.sqrt(kinetic.lam)
    x = a + (reach * angle)[:, None] * along
    velocity = (reach * turning / length)[:, None] * along
    return x, velocity, mass, 2 * (real * real_rate + imaginary * imaginary_rate) / length


def _slerp(u: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """``sin(theta u) / sin(theta)`` and its slope in ``u``; ``u`` and 1 for ``theta = 0``."""
    angle = theta.clamp_min(1e-4)
    return (angle * u).sin() / angle.sin(), angle * (angle * u).cos() / angle.sin()


def _per_slice(mass: Tensor, rate: Tensor, slices: Tensor) -> tuple[Tensor, Tensor]:
    """Divide by the mean mass of the rows that share a time."""
    shape = slices.shape
    mass, rate = mass.reshape(shape), rate.reshape(shape)
    total, change = mass.mean(1, keepdim=True), rate.mean(1, keepdim=True)
    return (mass / total).flatten(), (rate / total - mass * change / total.square()).flatten()


def bubbles(u: Tensor) -> tuple[Tensor, Tensor]:
    """``phi_k(u)`` and their derivatives in ``u``, each ``[rows, BENDS]``.

    >>> value, slope = bubbles(torch.tensor([0.0, 0.5, 1.0]))
    >>> value[:, 0].tolist(), slope[:, 0].tolist()
    ([0.0, 1.0, 0.0], [4.0, 0.0, -4.0])
    """
    y = 2 * u - 1
    arch, fall = 1 - y.square(), -2 * y
    values = [arch * y**k for k in range(BENDS)]
    slopes = [2 * (fall * y**k + (arch * k * y ** (k - 1) if k else 0.0)) for k in range(BENDS)]
    return torch.stack(values, 1), torch.stack(slopes, 1)
