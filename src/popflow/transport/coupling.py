"""Couplings of two samples: plans of masses ``[n, m]`` that pair the points of one with those of the other."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from popflow.core.errors import NonFiniteError

Coupling = Callable[[Tensor, Tensor], Tensor]
"""``coupling(x, y)``: a plan ``[n, m]`` between equal weights; `independent`, `exact`, and `sinkhorn` with its epsilon bound."""


def independent(x: Tensor, y: Tensor) -> Tensor:
    """The product plan: every pair has the mass ``1 / (n m)``; float64.

    >>> independent(torch.zeros(1, 3), torch.zeros(4, 3)).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    return torch.full((len(x), len(y)), 1 / (len(x) * len(y)), dtype=torch.float64, device=x.device)


def exact(x: Tensor, y: Tensor) -> Tensor:
    """The optimal plan for ``|x - y|^2`` between equal weights: ``argmin <cost, P>``, by POT's network simplex on the CPU, float64.

    Takes seconds at a few thousand points. The plan is sparse: at most ``n + m - 1`` pairs carry mass.

    >>> exact(torch.tensor([[0.0], [3.0]]), torch.tensor([[4.0], [1.0]])).tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    import ot

    rows, columns = _weights(x), _weights(y)
    plan = ot.emd(rows.numpy(), columns.numpy(), _squared(x, y).cpu().numpy(), numItermax=10_000_000)
    return torch.from_numpy(plan).to(x.device)


def sinkhorn(x: Tensor, y: Tensor, epsilon: float, *, tolerance: float = 1e-6, most: int = 10_000) -> Tensor:
    """The entropic plan between equal weights, ``argmin <|x - y|^2, P> + epsilon KL(P | product)``, on the device of ``x``, float64.

    For the Schroedinger bridge with noise ``sigma`` over a time ``T`` pass ``epsilon = 2 sigma^2 T``.

    Args:
        x: ``[n, d]``.
        y: ``[m, d]``.
        epsilon: In units of ``|x|^2``.
        tolerance: Largest relative error of a row sum; column sums are exact.
        most: Iterations at the final ``epsilon``.

    Raises:
        ValueError: unless ``epsilon > 0``.
        NonFiniteError: when the row sums do not come within the tolerance.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> plan = sinkhorn(x, x, epsilon=2.0)
        >>> [round(v, 4) for v in plan[0].tolist()], round(0.5 / (1 + torch.tensor(-0.5).exp().item()), 4)
        ([0.3112, 0.1888], 0.3112)
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon!r}, wanted a number above 0: exact(x, y) is the plan without entropy.")
    cost = _squared(x, y)
    alpha, beta = (_weights(one).to(cost.device) for one in (x, y))
    plan = entropic_plan(cost, alpha, beta, epsilon, tolerance=tolerance / 2, most=most)
    error = float((plan.sum(1) / alpha - 1).abs().max())
    if not error < tolerance:
        raise NonFiniteError(
            f"sinkhorn: row sums are off by {error:.2g} after {most} iterations at epsilon={epsilon!r}, wanted {tolerance!r}. "
            "Fix: raise epsilon, most or tolerance, or use exact(x, y)."
        )
    return plan


def entropic_plan(
    cost: Tensor, alpha: Tensor, beta: Tensor, epsilon: float, rho: float = math.inf, *, tolerance: float = 1e-3, most: int = 2000
) -> Tensor:
    """The plan ``P [n, m]`` that minimises ``<cost, P> + epsilon KL(P | alpha beta) + rho KL(P 1 | alpha) + rho KL(P^T 1 | beta)``.

    Sinkhorn's iteration in stabilised form: twenty products with a kernel, then the scalings are absorbed into the potentials; epsilon is
    halved down to its value from the largest cost.

    Args:
        cost: ``[n, m]``, float64; pairs of infinite cost are not coupled.
        alpha: Masses of the rows ``[n]``.
        beta: Masses of the columns ``[m]``.
        epsilon: Weight of the entropy, in the unit of the cost.
        rho: Price of missing the marginals; infinite: both are met.
        tolerance: Largest relative change of a potential's scaling over twenty iterations at which the iteration stops.
        most: Iterations at the final ``epsilon``.

    Example:
        >>> plan = entropic_plan(torch.tensor([[0.0, 9.0], [9.0, 0.0]]).double(), torch.ones(2).double(), torch.ones(2).double(), 0.1)
        >>> [[round(v, 3) for v in row] for row in plan.tolist()]
        [[1.0, 0.0], [0.0, 1.0]]

    Source: Peyre and Cuturi, *Computational optimal transport* (2019), sections 4.4 and 10.2.
    """
    f, g = torch.zeros_like(alpha), torch.zeros_like(beta)
    allowed = cost[cost.isfinite()]
    levels = [epsilon]
    while len(allowed) and levels[-1] < float(allowed.max()) / 2:
        levels.append(2 * levels[-1])
    for level in reversed(levels):
        power = 1.0 if math.isinf(rho) else rho / (rho + level)
        for _ in range(max(1, most // 20) if level == epsilon else 2):
            kernel = ((f[:, None] + g - cost) / level).exp()
            u, v = torch.ones_like(f), torch.ones_like(g)
            for _ in range(20):
                u = ((-f / rho).exp() / (kernel @ (v * beta)).clamp_min(1e-200)).pow(power).clamp(1e-100, 1e100)
                v = ((-g / rho).exp() / (kernel.mT @ (u * alpha)).clamp_min(1e-200)).pow(power).clamp(1e-100, 1e100)
            f, g = f + level * u.log(), g + level * v.log()
            reached = ((u - 1).abs() < tolerance) | (kernel.amax(1) == 0)
            if bool(reached.all()):
                break
    return alpha[:, None] * ((f[:, None] + g - cost) / epsilon).exp() * beta


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
