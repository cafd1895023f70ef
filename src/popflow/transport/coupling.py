"""Couplings of two samples: which cell of one belongs to which of the other, as a plan of masses ``[n, m]``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from popflow.core.errors import NonFiniteError

Coupling = Callable[[Tensor, Tensor], Tensor]
"""``coupling(x, y)``: a plan ``[n, m]`` with equal row and column sums, as `independent` and `exact` give."""


def independent(x: Tensor, y: Tensor) -> Tensor:
    """The product plan: every pair has the mass ``1 / (n m)``; float64.

    >>> independent(torch.zeros(1, 3), torch.zeros(4, 3)).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    return torch.full((len(x), len(y)), 1 / (len(x) * len(y)), dtype=torch.float64, device=x.device)


def exact(x: Tensor, y: Tensor) -> Tensor:
    """The optimal plan for ``|x - y|^2`` between equal weights: ``argmin <cost, P>``, by POT's network simplex on the processor, float64.

    Seconds at a few thousand points. The plan is sparse: at most ``n + m - 1`` pairs carry mass.

    >>> exact(torch.tensor([[0.0], [3.0]]), torch.tensor([[4.0], [1.0]])).tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    import ot

    rows, columns = _weights(x), _weights(y)
    plan = ot.emd(rows.numpy(), columns.numpy(), _squared(x, y).cpu().numpy(), numItermax=10_000_000)
    return torch.from_numpy(plan).to(x.device)


def sinkhorn(x: Tensor, y: Tensor, epsilon: float, *, tolerance: float = 1e-6, most: int = 10_000) -> Tensor:
    """The entropic plan between equal weights, ``argmin <|x - y|^2, P> + epsilon KL(P | product)``, on the device of ``x``, float64.

    Sinkhorn's iteration on the potentials in the log domain, so that no kernel underflows, with ``epsilon`` lowered by halves from the
    largest cost to its value. For the Schroedinger bridge of ``sigma`` over a time ``T`` pass ``epsilon = 2 sigma^2 T``.

    Args:
        x: ``[n, d]``.
        y: ``[m, d]``.
        epsilon: Of the unit of ``|x|^2``.
        tolerance: Largest relative error of a row sum; column sums are exact.
        most: Iterations at the last ``epsilon``.

    Raises:
        ValueError: unless ``epsilon > 0``.
        NonFiniteError: when the rows do not come within the tolerance.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> plan = sinkhorn(x, x, epsilon=2.0)
        >>> [round(v, 4) for v in plan[0].tolist()], round(0.5 / (1 + torch.tensor(-0.5).exp().item()), 4)
        ([0.3112, 0.1888], 0.3112)

    Source: Peyre and Cuturi, *Computational optimal transport* (2019), section 4.4.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon!r}, wanted a number above 0: exact(x, y) is the plan without entropy.")
    cost = _squared(x, y)
    log_a, log_b = (_weights(one).log().to(cost.device) for one in (x, y))
    f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
    level = max(float(cost.max()), epsilon)
    while True:
        level = max(level / 2, epsilon)
        for k in range(most if level == epsilon else 10):
            f = -level * ((g - cost) / level + log_b).logsumexp(1)
            g = -level * ((f[:, None] - cost) / level + log_a[:, None]).logsumexp(0)
            if level == epsilon and k % 10 == 9:
                off = ((f[:, None] + g - cost) / level + log_b).logsumexp(1).expm1().abs().max()
                if off < tolerance:
                    break
        if level == epsilon:
            break
    log_plan = (f[:, None] + g - cost) / epsilon + log_a[:, None] + log_b
    error = float((log_plan.logsumexp(1) - log_a).expm1().abs().max())
    if not error < tolerance:
        raise NonFiniteError(
            f"sinkhorn: rows are off by {error:.2g} after {most} iterations at epsilon={epsilon!r}, wanted {tolerance!r}. "
            "Fix: raise epsilon, most or tolerance, or take exact(x, y)."
        )
    return log_plan.exp()


def pairs(plan: Tensor, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw ``count`` pairs ``(i, j)`` from a plan, with replacement.

    >>> i, j = pairs(torch.tensor([[0.0, 0.5], [0.5, 0.0]]), 4, torch.Generator().manual_seed(0))
    >>> bool((i + j == 1).all())
    True
    """
    i, j = plan.nonzero(as_tuple=True)
    cumulative = plan[i, j].double().cumsum(0)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device).to(plan.device) * cumulative[-1]
    k = torch.searchsorted(cumulative, drawn, right=True).clamp_max(len(i) - 1)
    return i[k], j[k]


def between(x: Tensor, y: Tensor, plan: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """McCann's interpolation: the points ``(1 - share) x_i + share y_j`` of the pairs of a plan, and their masses.

    >>> at, mass = between(torch.tensor([[0.0]]), torch.tensor([[4.0]]), torch.ones(1, 1), 0.25)
    >>> at.item(), mass.item()
    (1.0, 1.0)
    """
    i, j = plan.nonzero(as_tuple=True)
    return (1 - share) * x[i] + share * y[j], plan[i, j]


def _weights(x: Tensor) -> Tensor:
    return torch.full((len(x),), 1 / len(x), dtype=torch.float64)


def _squared(x: Tensor, y: Tensor) -> Tensor:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}, wanted [n, d] and [m, d].")
    return (x.double()[:, None] - y.double()).square().sum(-1) if x.shape[1] <= 3 else torch.cdist(x.double(), y.double()).square()
