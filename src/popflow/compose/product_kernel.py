"""One step of a product of experts: the normalised product of their backward kernels, of any length, and the deterministic step beside it.

For ``p = prod q_i^{beta_i}`` with ``B = sum beta_i`` and backward kernels of mean ``y + h s_i`` and variance ``c_i h`` (`popflow.compose.backward_kernel`) the identity of Bayes
makes the ratio of target and proposal a function of y alone when y' is drawn from ``prod M_i^{beta_i} N(y; y', h)^{1 - B}``, normalised:

    w_i = beta_i / c_i        D = sum w_i + 1 - B        y' = y + (h/D) sum w_i s_i + sqrt(h/D) z
    d log w = h/(2D) [(B - 1) sum w_i |s_i|^2 - sum_{i<j} w_i w_j |s_i - s_j|^2]  -  d/2 [sum beta_i log c_i + log D]

It is the locally optimal proposal; with ``c_i = 1`` the Euler-Maruyama step and weight of Feynman-Kac correctors. No difference of large squares is formed.

Without noise ``y' = y + k sum beta_i s_i`` with ``k = h (1 - r) / sum beta_i (1 - c_i)``, ``r = prod c_i^{beta_i/2}``: its Jacobian is r per coordinate in the mean, which cancels the
volumes of the kernels. For one expert and ``c = (sigma'/sigma)^2`` that is DDIM.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.densities import log_volume, summed
from popflow.compose.spaces.space import Space
from popflow.core import PopflowWarning

_SMALLEST = 0.1
"""Least D: below it the kernels of negative exponents leave next to nothing of the others, and all are widened towards Euler-Maruyama (D = 1)."""

Number = float | Tensor
"""A number, one for each tangent coordinate ``[*tangent]``, or one for each particle ``[*batch, n, 1, ..., 1]``."""


@dataclass(frozen=True)
class ProductKernel:
    """The Gaussian that a product moves by from one level to a lower one.

    Attributes:
        space: Where the particles live.
        h: ``sigma^2 - sigma'^2``.
        beta: Exponents.
        pulls: ``w_i``.
        precision: ``D``.
        log_constant: ``-d/2 [sum beta_i log c_i + log D]``.

    Example:
        >>> from popflow.compose import Euclidean
        >>> kernel = ProductKernel.of(Euclidean((3,)), 2.0, [1.0, 1.0], [0.5, 0.5])
        >>> kernel.pulls, kernel.precision, kernel.mean(torch.ones(2, 1, 3)).tolist()
        ([2.0, 2.0], 3.0, [[2.6666667461395264, 2.6666667461395264, 2.6666667461395264]])
    """

    space: Space
    h: float
    beta: Sequence[float]
    pulls: Sequence[Number]
    precision: Number
    log_constant: Number

    @staticmethod
    def of(
        space: Space, h: float, beta: Sequence[float], variances: Sequence[Number], usual: Sequence[Number] | None = None
    ) -> ProductKernel:
        """Multiply the kernels of variances ``c_i h``.

        Where D is too small, variances of single particles give way to the ``usual`` ones, and others are widened, with a warning.
        """
        total = sum(beta)
        if alone(beta):  # exactly the expert's own kernel
            c = next(c for b, c in zip(beta, variances, strict=True) if b)
            return ProductKernel(space, h, beta, [b / c for b in beta], 1 / c, 0.0)
        if all(not isinstance(c, Tensor) and c == 1 for c in variances):
            return ProductKernel(space, h, beta, list(beta), 1.0, 0.0)
        precision = sum(b / c for b, c in zip(beta, variances, strict=True)) + (1 - total)
        variances = _widened(precision, variances, usual)
        pulls = [b / c for b, c in zip(beta, variances, strict=True)]
        precision = sum(pulls) + (1 - total)
        volumes = sum(b * log_volume(c, space) for b, c in zip(beta, variances, strict=True))
        return ProductKernel(space, h, beta, pulls, precision, (volumes + log_volume(precision, space)) / -2)

    def log_normalizer(self, s: Tensor) -> Tensor:
        """Log-weight of a step from points with scores ``[M, *batch, n, *tangent]``, ``[*batch, n]``."""
        dims = tuple(range(-len(self.space.tangent), 0))
        surplus, pulls, total = sum(self.beta) - 1, self.pulls, torch.zeros_like(s[0].sum(dims))
        if alone(self.beta):
            return total

        def square(weight: Number, x: Tensor) -> Tensor:
            each = x.square()
            scale = weight * (self.h / 2) / self.precision
            return (each * scale).sum(dims) if isinstance(scale, Tensor) else each.sum(dims) * scale

        for i in range(len(pulls)):
            if surplus:
                total = total + square(surplus * pulls[i], s[i])
            for j in range(i):
                total = total - square(pulls[i] * pulls[j], s[i] - s[j])
        return total + self.log_constant

    def pull(self, s: Tensor) -> Tensor:
        """``sum w_i s_i / D``."""
        return weighted_sum([w / self.precision for w in self.pulls], s)

    def mean(self, s: Tensor) -> Tensor:
        """Mean displacement ``(h/D) sum w_i s_i``."""
        return self.h * self.pull(s)

    @property
    def width(self) -> Number:
        """Standard deviation of the displacement, ``sqrt(h/D)``."""
        return (self.h / self.precision) ** 0.5


def flow(space: Space, h: float, beta: Sequence[float], variances: Sequence[Number], s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take the step without noise: its displacement, its log-weight ``[*batch, n]``, and the scores where it ends, ``[M, ...]``.

    The weight is ``sum beta_i [|dy|^2 / 2h - |dy - h s_i|^2 / (2 c_i h)]``; the scores those of Gaussian experts, ``(s_i - dy (1 - c_i)/h) / c_i``.
    """
    dims, c = tuple(range(-len(space.tangent), 0)), [torch.as_tensor(one, dtype=torch.float64, device=s.device) for one in variances]
    log_r = torch.stack([b * one.log() / 2 for b, one in zip(beta, c, strict=True)]).sum(0)
    parts = [b * (1 - one) for b, one in zip(beta, c, strict=True)]
    closing, size = torch.stack(parts).sum(0), torch.stack(parts).abs().sum(0)
    usual = closing.abs() > 1e-3 * size  # experts that cancel leave no mean divergence: half of h, as for small steps
    step = torch.where(usual, -log_r.expm1() / torch.where(usual, closing, 1.0), 0.5) * h
    displacement = step.to(s) * weighted_sum(beta, s)
    total = torch.zeros_like(s[0].sum(dims))
    if not alone(beta):
        for b, one, score in zip(beta, variances, s, strict=True):
            each = (displacement - h / 2 * score) * score / one - displacement.square() * ((1 / one - 1) / (2 * h))
            total = total + b * each.sum(dims, dtype=torch.float64).to(total)
        left = (1 - step * closing / h).clamp_min(1e-6).log() - log_r
        total = total + summed(torch.where(usual, 0.0, left), space).to(total)
    moved = [(score - displacement * ((1 - one) / h)) / one for one, score in zip(variances, s, strict=True)]
    return displacement, total, torch.stack(moved)


