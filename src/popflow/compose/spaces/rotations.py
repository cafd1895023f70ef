"""Rotations SO(3): exponential and logarithm, the heat kernel IGSO(3), mixtures of it as experts, and the space for samplers.

The metric is the bi-invariant one in which the distance of two rotations is the angle between them; densities are relative to the uniform (Haar)
probability. Tangent vectors are written in the body frame: ``R' = R Exp(xi)``, and the score is ``s_a = d/d eps log q(R Exp(eps e_a))``. Brownian motion
of variance ``t = sigma^2`` from ``R_0`` has the density ``f(omega; t)`` of the angle ``omega`` of ``R_0^T R``,

    f  =  sum_l (2l+1) exp(-l(l+1) t/2) sin((l+1/2) omega) / sin(omega/2)
       =  e^{t/8} sqrt(2 pi) t^{-3/2} / sin(omega/2)  sum_n (-1)^n (omega + 2 pi n) exp(-(omega + 2 pi n)^2 / 2t),

and the score ``(d log f / d omega) n``, n the axis of ``R_0^T R``. The second form (images, by Poisson's summation) keeps its relative accuracy in the
tails, where the terms of the first cancel; the first needs few terms where t is large, and there the second cancels. Each is used where it is good.

Source: Nikolayev and Savyolova, *Normal distribution on the rotation group SO(3)* (1997); Yim et al., *SE(3) diffusion model with application to protein
backbone generation*, ICML 2023, for diffusion on rotations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.spaces.space import Clock
from popflow.compose.target import Expert
from popflow.core import Streams

LARGEST_STEP = 0.5
"""Largest ``S = sqrt(sigma^2 - sigma'^2)`` of one step: Exp of a Gaussian is Brownian motion to 0.3 % of the mean trace there, 9 % at 1."""
_SERIES_FROM, _FAR_FROM = 1.0, 0.5  # variances: series from the one; below the other the image at omega + 2 pi is lost in rounding
_POINTS = 4096  # of the table of the distribution of angles


def hat(v: Tensor) -> Tensor:
    """Skew matrix ``[..., 3, 3]`` of a vector: ``hat(v) w = v x w``."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def vee(a: Tensor) -> Tensor:
    """``(a_32 - a_23, a_13 - a_31, a_21 - a_12)`` of matrices ``[..., 3, 3]``: twice the vector of the skew part."""
    return torch.stack([a[..., 2, 1] - a[..., 1, 2], a[..., 0, 2] - a[..., 2, 0], a[..., 1, 0] - a[..., 0, 1]], -1)


def exp(v: Tensor) -> Tensor:
    """Rotation by ``|v|`` radians about ``v``: ``1 + sin(a)/a hat(v) + (1 - cos a)/a^2 hat(v)^2``; differentiable at zero.

    >>> exp(torch.tensor([0.0, 0.0, math.pi / 2])).round().int().tolist()
    [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    """
    square = v.square().sum(-1)
    small = square < 1e-4
    angle = torch.where(small, 1.0, square).sqrt()
    first = torch.where(small, 1 - square / 6 + square.square() / 120, angle.sin() / angle)
    second = torch.where(small, 0.5 - square / 24 + square.square() / 720, 2 * ((angle / 2).sin() / angle).square())
    skew = hat(v)
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    outer = v.unsqueeze(-1) * v.unsqueeze(-2)  # hat(v)^2 = v v^T - |v|^2
    return eye + first[..., None, None] * skew + second[..., None, None] * (outer - square[..., None, None] * eye)


def log(r: Tensor) -> Tensor:
    """Rotation vector ``omega n`` of rotations ``[..., 3, 3]``, ``0 <= omega <= pi``; at pi one of the two axes.

    The axis comes from the largest entry of the quaternion, so it is accurate near 0 and near pi alike.

    >>> v = torch.tensor([[1e-4, 0.0, 0.0], [0.0, 3.14, 0.0]])
    >>> bool((log(exp(v)) - v).abs().max() < 1e-5)
    True
    """
    q = quaternion(r)
    q = torch.where(q[..., :1] < 0, -q, q)
    sine = q[..., 1:].norm(dim=-1, keepdim=True)
    half = torch.atan2(sine, q[..., :1])
    tiny = sine < 1e-7
    return q[..., 1:] * torch.where(tiny, 2.0, 2 * half / torch.where(tiny, 1.0, sine))


def quaternion(r: Tensor) -> Tensor:
    """Unit quaternion ``(w, x, y, z)`` of rotations ``[..., 3, 3]``, of either sign (Shepperd 1978: divide by the largest entry)."""
    trace = r.diagonal(dim1=-2, dim2=-1)
    total = trace.sum(-1, keepdim=True)
    squares = torch.cat([1 + total, 1 - total + 2 * trace], -1) / 4
    x, y, z = vee(r).unbind(-1)
    xy, xz, yz = (r[..., a, b] + r[..., b, a] for a, b in ((0, 1), (0, 2), (1, 2)))
    w2, x2, y2, z2 = (4 * squares).unbind(-1)
    rows = torch.stack([torch.stack(row, -1) for row in ((w2, x, y, z), (x, x2, xy, xz), (y, xy, y2, yz), (z, xz, yz, z2))], -2)
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    row = rows.gather(-2, best).squeeze(-2)
    return row / row.norm(dim=-1, keepdim=True)


def from_quaternion(q: Tensor) -> Tensor:
    """Rotations of quaternions ``(w, x, y, z)`` of any length above zero; those of normal values are uniform."""
    q = q / q.norm(dim=-1, keepdim=True)
    w, v = q[..., 0], q[..., 1:]
    eye = torch.eye(3, dtype=q.dtype, device=q.device)
    scale = w.square() - v.square().sum(-1)
    return scale[..., None, None] * eye + 2 * v.unsqueeze(-1) * v.unsqueeze(-2) + 2 * w[..., None, None] * hat(v)


def nearest(a: Tensor) -> Tensor:
    """Rotations nearest to matrices ``[..., 3, 3]`` (by singular values): repairs what rounding or a file has spoilt."""
    u, _, vh = torch.linalg.svd(a)
    sign = torch.linalg.det(u @ vh)
    return torch.cat([u[..., :2], u[..., 2:] * sign[..., None, None]], -1) @ vh


def igso3(cosine: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """``log f(omega; t)`` and ``(d log f / d omega) / sin(omega)``, finite at both ends, as functions of ``cos(omega)``; angles are kept just inside (0, pi).

    Args:
        cosine: ``cos(omega)``, any shape.
        variance: ``t = sigma^2``, above 0.

    Example:
        >>> omega = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
        >>> f = igso3(omega.cos(), 0.3)[0].exp()
        >>> round(float(torch.trapezoid(f * (1 - omega.cos()) / math.pi, omega)), 6)  # the uniform law has angles (1 - cos w) / pi
        1.0
    """
    if not 0 < variance < math.inf:
        raise ValueError(f"variance={variance}, wanted the square of a noise level above 0.")
    edge = 1 - (5e-13 if cosine.dtype == torch.float64 else 5e-7)
    cosine = cosine.clamp(-edge, edge)
    if variance >= _SERIES_FROM:
        return _series(cosine, variance)
    # (-1)^n (omega + c) exp(-((omega + c)^2 - omega^2)/2t) over omega, for c = 2 pi and -2 pi together: c (near - far)/omega - near - far
    omega, sine, half = cosine.acos(), ((1 - cosine) / 2).sqrt(), ((1 + cosine) / 2).sqrt()  # sine and cosine of omega / 2
    c, inverse = 2 * math.pi, 1 / omega
    near = ((omega - c / 2) * (c / variance)).exp()
    images, slope = near * (c * inverse - 1), near * (c / variance * (c * inverse - 1) - c * inverse.square())
    if variance > _FAR_FROM:
        far = ((omega + c / 2) * (-c / variance)).exp()
        images = images - far * (c * inverse + 1)
        slope = slope + far * (c / variance * (c * inverse + 1) + c * inverse.square())
    images = 1 + images
    constant = variance / 8 + math.log(2 * math.pi) / 2 - 1.5 * math.log(variance)
    density = (omega / sine * images).log() - omega.square() / (2 * variance) + constant
    slope = slope / images - omega / variance + inverse - half / (2 * sine)
    return density, slope / (2 * sine * half)


def _series(cosine: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """The sum over l with ``chi_l = 1 + 2 sum_k cos(k omega)``, k = 1..l: Chebyshev polynomials of the cosine, summed by Clenshaw's recurrence."""
    weights = [1.0]
    while weights[-1] > 1e-18:
        l = len(weights)
        weights.append((2 * l + 1) * math.exp(-l * (l + 1) * variance / 2))
    tails = [sum(weights[k:]) for k in range(len(weights))]
    first = second = d_first = d_second = torch.zeros_like(cosine)
    for k in range(len(weights) - 1, 0, -1):
        first, second = 2 * tails[k] + 2 * cosine * first - second, first
        d_first, d_second = 2 * k * tails[k] + 2 * cosine * d_first - d_second, d_first
    density = tails[0] + cosine * first - second
    return density.log(), -d_first / density


def igso3_angles(shape: tuple[int, ...], sigma: float, rng: Streams, stream: str = "start") -> Tensor:
    """Angles of Brownian motion after variance ``sigma^2``: density ``(1 - cos omega)/pi f(omega)``, by inversion of a table; float64."""
    largest = min(math.pi, 10 * sigma)
    omega = torch.linspace(0, largest, _POINTS, dtype=torch.float64, device=rng.device)
    density = igso3(omega.cos(), sigma**2)[0].exp() * (1 - omega.cos())
    table = torch.cat([omega.new_zeros(1), torch.cumulative_trapezoid(density, omega)])
    u = rng.uniform(stream, shape) * table[-1]
    k = torch.searchsorted(table, u.flatten()).clamp(1, _POINTS - 1).reshape(shape)
    share = (u - table[k - 1]) / (table[k] - table[k - 1]).clamp(min=1e-300)
    return torch.lerp(omega[k - 1], omega[k], share)


def igso3_draws(centres: Tensor, sigma: float, rng: Streams, stream: str = "start") -> Tensor:
    """Rotations ``[..., 3, 3]`` after Brownian motion of variance ``sigma^2`` from ``centres``: ``R Exp(omega n)``, n uniform.

    >>> r = igso3_draws(torch.eye(3).expand(10000, 3, 3), 0.5, Streams(0))
    >>> trace = float(r.diagonal(dim1=1, dim2=2).sum(1).mean())
    >>> abs(trace - 3 * math.exp(-0.25)) < 0.02  # E trace R = 3 exp(-sigma^2)
    True
    """
    shape = tuple(centres.shape[:-2])
    axis = torch.empty(*shape, 3, dtype=torch.float64, device=rng.device).normal_(generator=rng(stream))
    vector = axis / axis.norm(dim=-1, keepdim=True) * igso3_angles(shape, sigma, rng, stream).unsqueeze(-1)
    return (centres.double() @ exp(vector)).to(centres.dtype)


@dataclass(frozen=True)
class Rotations:
    """Rotation matrices: points ``[3, 3]``, or ``[count, 3, 3]`` for several; tangent vectors ``[3]`` or ``[count, 3]`` in the body frame.

    Attributes:
        count: How many rotations make one point; None for a single one without a dimension of its own.
        uniform: Experts are taken to be uniform at the first noise level (right for sigma of 2.5 and more). False: Brownian motion from the
            identity, as published protein models start. Experts that know their density need neither: samples are weighed by it.

    Example:
        >>> Rotations(4).event, Rotations(4).dim
        ((4, 3, 3), 12)
    """

    count: int | None = None
    uniform: bool = True
    flat = False

    def __post_init__(self):
        if self.count is not None and self.count < 1:
            raise ValueError(f"count={self.count}, wanted at least 1 rotation, or None for one without a dimension of its own.")

    @property
    def event(self) -> tuple[int, ...]:
        """``(3, 3)`` or ``(count, 3, 3)``."""
        return (*self.tangent, 3)

    @property
    def tangent(self) -> tuple[int, ...]:
        """``(3,)`` or ``(count, 3)``."""
        return (3,) if self.count is None else (self.count, 3)

    @property
    def dim(self) -> int:
        """Three for each rotation."""
        return math.prod(self.tangent)

    def check(self, x: Tensor) -> Tensor:
        """Return rotations as they are.

        Raises:
            ValueError: for another shape, or matrices that are not orthonormal to 1e-3, or mirror.
        """
        if tuple(x.shape[x.ndim - len(self.event) :]) != self.event:
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted [..., {', '.join(map(str, self.event))}]: rotation matrices.")
        eye = torch.eye(3, dtype=x.dtype, device=x.device)
        error = float((x.mT @ x - eye).abs().max()) if x.numel() else 0.0
        if not error < 1e-3:
            raise ValueError(
                f"x holds matrices that are not orthonormal: |R^T R - 1| is up to {error:.3g}, wanted less than 1e-3. Fix: take the nearest "
                "rotations, popflow.compose.spaces.rotations.nearest(x)."
            )
        mirrors = int((torch.linalg.det(x) < 0).sum())
        if mirrors:
            raise ValueError(f"x holds {mirrors} mirrored matrices (determinant -1), wanted rotations: swap two axes of the frames.")
        return x

    def check_levels(self, levels: Tensor) -> None:
        """Refuse steps with ``S = sqrt(sigma^2 - sigma'^2)`` above 0.5: a Gaussian in the tangent space is not Brownian motion there.

        Raises:
            ValueError: naming the step.
        """
        steps = (levels[:-1].square() - levels[1:].square()).clamp(min=0).sqrt()
        k = int(steps.argmax())
        if float(steps[k]) > LARGEST_STEP:
            raise ValueError(
                f"the step of rotations from noise level {float(levels[k]):g} to {float(levels[k + 1]):g} has S = sqrt(sigma^2 - sigma'^2) = "
                f"{float(steps[k]):.3g} radians, wanted at most {LARGEST_STEP}, better 0.3. Fix: take more levels, equally spaced (linear), or a "
                "first level not far above 2.5, where rotations are uniform."
            )

    def project(self, vector: Tensor) -> Tensor:
        """Return the vector: all are tangent."""
        return vector

    def move(self, x: Tensor, displacement: Tensor) -> Tensor:
        """``R Exp(xi)``."""
        return x @ exp(displacement)

    def gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        """``<slope, R hat(e_a)>``."""
        return vee(x.mT @ slope)

    def start(self, like: Tensor, sigma: float, total: float, rng: Streams) -> Tensor:
        """Draw uniform rotations, or Brownian motion of variance ``sigma^2`` from the identity."""
        if self.uniform:
            return from_quaternion(rng.normal("start", like.new_empty(*like.shape[:-2], 4)))
        return igso3_draws(torch.eye(3, dtype=like.dtype, device=like.device).expand(like.shape), sigma, rng)

    def log_start(self, x: Tensor, sigma: float, total: float) -> Tensor:
        """Zero, or ``log f(omega; sigma^2)``; there is no start of its own for each sum of exponents."""
        return self.log_reference(x, sigma)

    def log_reference(self, x: Tensor, sigma: float) -> Tensor:
        """Zero (uniform), or ``log f(omega; sigma^2)`` summed over the rotations."""
        rows = x.shape[: x.ndim - len(self.event)]
        if self.uniform:
            return x.new_zeros(rows)
        return igso3(_cosine(x.diagonal(dim1=-2, dim2=-1).sum(-1)), sigma**2)[0].reshape(*rows, -1).sum(-1)

    def stretch(self, size: Callable[[Clock], float], like: Tensor) -> None:
        """Return None: there is one clock."""


def _cosine(trace: Tensor) -> Tensor:
    return (trace - 1) / 2


def igso3_kernels(x: Tensor, centres: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """``log f`` of the angles between rotations and centres, and what makes scores of it, both ``[rows, M, count]``.

    Angles come from the traces ``<C, R>`` by one matrix product; their squares are off by rounding, 1e-7, which no kernel wider than 0.01 feels.

    Args:
        x: ``[rows, count, 3, 3]``.
        centres: ``[M, count, 3, 3]``.
        variance: ``t``.
    """
    trace = x.flatten(2).transpose(0, 1) @ centres.to(x).flatten(2).permute(1, 2, 0)  # [count, rows, M]
    return igso3(_cosine(trace).permute(1, 2, 0), variance)


def igso3_score(x: Tensor, centres: Tensor, weights: Tensor) -> Tensor:
    """Body-frame score ``sum_m w_m h_m sin(omega_m) n_m`` with ``weights = share h [rows, M, count]``: ``[rows, count, 3]``.

    ``sin(omega) n`` is half the `vee` of ``C^T R``, linear in C, so the weighted sum of centres comes first.
    """
    pull = weights.permute(2, 0, 1) @ centres.to(x).flatten(2).transpose(0, 1)  # [count, rows, 9]
    pull = pull.transpose(0, 1).unflatten(-1, (3, 3))
    return vee(pull.mT @ x) / 2


def igso3_mixture(
    centres: Tensor, std: float, weights: Tensor | None = None, *, name: str = "rotations", chunk: int | None = None, uniform: bool = True
) -> Expert:
    """Mixture of heat kernels on rotations with exact score and density at every noise level: ``sum_k w_k prod_i f(omega_ki; std^2 + sigma^2)``.

    Args:
        centres: ``[K, 3, 3]``, or ``[K, count, 3, 3]`` for points of several rotations.
        std: Width of the kernels in radians, above 0.
        weights: ``[K]``, non-negative, normalised here; None for equal ones.
        name: What errors and reports call it.
        chunk: Rows per call: memory is rows x K.
        uniform: How samples start, see `Rotations`.

    Raises:
        ValueError: for centres that are not rotations, a width that is not positive, or weights that do not fit.

    Example:
        >>> q = igso3_mixture(torch.eye(3).unsqueeze(0), std=0.3)
        >>> r = exp(torch.tensor([[0.1, 0.0, 0.0]]))
        >>> [round(s, 2) for s in q.score(r, sigma=0.4)[0].tolist()]  # - omega / (std^2 + sigma^2), nearly
        [-0.39, 0.0, 0.0]
    """
    if centres.ndim not in (3, 4) or not len(centres):
        raise ValueError(f"centres has shape {tuple(centres.shape)}, wanted [K, 3, 3] or [K, count, 3, 3].")
    space = Rotations(None if centres.ndim == 3 else centres.shape[1], uniform)
    if not 0 < std < math.inf:
        raise ValueError(f"std={std}, wanted a kernel width in radians above 0.")
    log_prior = log_shares(weights, len(centres)).to(centres.device)
    middle = space.check(centres).double().reshape(len(centres), -1, 3, 3)

    def kernels(r: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        rows = r.reshape(len(r), -1, 3, 3)
        log_f, slope = igso3_kernels(rows, middle, std**2 + sigma**2)
        return rows, log_f.sum(2) + log_prior.to(r), slope

    def model(r: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
        rows, log_parts, slope = kernels(r, sigma)
        return igso3_score(rows, middle, log_parts.softmax(1).unsqueeze(2) * slope).reshape(len(r), *space.tangent) * -sigma

    def log_prob(r: Tensor, sigma: float) -> Tensor:
        return kernels(r, sigma)[1].logsumexp(1)

    return Expert(model, space.event, None, name, space, log_prob, chunk)


def log_shares(weights: Tensor | None, count: int) -> Tensor:
    """Log of normalised weights ``[count]``, equal ones for None; float64."""
    prior = torch.ones(count, dtype=torch.float64) if weights is None else weights.double()
    if prior.shape != (count,) or not bool((prior >= 0).all()) or not bool(prior.sum() > 0):
        raise ValueError(f"weights of shape {tuple(prior.shape)} must be {count} non-negative numbers, not all zero.")
    return (prior / prior.sum()).log()
