"""Which mass goes where between two snapshots: plans of least static cost, one strand of mass per entry.

For the kinetic energies and potentials whose least action between two points is known, the dynamic problem between two snapshots is a static
one: ``min sum_ij cost(x_i, y_j)`` over couplings, and the path of least action is made of the strands between coupled cells.

    transport       cost -<x, y>: exact, by the network simplex
    noise           cost |x - y|^2 / 2 with entropy sigma^2 L: Sinkhorn's iteration
    growth          cost -log cos^2(min(sqrt(lam) |x - y|, pi) / 2) with both marginals relaxed by their relative entropies (Liero,
                    Mielke and Savare): a strand from mass gamma / sigma_0 to gamma / sigma_1, where sigma_0, sigma_1 are the shares of each
                    cell that the plan gamma carries; what it does not carry dies, or is born
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core import Streams
from popflow.transport.lagrangian import WFR, Harmonic, Lagrangian

CELLS = 1024
"""Cells of each snapshot in one plan; larger snapshots get several plans of random cells."""
BLUR = 2e-3
"""Entropy of the unbalanced plan, relative to the price of growth."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Strands from snapshot to snapshot: cells ``i``, ``j``, masses ``h0``, ``h1`` at the ends, cumulative probability of drawing each.

    ``E[h0] = m_0`` and ``E[h1] = m_1`` under these probabilities, and given a cell they add up to its share of that mass.
    """

    i: Tensor
    j: Tensor
    h0: Tensor
    h1: Tensor
    cumulative: Tensor
    theta: float


def best(lagrangian: Lagrangian, x: Tensor, y: Tensor, masses: tuple[float, float], length: float, rng: Streams) -> Plan:
    """The plan of least action between the cells ``x [n, d]`` and ``y [m, d]`` of two snapshots ``length`` apart in time."""
    blocks = max(1, math.ceil(max(len(x), len(y)) / CELLS))
    parts = []
    for _ in range(blocks):
        rows, columns = _some(x, rng), _some(y, rng)
        i, j, h0, h1, p = _one(lagrangian, x[rows].double().cpu(), y[columns].double().cpu(), masses, length)
        parts.append((rows.cpu()[i], columns.cpu()[j], h0, h1, p / blocks))
    i, j, h0, h1, p = (torch.cat(column) for column in zip(*parts, strict=True))
    return _plan(lagrangian, x, y, i, j, h0, h1, p)


def independent(lagrangian: Lagrangian, x: Tensor, y: Tensor, masses: tuple[float, float], length: float, rng: Streams) -> Plan:
    """Pairs of cells drawn at random, as published: as many as make every cell of the larger snapshot appear sixteen times."""
    count = 16 * max(len(x), len(y))
    i, j = (torch.rand(count, generator=rng("plan"), dtype=torch.float64, device=rng.device).argsort().cpu() % n for n in (len(x), len(y)))
    i, j, h0, h1 = i, j, torch.full((count,), masses[0], dtype=torch.float64), torch.full((count,), masses[1], dtype=torch.float64)
    p = torch.full((count,), 1 / count, dtype=torch.float64)
    if isinstance(lagrangian.kinetic, WFR):  # pairs too far apart: one strand that dies and one that is born
        far = math.sqrt(lagrangian.lam) * (x[i] - y[j]).norm(dim=1).double().cpu() >= math.pi
        f = far.nonzero()[:, 0]
        parts = [(i[~far], j[~far], h0[~far], h1[~far], p[~far])]
        parts += [(i[f], torch.full_like(f, -1), 2 * h0[f], 0 * h1[f], p[f] / 2), (torch.full_like(f, -1), j[f], 0 * h0[f], 2 * h1[f], p[f] / 2)]
        i, j, h0, h1, p = (torch.cat(column) for column in zip(*parts, strict=True))
    return _plan(lagrangian, x, y, i, j, h0, h1, p)


def _plan(lagrangian: Lagrangian, x: Tensor, y: Tensor, i: Tensor, j: Tensor, h0: Tensor, h1: Tensor, p: Tensor) -> Plan:
    theta = 0.0
    if isinstance(lagrangian.kinetic, WFR) and lagrangian.normalized:
        both = (i >= 0) & (j >= 0)
        tau = math.sqrt(lagrangian.lam) * (x[i[both]] - y[j[both]]).double().norm(dim=1).cpu() / 2
        overlap = float((p[both] * (h0[both] * h1[both]).sqrt() * tau.cos()).sum())
        theta = math.acos(min(1.0, max(-1.0, overlap)))
    return Plan(i, j, h0, h1, p.cumsum(0) / p.sum(), theta)


def _some(x: Tensor, rng: Streams) -> Tensor:
    order = torch.rand(len(x), generator=rng("plan"), dtype=torch.float64, device=rng.device).argsort()
    return order[:CELLS]


def _one(lagrangian: Lagrangian, x: Tensor, y: Tensor, masses: tuple[float, float], length: float) -> tuple[Tensor, ...]:
    n, m = len(x), len(y)
    alpha, beta = torch.full((n,), masses[0] / n, dtype=torch.float64), torch.full((m,), masses[1] / m, dtype=torch.float64)
    if isinstance(lagrangian.kinetic, WFR):
        return _growth(x, y, alpha, beta, lagrangian.lam)
    if lagrangian.noise:
        k = lagrangian.potential.stiffness if isinstance(lagrangian.potential, Harmonic) else 0.0
        w = math.sqrt(abs(k)) * length
        stretch = 1.0 if k == 0 else (math.sin(w) if k > 0 else math.sinh(w)) / w
        plan = scaling(torch.cdist(x, y).square() / 2, alpha, beta, lagrangian.noise**2 * length * stretch, math.inf)
        i, j = torch.nonzero(plan > 1e-9 * plan.max(), as_tuple=True)
        p = plan[i, j]
        one = torch.ones_like(p)
        return i, j, one * masses[0], one * masses[1], p / p.sum()
    import ot

    plan = torch.from_numpy(ot.emd(alpha.numpy(), beta.numpy(), torch.cdist(x, y).square().numpy(), numItermax=10_000_000))
    i, j = plan.nonzero(as_tuple=True)
    one = torch.ones(len(i), dtype=torch.float64)
    return i, j, one * masses[0], one * masses[1], plan[i, j] / plan.sum()


def _growth(x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor, lam: float) -> tuple[Tensor, ...]:
    """Strands of the unbalanced plan, those that die and those that are born among them (index -1 at the missing end)."""
    tau = math.sqrt(lam) * torch.cdist(x, y) / 2
    cost = torch.where(tau < math.pi / 2, -2 * tau.clamp_max(math.pi / 2).cos().clamp_min(1e-300).log(), math.inf)
    gamma = scaling(cost, alpha, beta, BLUR, 1.0)
    gamma = torch.where(gamma > 1e-7 * torch.minimum(alpha[:, None], beta[None]), gamma, 0.0)
    rows, columns = gamma.sum(1), gamma.sum(0)
    dies, born = (rows == 0).nonzero()[:, 0], (columns == 0).nonzero()[:, 0]
    i, j = gamma.nonzero(as_tuple=True)
    left, right = (gamma * (alpha / rows)[:, None])[i, j], (gamma * (beta / columns)[None])[i, j]
    missing = torch.full_like
    i = torch.cat([i, dies, missing(born, -1)])
    j = torch.cat([j, missing(dies, -1), born])
    left, right = torch.cat([left, alpha[dies], 0 * beta[born]]), torch.cat([right, 0 * alpha[dies], beta[born]])
    p = (left / alpha.sum() + right / beta.sum()) / 2
    return i, j, left / p, right / p, p


def scaling(cost: Tensor, alpha: Tensor, beta: Tensor, epsilon: float, rho: float) -> Tensor:
    """Plan ``[n, m]`` that minimises ``<cost, P> + epsilon KL(P | alpha beta) + rho KL(P 1 | alpha) + rho KL(P^T 1 | beta)``.

    Sinkhorn's iteration with stabilised scaling: potentials are absorbed into the kernel, and epsilon is lowered to its value in steps.
    ``rho = inf`` meets the marginals.

    >>> plan = scaling(torch.tensor([[0.0, 9.0], [9.0, 0.0]]).double(), torch.ones(2).double(), torch.ones(2).double(), 0.1, math.inf)
    >>> [[round(v, 3) for v in row] for row in plan.tolist()]
    [[1.0, 0.0], [0.0, 1.0]]
    """
    f, g = torch.zeros_like(alpha), torch.zeros_like(beta)
    finite = cost[cost.isfinite()]
    start = float(finite.max()) if len(finite) else epsilon
    levels = [epsilon]
    while levels[-1] < start / 2:
        levels.append(2 * levels[-1])
    for level in reversed(levels):
        power = 1.0 if math.isinf(rho) else rho / (rho + level)
        for _ in range(40 if level == epsilon else 4):
            kernel = ((f[:, None] + g[None] - cost) / level).exp()
            u, v = torch.ones_like(f), torch.ones_like(g)
            for _ in range(20):
                u = ((-f / rho).exp() / (kernel @ (v * beta)).clamp_min(1e-250)).pow(power).clamp(1e-100, 1e100)
                v = ((-g / rho).exp() / (kernel.mT @ (u * alpha)).clamp_min(1e-250)).pow(power).clamp(1e-100, 1e100)
            f, g = f + level * u.log(), g + level * v.log()
            if level == epsilon and max(float(u.log().abs().max()), float(v.log().abs().max())) < 1e-3:
                break
    return alpha[:, None] * ((f[:, None] + g[None] - cost) / epsilon).exp() * beta[None]
