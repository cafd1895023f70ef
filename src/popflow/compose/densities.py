"""Log-densities of experts over a population: known exactly, or tracked from the Gaussian at the first noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

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


def log_initial_normalizer(total: float, sigma: float, dim: int) -> float:
    """``log int prod N(y; 0, sigma^2)^{beta_i} dy`` with ``B = sum beta_i``: ``d/2 [(1 - B) log(2 pi sigma^2) - log B]``."""
    return dim / 2 * ((1 - total) * math.log(2 * math.pi * sigma**2) - math.log(total))
