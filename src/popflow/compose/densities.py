"""Log-densities of experts over a population: known exactly, or tracked from the Gaussian at the first noise level.

They are tracked by Bayes' rule, which holds exactly for the true backward kernel ``M_i`` of an expert, at any displacement, however it was chosen
(`popflow.compose.backward_kernel`):

    log q_i(y', sigma') - log q_i(y, sigma)  =  log M_i(y'|y) - log N(y; y', h I),     h = sigma^2 - sigma'^2

With a Gaussian of mean ``y + h s_i`` and variance ``c_i h`` for it (`increments`) that is exact for an isotropic Gaussian expert at any step length; with
``c_i = 1`` it is the Ito sum of SuperDiff.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from popflow.compose.spaces.products import ProductSpace
from popflow.compose.spaces.space import Space
from popflow.compose.target import Expert
from popflow.core import Population
from popflow.core.checks import untouched
from popflow.core.kernels import Refresh


def all_known(experts: Sequence[Expert]) -> bool:
    """Whether every expert knows its density exactly."""
    return all(expert.log_prob is not None for expert in experts)


def densities(experts: Sequence[Expert], pop: Population, sigma: float) -> Tensor:
    """Exact ``log q_i(y, sigma)`` of experts that know it, ``[*batch, n, M]``."""
    rows = pop.x.flatten(0, len(pop.batch))
    each = [untouched(f"log_prob of {expert.name!r}", expert.log_prob, rows, sigma) for expert in experts if expert.log_prob is not None]
    return torch.stack(each, -1).reshape(*pop.log_w.shape, len(experts))


def initial_densities(experts: Sequence[Expert], pop: Population, sigma: float) -> Tensor:
    """Log-densities at the first level: exact where all experts know them, else those of pure noise, ``N(0, sigma^2)``; ``[*batch, n, M]``."""
    if all_known(experts):
        return densities(experts, pop, sigma)
    return experts[0].home.log_reference(pop.x, sigma).unsqueeze(-1).repeat(*[1] * pop.log_w.ndim, len(experts))


def exact_densities(experts: Sequence[Expert]) -> Refresh | None:
    """Function that refreshes ``aux["log_q"]`` after a kernel has moved the particles; None unless all experts know their density."""

    def refresh(v: float, before: Population, after: Population) -> Population:
        if "log_q" not in after.aux:
            return after
        return after.replace(aux={**after.aux, "log_q": densities(experts, after, math.sqrt(v))})

    return refresh if all_known(experts) else None


def increments(displacement: Tensor, s: Tensor, h: float, variances: Sequence[float | Tensor], space: Space) -> Tensor:
    """Changes of the experts' log-densities over a step, ``[*batch, n, M]``.

    ``-|dy - h s_i|^2 / (2 c_i h) - 1/2 log det c_i + |dy|^2 / (2 h)``, written without the difference of large squares; sums run in float64.

    Args:
        displacement: ``dy [*batch, n, *tangent]``, whatever moved the particles.
        s: Scores before the step, ``[M, *batch, n, *tangent]``.
        h: ``sigma^2 - sigma'^2``.
        variances: ``c_i`` of each expert: numbers, ``[*tangent]`` (`popflow.compose.backward_kernel.kernel_variances`), or one for each particle
            ``[*batch, n, 1, ..., 1]``; 1 is the Ito sum.
        space: Where the particles live.

    Example:
        >>> from popflow.compose import Euclidean, gaussian_mixture
        >>> from popflow.compose.backward_kernel import kernel_variances
        >>> q, y, dy = gaussian_mixture(torch.zeros(1, 2), 1.0), torch.tensor([[3.0, 1.0]]), torch.tensor([[-1.0, 2.0]])
        >>> gain = increments(dy, q.score(y, 2.0).unsqueeze(0), 3.0, kernel_variances([q], 2.0, 1.0), Euclidean((2,)))
        >>> bool(torch.isclose(gain[0, 0], (q.log_prob(y + dy, 1.0) - q.log_prob(y, 2.0))[0]))  # one giant step, exactly
        True
    """
    out, dims = [], tuple(range(-len(space.tangent), 0))
    for score, c in zip(s, variances, strict=True):
        each = (displacement - h / 2 * score) * score
        if isinstance(c, Tensor) or c != 1:
            each = each / c - displacement.square() * ((1 / c - 1) / (2 * h))
        out.append(each.sum(dims, dtype=torch.float64) - log_volume(c, space) / 2)
    return torch.stack(out, -1).to(displacement.dtype)


def log_volume(variance: float | Tensor, space: Space) -> float | Tensor:
    """``log det c`` over the degrees of freedom of a space: for one number, for ``[*tangent]``, or for one of each particle, then ``[*batch, n]``."""
    return summed(variance.log(), space) if isinstance(variance, Tensor) else space.dim * math.log(variance)


def summed(each: Tensor, space: Space) -> Tensor:
    """Sum over the degrees of freedom of one number for all coordinates, for each of them ``[*tangent]``, or for each particle."""
    event = len(space.tangent)
    if each.ndim > event:
        return space.dim * each.flatten(each.ndim - event).mean(-1)
    if not isinstance(space, ProductSpace) or not each.ndim:
        return space.dim * each.mean()
    return sum((one.dim * part.mean() for one, part in zip(space.factors, space.split_tangent(each), strict=True)), each.new_zeros(()))


def log_initial_normalizer(total: float, sigma: float, dim: int) -> float:
    """``log int prod N(y; 0, sigma^2)^{beta_i} dy`` with ``B = sum beta_i``: ``d/2 [(1 - B) log(2 pi sigma^2) - log B]``."""
    return dim / 2 * ((1 - total) * math.log(2 * math.pi * sigma**2) - math.log(total))
