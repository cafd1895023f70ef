"""Experts on curved spaces and on products of spaces: mixtures of heat kernels, and experts given by the scores of their parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from popflow.compose.experts import log_shares
from popflow.compose.spaces.igso3 import igso3_kernels, igso3_score
from popflow.compose.spaces.products import ProductSpace
from popflow.compose.spaces.rotations import Rotations
from popflow.compose.target import Expert

Score = Callable[[Sequence[Tensor], Sequence[float]], Sequence[Tensor]]
"""``score(parts, levels) -> parts``: scores of the factors at their own noise levels."""


def igso3_mixture(
    centres: Tensor, std: float, weights: Tensor | None = None, *, name: str = "rotations", chunk: int | None = None, uniform: bool = True
) -> Expert:
    """Mixture of heat kernels on rotations with exact score and density at every noise level: ``sum_k w_k prod_i f(omega_ki; std^2 + sigma^2)``.

    Args:
        centres: ``[K, 3, 3]``, or ``[K, count, 3, 3]`` for points of several rotations.
        std: Width of the kernels in radians, above 0.
        weights: ``[K]``, non-negative, normalised here; None for equal ones.
        name: Name in errors and reports.
        chunk: Rows per call: memory is rows x K.
        uniform: How samples start, see `Rotations`.

    Raises:
        ValueError: for centres that are not rotations, a width that is not positive, or weights that do not fit.

    Example:
        >>> import torch
        >>> q = igso3_mixture(torch.eye(3).unsqueeze(0), std=0.3)
        >>> from popflow.compose.spaces.so3 import exp
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


def from_scores(
    score: Score,
    space: ProductSpace,
    *,
    log_prob: Callable[[Sequence[Tensor], Sequence[float]], Tensor] | None = None,
    name: str = "expert",
    chunk: int | None = None,
) -> Expert:
    """Make an expert on a product of spaces from a function of its parts and their noise levels.

    Args:
        score: ``score(parts [rows, *factor.event], levels)`` gives the gradients ``[rows, *factor.tangent]`` of one log-density. It may couple the parts.
        space: The product.
        log_prob: ``log_prob(parts, levels) -> [rows]`` where it is known.
        name: Name in errors and reports.
        chunk: Rows per call.

    Example:
        >>> import torch
        >>> from popflow.compose import Euclidean, Proportional, feynman_kac, linear, sample
        >>> from popflow.core import Streams
        >>> a, b = igso3_mixture(torch.eye(3).unsqueeze(0), 0.3), Euclidean((1,))
        >>> space = ProductSpace((a.home, b), (Proportional(0.5), Proportional()))
        >>> q = from_scores(lambda parts, levels: [a.score(parts[0], levels[0]), -parts[1] / (1 + levels[1] ** 2)], space)
        >>> out = sample(feynman_kac(q), linear(200, 0.05, 5.0), particles=512, rng=Streams(0))
        >>> rotations, positions = space.split(out.x)
        >>> bool((rotations.mT @ rotations - torch.eye(3)).abs().max() < 1e-4), abs(float(positions.var()) - 1) < 0.2
        (True, True)
    """

    def model(x: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
        return space.join_tangent(score(space.split(x), space.levels(sigma))) * -sigma

    def density(x: Tensor, sigma: float) -> Tensor:
        assert log_prob is not None
        return log_prob(space.split(x), space.levels(sigma))

    return Expert(model, space.event, None, name, space, None if log_prob is None else density, chunk)
