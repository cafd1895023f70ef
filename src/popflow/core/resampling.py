"""Resampling schemes: normalised weights in, ancestor indices out.

A scheme is a function ``(weights [*batch, n], generator) -> indices [*batch, n]`` (int64) whose offspring counts ``N_k`` are unbiased,
``E[N_k] = n W_k``. Populations along ``*batch`` are resampled independently. `popflow.core.resample_if` takes any such function.

Source: Douc, Cappe and Moulines, *Comparison of resampling schemes for particle filtering* (2005); Kitagawa (1996) for `systematic`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

Weights = Float[Tensor, "*batch n"]
Indices = Int[Tensor, "*batch n"]


def systematic(weights: Weights, generator: Generator) -> Indices:
    """One uniform ``u`` per population, points ``(j + u) / n``: ``N_k`` is the floor or the ceiling of ``n W_k``. Indices are sorted.

    Cost: two cumulative sums and a scatter, no search. Uniform weights give the identity.

    >>> systematic(torch.tensor([0.5, 0.0, 0.25, 0.25]), torch.Generator().manual_seed(0)).tolist()
    [0, 0, 2, 3]
    """
    n = weights.shape[-1]
    edge = min(n * n * 2.0**-53, 1e-3)  # bounds the rounding error of n times a cumulative weight, so that uniform weights stay uniform
    u = torch.rand(*weights.shape[:-1], 1, generator=generator, dtype=torch.float64, device=weights.device).clamp_(edge, 1 - edge)
    last = (
        _cdf(weights).mul_(n).sub_(u).ceil_().long()
    )  # offspring of particles 0..k together; slot j belongs to the first k with more than j
    marks = last.new_zeros(*last.shape[:-1], n + 1).scatter_add_(-1, last, last.new_ones(()).expand_as(last))
    return marks.cumsum_(-1)[..., :-1]


def multinomial(weights: Weights, generator: Generator) -> Indices:
    """Independent draws from the weights: the largest variance, the reference for other schemes.

    >>> multinomial(torch.tensor([0.0, 1.0, 0.0]), torch.Generator().manual_seed(0)).tolist()
    [1, 1, 1]
    """
    cdf = _cdf(weights)
    u = torch.rand(cdf.shape, generator=generator, dtype=torch.float64, device=cdf.device)
    return torch.searchsorted(cdf, u, right=True).clamp_(max=cdf.shape[-1] - 1)


def _cdf(weights: Tensor) -> Tensor:
    """Cumulative weights in float64 whose last entry is exactly 1."""
    cdf = weights.cumsum(-1, dtype=torch.float64)
    return cdf.div_(cdf[..., -1:].clone())
