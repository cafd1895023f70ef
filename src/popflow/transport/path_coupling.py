"""Couple two snapshots: plans of least static cost, with one conditional path per entry.

Where the least action between two points is known in closed form, the dynamic problem between two snapshots is a static one: minimise
``sum_ij cost(x_i, y_j) P_ij``, and the path of least action is made of the conditional paths between coupled cells
(`popflow.transport.conditional_paths`).

    transport       cost |x - y|^2: exact, by the network simplex; the same plan for every quadratic or linear potential
    noise           cost |x - y|^2 / 2 with entropy sigma^2 L: Sinkhorn's iteration
    growth          cost -log cos^2(min(sqrt(lam) |x - y|, pi) / 2), both marginals relaxed by their relative entropies: the plan gamma carries
                    the shares sigma_0(x), sigma_1(y) of the mass of a cell; its paths go from mass gamma / sigma_0 to gamma / sigma_1,
                    and the mass that it does not carry dies or is born

Source: Liero, Mielke and Savare, Invent. Math. 211 (2018), theorems 6.3 and 7.20; Peyre and Cuturi, *Computational optimal transport* (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core import Streams
from popflow.transport.coupling import entropic_plan, exact
from popflow.transport.lagrangian import WFR, Lagrangian

CELLS = 1024
"""Cells of each snapshot in one plan; larger snapshots get several plans of random cells, up to `PLANS`."""
PLANS = 8
BLUR = 2e-3
"""Entropy of the plan under growth, in units of ``1 / lam``; far below what snapshots of a thousand cells resolve."""


@dataclass(frozen=True, slots=True)
class PathPlan:
    """The conditional paths between two snapshots, and the probability of each.

    Attributes:
        i: Cell where a path starts, ``[k]``; -1 where its mass is born at ``j``.
        j: Cell where it ends; -1 where its mass dies at ``i``.
        h0: Mass at the start, ``[k]``, float64. The mean over the paths of a cell is the cell's mass: the snapshot is met exactly.
        h1: Mass at the end.
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
        """Share of the final mass that no path transports there."""
        return float((self.chance * self.h1)[self.i < 0].sum() / (self.chance * self.h1).sum())


PathCoupling = Callable[[Lagrangian, Tensor, Tensor, tuple[float, float], float, Streams], PathPlan]
"""``coupling(lagrangian, x, y, masses, length, rng)``: `least_action` and `random_pairs` are two."""


