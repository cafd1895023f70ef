"""Which mass goes where between two snapshots: plans of least static cost, one strand of mass per entry.

Where the least action between two points is known in closed form, the dynamic problem between two snapshots is a static one: the least
``sum_ij cost(x_i, y_j) P_ij``, and the path of least action is made of the strands between coupled cells (`popflow.transport.conditional_paths`).

    transport       cost |x - y|^2: exact, by the network simplex; the same plan for every quadratic or linear potential
    noise           cost |x - y|^2 / 2 with entropy sigma^2 L: Sinkhorn's iteration
    growth          cost -log cos^2(min(sqrt(lam) |x - y|, pi) / 2), both marginals relaxed by their relative entropies: the plan gamma carries
                    the shares sigma_0(x), sigma_1(y) of the mass of a cell; its strands go from mass gamma / sigma_0 to gamma / sigma_1,
                    and what it does not carry dies, or is born

Source: Liero, Mielke and Savare, Invent. Math. 211 (2018), theorems 6.3 and 7.20; Peyre and Cuturi, *Computational optimal transport* (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core import Streams
from popflow.transport.coupling import exact
from popflow.transport.lagrangian import WFR, Lagrangian

CELLS = 1024
"""Cells of each snapshot in one plan; of larger snapshots several plans of random cells are made, up to `PLANS`."""
PLANS = 8
BLUR = 2e-3
"""Entropy of the plan under growth, in units of ``1 / lam``; far below what snapshots of a thousand cells resolve."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Strands between two snapshots, to be drawn.

    Attributes:
        i: Cell at the left end of a strand, ``[k]``; -1 where it is born at ``j``.
        j: Cell at the right end; -1 where it dies at ``i``.
        h0: Mass at the left end, ``[k]``, float64. Given a cell, the mean over strands is that cell's mass: the snapshot is met exactly.
        h1: Mass at the right end.
        chance: Probability of drawing each, ``[k]``, float64.
        theta: Angle between the two ends, for normalised growth: ``cos theta = E[sqrt(h0 h1) cos(sqrt(lam) |x - y| / 2)]``.
    """

    i: Tensor
    j: Tensor
    h0: Tensor
    h1: Tensor
    chance: Tensor
    theta: float

    @property
    def born(self) -> float:
        """Share of the mass at the right end that no strand brings there."""
        return float((self.chance * self.h1)[self.i < 0].sum() / (self.chance * self.h1).sum())


Coupling = Callable[[Lagrangian, Tensor, Tensor, tuple[float, float], float, Streams], Plan]
"""``coupling(lagrangian, x, y, masses, length, rng)``: `best` and `independent` are two."""


def best(lagrangian: Lagrangian, x: Tensor, y: Tensor, masses: tuple[float, float], length: float, rng: Streams) -> Plan:
    """The plan of least action between cells ``x [n, d]`` and ``y [m, d]``, ``length`` apart in time, potentials aside.

    >>> plan = best(Lagrangian(WFR(1.0)), torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [-9.0]]), (1.0, 1.0), 1.0, Streams(0))
    >>> plan.i.tolist(), plan.j.tolist()
    ([0, 1, -1], [0, -1, 1])
    """
    count = min(PLANS, math.ceil(max(len(x), len(y)) / CELLS))
    parts: list[tuple[Tensor, ...]] = []
    for _ in range(count):
        rows, columns = (_shuffled(len(cells), rng)[:CELLS].sort().values for cells in (x, y))
        left, right = x.cpu().double()[rows], y.cpu().double()[columns]
        alpha, beta = (torch.full((len(r),), h / len(r), dtype=torch.float64) for r, h in zip((rows, columns), masses, strict=True))
        if isinstance(lagrangian.kinetic, WFR):
            i, j, h0, h1, chance = _growing(left, right, alpha, beta, lagrangian.lam)
        else:
            if lagrangian.noise:
                epsilon = lagrangian.noise**2 * length * _stretch(lagrangian, length)
                plan = scaling(torch.cdist(left, right).square() / 2, alpha, beta, epsilon, math.inf)
            else:
                plan = exact(left, right)
            plan = torch.where(plan > 1e-9 * plan.max(), plan, 0.0)
            i, j = plan.nonzero(as_tuple=True)
            chance = plan[i, j] / plan.sum()
            h0, h1 = (torch.full_like(chance, h) for h in masses)
        parts.append((_named(rows, i), _named(columns, j), h0, h1, chance / count))
    return _joined(lagrangian, x, y, parts)


def independent(lagrangian: Lagrangian, x: Tensor, y: Tensor, masses: tuple[float, float], length: float, rng: Streams) -> Plan:
    """Cells paired at random, as published; every cell of the larger snapshot sixteen times. Bends must undo the crossings.

    >>> plan = independent(Lagrangian(), torch.zeros(2, 1), torch.ones(3, 1), (1.0, 1.0), 1.0, Streams(0))
    >>> len(plan.i), plan.i.bincount().tolist(), plan.j.bincount().tolist()
    (48, [24, 24], [16, 16, 16])
    """
    count = 16 * max(len(x), len(y))
    i, j = (_shuffled(count, rng) % len(cells) for cells in (x, y))
    h0, h1 = (torch.full((count,), h, dtype=torch.float64) for h in masses)
    chance = torch.full_like(h0, 1 / count)
    parts = [(i, j, h0, h1, chance)]
    if isinstance(lagrangian.kinetic, WFR):  # a pair too far apart to travel is a strand that dies and one that is born
        far = math.sqrt(lagrangian.lam) * (x.cpu()[i] - y.cpu()[j]).norm(dim=1) >= math.pi
        none, zero, half = torch.full_like(i, -1), torch.zeros_like(h0), chance / 2
        parts = [tuple(v[~far] for v in parts[0]), tuple(v[far] for v in (i, none, 2 * h0, zero, half))]
        parts.append(tuple(v[far] for v in (none, j, zero, 2 * h1, half)))
    return _joined(lagrangian, x, y, parts)


def _growing(x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor, lam: float) -> tuple[Tensor, ...]:
    """Strands of the unbalanced plan, and those that die or are born where it carries nothing."""
    tau = math.sqrt(lam) * torch.cdist(x, y) / 2
    cost = torch.where(tau < math.pi / 2, -2 * tau.clamp_max(math.pi / 2).cos().clamp_min(1e-300).log(), math.inf)
    gamma = scaling(cost, alpha, beta, BLUR, 1.0)
    gamma = torch.where(gamma > 1e-7 * torch.minimum(alpha[:, None], beta), gamma, 0.0)
    rows, columns = gamma.sum(1), gamma.sum(0)
    i, j = gamma.nonzero(as_tuple=True)
    dies, born = (rows == 0).nonzero()[:, 0], (columns == 0).nonzero()[:, 0]
    left = torch.cat([gamma[i, j] * (alpha / rows)[i], alpha[dies], torch.zeros_like(beta[born])])
    right = torch.cat([gamma[i, j] * (beta / columns)[j], torch.zeros_like(alpha[dies]), beta[born]])
    i, j = torch.cat([i, dies, torch.full_like(born, -1)]), torch.cat([j, torch.full_like(dies, -1), born])
    chance = (left / alpha.sum() + right / beta.sum()) / 2
    return i, j, left / chance, right / chance, chance


def scaling(cost: Tensor, alpha: Tensor, beta: Tensor, epsilon: float, rho: float) -> Tensor:
    """The plan ``P [n, m]`` of least ``<cost, P> + epsilon KL(P | alpha beta) + rho KL(P 1 | alpha) + rho KL(P^T 1 | beta)``.

    Sinkhorn's iteration in stabilised form: twenty products with a kernel, then potentials are absorbed into it; epsilon is lowered by halves
    to its value. ``rho = inf`` meets the marginals. Infinite costs are pairs that may not be coupled.

    >>> plan = scaling(torch.tensor([[0.0, 9.0], [9.0, 0.0]]).double(), torch.ones(2).double(), torch.ones(2).double(), 0.1, math.inf)
    >>> [[round(v, 3) for v in row] for row in plan.tolist()]
    [[1.0, 0.0], [0.0, 1.0]]
    """
    f, g = torch.zeros_like(alpha), torch.zeros_like(beta)
    allowed = cost[cost.isfinite()]
    levels = [epsilon]
    while len(allowed) and levels[-1] < float(allowed.max()) / 2:
        levels.append(2 * levels[-1])
    for level in reversed(levels):
        power = 1.0 if math.isinf(rho) else rho / (rho + level)
        for _ in range(100 if level == epsilon else 2):
            kernel = ((f[:, None] + g - cost) / level).exp()
            u, v = torch.ones_like(f), torch.ones_like(g)
            for _ in range(20):
                u = ((-f / rho).exp() / (kernel @ (v * beta)).clamp_min(1e-200)).pow(power).clamp(1e-100, 1e100)
                v = ((-g / rho).exp() / (kernel.mT @ (u * alpha)).clamp_min(1e-200)).pow(power).clamp(1e-100, 1e100)
            f, g = f + level * u.log(), g + level * v.log()
            reached = ((u - 1).abs() < 1e-3) | (kernel.amax(1) == 0)
            if bool(reached.all()):
                break
    return alpha[:, None] * ((f[:, None] + g - cost) / epsilon).exp() * beta


def _joined(lagrangian: Lagrangian, x: Tensor, y: Tensor, parts: list[tuple[Tensor, ...]]) -> Plan:
    i, j, h0, h1, chance = (torch.cat(column) for column in zip(*parts, strict=True))
    theta = 0.0
    if isinstance(lagrangian.kinetic, WFR):
        travels = (i >= 0) & (j >= 0)
        tau = math.sqrt(lagrangian.lam) * (x.cpu()[i[travels]] - y.cpu()[j[travels]]).double().norm(dim=1) / 2
        overlap = (chance * (h0 * h1).sqrt())[travels] @ tau.cos()
        theta = math.acos(min(1.0, float(overlap)))
    return Plan(i, j, h0, h1, chance, theta)


def _named(cells: Tensor, index: Tensor) -> Tensor:
    """Index among all cells of one among the ``cells`` of a plan; -1 stays."""
    return torch.where(index < 0, index, cells[index.clamp_min(0)])


def _shuffled(n: int, rng: Streams) -> Tensor:
    return rng.uniform("plan", (n,)).cpu().argsort()


def _stretch(lagrangian: Lagrangian, length: float) -> float:
    """What a quadratic potential does to the entropy: the pair cost depends on the coupling through ``-<x, y> w / sin w`` alone."""
    k = lagrangian.stiffness
    w = math.sqrt(abs(k)) * length
    return 1.0 if k == 0 else (math.sin(w) if k > 0 else math.sinh(w)) / w
