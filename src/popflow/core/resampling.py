"""Resampling schemes: normalised weights in, ancestor indices out.

Each scheme is a function ``(weights [*batch, n], generator) -> indices [*batch, n]`` (int64, sorted except for multinomial) whose
offspring counts ``N_k`` are unbiased, ``E[N_k] = n W_k``. Populations along ``*batch`` are resampled independently.

Source: Douc, Cappe and Moulines, *Comparison of resampling schemes for particle filtering* (2005); Kitagawa (1996) for the systematic one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

Weights = Float[Tensor, "*batch n"]
Indices = Int[Tensor, "*batch n"]


def systematic(weights: Weights, generator: Generator) -> Indices:
    """One uniform per population: points ``(j + u) / n``. ``N_k`` is the floor or the ceiling of ``n W_k``.

    Cost: two cumulative sums and a scatter, no search. Uniform weights give the identity.

    >>> systematic(torch.tensor([0.5, 0.0, 0.25, 0.25]), torch.Generator().manual_seed(0)).tolist()
    [0, 0, 2, 3]
    """
    n = weights.shape[-1]
    edge = _rounding(n)  # no point nearer to an integer than positions are exact: uniform weights stay uniform
    u = torch.rand(*weights.shape[:-1], 1, generator=generator, dtype=torch.float64, device=weights.device).clamp_(edge, 1 - edge)
    return _expand(_cdf(weights).mul_(n).sub_(u).ceil_())


def stratified(weights: Weights, generator: Generator) -> Indices:
    """One uniform per stratum: points ``(j + u_j) / n``. Less variance than multinomial, counts within two of ``n W_k``.

    >>> stratified(torch.full((4,), 0.25), torch.Generator().manual_seed(0)).tolist()
    [0, 1, 2, 3]
    """
    position, n = _positions(weights), weights.shape[-1]
    u = torch.rand(weights.shape, generator=generator, dtype=torch.float64, device=weights.device)
    stratum = position.floor().clamp_(max=n - 1)
    return _expand(stratum + (u.gather(-1, stratum.long()) < position - stratum))


def multinomial(weights: Weights, generator: Generator) -> Indices:
    """Independent draws from the weights: the most variance, the reference of the others.

    >>> multinomial(torch.tensor([0.0, 1.0, 0.0]), torch.Generator().manual_seed(0)).tolist()
    [1, 1, 1]
    """
    return _draw(_cdf(weights), generator)


def residual(weights: Weights, generator: Generator) -> Indices:
    """Keep ``floor(n W_k)`` copies of each particle, draw the rest from what is left of the weights.

    >>> residual(torch.tensor([0.5, 0.25, 0.25, 0.0]), torch.Generator().manual_seed(0)).tolist()
    [0, 0, 1, 2]
    """
    n = weights.shape[-1]
    expected = n * weights.double() / weights.double().sum(-1, keepdim=True)
    kept = torch.floor(expected + 1e-9)
    rest = (expected - kept).clamp_(min=0)
    missing = n - kept.sum(-1, keepdim=True)
    drawn = _draw(_cdf(torch.where(missing > 0, rest, expected)), generator)
    counted = (torch.arange(n, device=weights.device) < missing).double()
    return _expand(kept.scatter_add(-1, drawn, counted).cumsum(-1))


def _cdf(weights: Tensor) -> Tensor:
    """Cumulative weights in float64 whose last entry is exactly 1."""
    cdf = weights.cumsum(-1, dtype=torch.float64)
    return cdf.div_(cdf[..., -1:].clone())


def _positions(weights: Tensor) -> Tensor:
    """``n`` times the cumulative weights; one within rounding of an integer is that integer, so that uniform weights stay uniform."""
    n = weights.shape[-1]
    position = n * _cdf(weights)
    nearest = position.round()
    return torch.where((position - nearest).abs() <= _rounding(n), nearest, position)


def _rounding(n: int) -> float:
    """Bound on the rounding error of ``n`` times a cumulative sum of ``n`` weights."""
    return min(n * n * 2.0**-53, 1e-3)


def _draw(cdf: Tensor, generator: Generator) -> Tensor:
    u = torch.rand(cdf.shape, generator=generator, dtype=torch.float64, device=cdf.device)
    return torch.searchsorted(cdf, u, right=True).clamp_(max=cdf.shape[-1] - 1)


def _expand(cumulative: Tensor) -> Tensor:
    """Turn cumulative offspring counts ``[*batch, n]`` (last entry n) into sorted ancestor indices.

    Slot ``j`` belongs to the particle after all those whose cumulative count is at most ``j``: their number is its index.
    """
    ends = cumulative.long()
    marks = ends.new_zeros(*ends.shape[:-1], ends.shape[-1] + 1).scatter_add_(-1, ends, ends.new_ones(()).expand_as(ends))
    return marks.cumsum_(-1)[..., :-1]