def alone(beta: Sequence[float]) -> bool:
    """Whether a product is one expert with exponent one, whose steps need no weights."""
    return [b for b in beta if b] == [1.0]


def weighted_sum(beta: Sequence[Number], s: Tensor) -> Tensor:
    """Return ``sum_i beta_i s_i`` over the first dimension; one expert with exponent one is returned as it is."""
    total = s[0] if not isinstance(beta[0], Tensor) and beta[0] == 1 else beta[0] * s[0]
    for b, one in zip(beta[1:], s[1:], strict=True):
        total = total + b * one
    return total


def _widened(precision: Number, variances: Sequence[Number], usual: Sequence[Number] | None) -> Sequence[Number]:
    """Variances of kernels whose product has a precision of at least `_SMALLEST`: the usual ones, else ``1/c -> 1 + share (1/c - 1)``."""
    if isinstance(precision, Tensor) and usual is not None:
        return [torch.where(precision < _SMALLEST, other, c) for c, other in zip(variances, usual, strict=True)]
    least = float(precision.min()) if isinstance(precision, Tensor) else precision
    if least >= _SMALLEST:
        return variances
    warnings.warn(
        "the backward kernels of a product with negative exponents cancel at some noise level: they are widened towards Euler-Maruyama there. Take more levels.",
        PopflowWarning,
        stacklevel=2,
    )
    share = (1 - _SMALLEST) / (1 - least)
    return [1 / (1 + share * (1 / c - 1)) for c in variances]
