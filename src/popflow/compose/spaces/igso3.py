"""The heat kernel IGSO(3): density, score and draws of Brownian motion on rotations.

Densities are relative to the uniform (Haar) probability; the score is ``s_a = d/d eps log q(R Exp(eps e_a))``, in the body frame. Brownian motion of
variance ``t = sigma^2`` from ``R_0`` has the density ``f(omega; t)`` of the angle ``omega`` of ``R_0^T R``,

    f  =  sum_l (2l+1) exp(-l(l+1) t/2) sin((l+1/2) omega) / sin(omega/2)
       =  e^{t/8} sqrt(2 pi) t^{-3/2} / sin(omega/2)  sum_n (-1)^n (omega + 2 pi n) exp(-(omega + 2 pi n)^2 / 2t),

and the score ``(d log f / d omega) n``, n the axis of ``R_0^T R``. The second form (images, by Poisson's summation) keeps its relative accuracy in the
tails, where the terms of the first cancel; the first needs few terms where t is large, and there the second cancels. Each is used where it is accurate.

Source: Nikolayev and Savyolova, *Normal distribution on the rotation group SO(3)* (1997).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from popflow.compose.spaces.so3 import exp, vee
from popflow.core import Streams

_SERIES_FROM, _FAR_FROM = 1.0, 0.5  # variances: series from the one; below the other the image at omega + 2 pi is lost in rounding
_POINTS = 4096  # of the table of the distribution of angles


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


def log_igso3(x: Tensor, variance: float) -> Tensor:
    """``log f`` of rotations ``[..., 3, 3]`` relative to the identity, ``[...]``."""
    return igso3(_cosine(x.diagonal(dim1=-2, dim2=-1).sum(-1)), variance)[0]


def igso3_kernels(x: Tensor, centres: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """``log f`` of the angles between rotations and centres, and the factor that turns them into scores, both ``[rows, M, count]``.

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


def _cosine(trace: Tensor) -> Tensor:
    return (trace - 1) / 2