def least_action(lagrangian: Lagrangian, x: Tensor, y: Tensor, masses: tuple[float, float], length: float, rng: Streams) -> PathPlan:
    """The plan of least action between cells ``x [n, d]`` and ``y [m, d]``, ``length`` apart in time, other potentials aside.

    >>> plan = least_action(Lagrangian(WFR(1.0)), torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [-9.0]]), (1.0, 1.0), 1.0, Streams(0))
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
            i, j, h0, h1, chance = _unbalanced(left, right, alpha, beta, lagrangian.lam)
        else:
            if lagrangian.noise:
                epsilon = lagrangian.noise**2 * length * _stretch(lagrangian, length)
                plan = entropic_plan(torch.cdist(left, right).square() / 2, alpha, beta, epsilon)
            else:
                plan = exact(left, right)
            plan = torch.where(plan > 1e-9 * plan.max(), plan, 0.0)
            i, j = plan.nonzero(as_tuple=True)
            chance = plan[i, j] / plan.sum()
            h0, h1 = (torch.full_like(chance, h) for h in masses)
        parts.append((_named(rows, i), _named(columns, j), h0, h1, chance / count))
    return _joined(lagrangian, x, y, parts)


def random_pairs(lagrangian: Lagrangian, x: Tensor, y: Tensor, masses: tuple[float, float], length: float, rng: Streams) -> PathPlan:
    """Cells paired at random, as published; every cell of the larger snapshot sixteen times. Learned bends must undo the crossings.

    >>> plan = random_pairs(Lagrangian(), torch.zeros(2, 1), torch.ones(3, 1), (1.0, 1.0), 1.0, Streams(0))
    >>> len(plan.i), plan.i.bincount().tolist(), plan.j.bincount().tolist()
    (48, [24, 24], [16, 16, 16])
    """
    count = 16 * max(len(x), len(y))
    i, j = (_shuffled(count, rng) % len(cells) for cells in (x, y))
    h0, h1 = (torch.full((count,), h, dtype=torch.float64) for h in masses)
    chance = torch.full_like(h0, 1 / count)
    parts = [(i, j, h0, h1, chance)]
    if isinstance(lagrangian.kinetic, WFR):  # a pair too far apart to travel is a path that dies and one that is born
        far = math.sqrt(lagrangian.lam) * (x.cpu()[i] - y.cpu()[j]).norm(dim=1) >= math.pi
        none, zero, half = torch.full_like(i, -1), torch.zeros_like(h0), chance / 2
        parts = [tuple(v[~far] for v in parts[0]), tuple(v[far] for v in (i, none, 2 * h0, zero, half))]
        parts.append(tuple(v[far] for v in (none, j, zero, 2 * h1, half)))
    return _joined(lagrangian, x, y, parts)


def growth_cost(x: Tensor, y: Tensor, lam: float) -> Tensor:
    """``-log cos^2(sqrt(lam) |x - y| / 2)`` between cells ``[n, d]`` and ``[m, d]``, infinite from ``pi / sqrt(lam)`` on.

    >>> growth_cost(torch.zeros(1, 1), torch.tensor([[0.0], [4.0]]), 1.0).tolist()
    [[-0.0, inf]]
    """
    tau = math.sqrt(lam) * torch.cdist(x, y) / 2
    return torch.where(tau < math.pi / 2, -2 * tau.clamp_max(math.pi / 2).cos().clamp_min(1e-300).log(), math.inf)


def _unbalanced(x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor, lam: float) -> tuple[Tensor, ...]:
    """Paths of the unbalanced plan, and those that die or are born where it carries nothing."""
    gamma = entropic_plan(growth_cost(x, y, lam), alpha, beta, BLUR, 1.0)
    gamma = torch.where(gamma > 1e-7 * torch.minimum(alpha[:, None], beta), gamma, 0.0)
    rows, columns = gamma.sum(1), gamma.sum(0)
    i, j = gamma.nonzero(as_tuple=True)
    dies, born = (rows == 0).nonzero()[:, 0], (columns == 0).nonzero()[:, 0]
    left = torch.cat([gamma[i, j] * (alpha / rows)[i], alpha[dies], torch.zeros_like(beta[born])])
    right = torch.cat([gamma[i, j] * (beta / columns)[j], torch.zeros_like(alpha[dies]), beta[born]])
    i, j = torch.cat([i, dies, torch.full_like(born, -1)]), torch.cat([j, torch.full_like(dies, -1), born])
    chance = (left / alpha.sum() + right / beta.sum()) / 2
    return i, j, left / chance, right / chance, chance


def _joined(lagrangian: Lagrangian, x: Tensor, y: Tensor, parts: list[tuple[Tensor, ...]]) -> PathPlan:
    i, j, h0, h1, chance = (torch.cat(column) for column in zip(*parts, strict=True))
    theta = 0.0
    if isinstance(lagrangian.kinetic, WFR):
        travels = (i >= 0) & (j >= 0)
        tau = math.sqrt(lagrangian.lam) * (x.cpu()[i[travels]] - y.cpu()[j[travels]]).double().norm(dim=1) / 2
        overlap = (chance * (h0 * h1).sqrt())[travels] @ tau.cos()
        theta = math.acos(min(1.0, float(overlap)))
    return PathPlan(i, j, h0, h1, chance, theta)


def _named(cells: Tensor, index: Tensor) -> Tensor:
    """Index among all cells of an index among the ``cells`` of one plan; -1 stays."""
    return torch.where(index < 0, index, cells[index.clamp_min(0)])


def _shuffled(n: int, rng: Streams) -> Tensor:
    return rng.uniform("plan", (n,)).cpu().argsort()


def _stretch(lagrangian: Lagrangian, length: float) -> float:
    """What a quadratic potential does to the entropy: the pair cost depends on the coupling through ``-<x, y> w / sin w`` alone."""
    k = lagrangian.stiffness
    w = math.sqrt(abs(k)) * length
    return 1.0 if k == 0 else (math.sin(w) if k > 0 else math.sinh(w)) / w
