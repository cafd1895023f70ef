"""Minibatches of populations: leading dimensions are populations, coupled cells lie beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from popflow.core import Streams
from popflow.transport.conditional_paths import ConditionalPaths
from popflow.transport.coupling import Coupling, independent, pairs
from popflow.transport.lagrangian import Lagrangian
from popflow.transport.meta.populations import Populations, rows
from popflow.transport.meta.settings import Settings
from popflow.transport.path_coupling import least_action
from popflow.transport.snapshots import Snapshots

CELLS = 1024
"""Clouds of up to this many cells are coupled once and as a whole; beyond that the cells of each batch are."""

Batch = dict[str, Tensor]


def paired(x: Tensor, y: Tensor) -> Tensor:
    """The plan of cells that are measured twice: row k of one cloud is row k of the other.

    >>> paired(torch.zeros(2, 1), torch.ones(2, 1)).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    same_cells(len(x), len(y))
    return torch.eye(len(x), dtype=torch.float64, device=x.device) / len(x)


def same_cells(before: int, after: int) -> None:
    """Check that two clouds can hold the same cells."""
    if before != after:
        raise ValueError(
            f"there are {before} cells before and {after} after, wanted the same cells twice, in the same order, to pair them."
        )


def within_types(coupling: Coupling, x: Tensor, y: Tensor, x_types: Tensor, y_types: Tensor) -> Tensor:
    """The plan ``[n, m]`` that couples each cell type with itself alone; every type has its share of the first cloud.

    Cells of a type that the other cloud lacks are not coupled.

    Raises:
        ValueError: when the clouds share no type.

    Example:
        >>> x, y = torch.tensor([[0.0], [5.0]]), torch.tensor([[5.0], [0.0]])
        >>> within_types(independent, x, y, torch.tensor([0, 1]), torch.tensor([0, 1])).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    plan = torch.zeros(len(x), len(y), dtype=torch.float64, device=x.device)
    for kind in x_types.unique().tolist():
        i, j = (x_types == kind).nonzero()[:, 0], (y_types == kind).nonzero()[:, 0]
        if len(j):
            plan[i[:, None], j] = coupling(x[i], y[j]) * len(i) / len(x)
    if not bool(plan.any()):
        raise ValueError("no cell type is in both clouds, wanted one at least: couple without types.")
    return plan


@dataclass(eq=False)
class Draws:
    """Draws of coupled cells and of whole populations, for `popflow.learn.fit`.

    Attributes:
        populations: The populations to learn from, complete.
        coupling: Which cells of a source and a target are coupled.
        settings: Sizes of the batches and what they hold.
        plans: Plans of whole clouds, made when they are first needed.
    """

    populations: Populations
    coupling: Coupling
    settings: Settings
    plans: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.treated = torch.tensor([self.populations.treatments.index(pair.treatment) for pair in self.populations.pairs])
        self.count = min(self.settings.populations, len(self.populations.pairs))

    def chosen(self, rng: Streams) -> Tensor:
        """Numbers of the pairs in a batch, without repetition."""
        return rng.uniform("populations", (len(self.populations.pairs),)).cpu().argsort()[: self.count]

    def cloud(self, k: int, count: int, rng: Streams) -> tuple[Tensor, Tensor | None]:
        """``count`` cells of a cloud and their types: without repetition where there are as many."""
        n, types = len(self.populations.clouds[k]), self.populations.types
        draw = rng.uniform("cells", (max(n, count),)).cpu() if n < 20 * count else rng.uniform("cells", (count,)).cpu()
        index = draw.argsort()[:count] % n if n < 20 * count else (draw * n).long()
        return rows(self.populations.clouds[k], index), None if types is None else rows(types[k], index)

    def coupled(self, k: int, count: int, rng: Streams) -> tuple[Tensor, Tensor]:
        """``count`` coupled cells ``[count, d]`` of the k-th pair, from the plan of whole clouds or of random cells of large ones."""
        pair, populations = self.populations.pairs[k], self.populations
        source, target = pair.source, pair.target
        assert target is not None
        if self.coupling is paired:
            same_cells(*(len(populations.clouds[k]) for k in (source, target)))
            index = (rng.uniform("pairs", (count,)).cpu() * len(populations.clouds[source])).long()
            return rows(populations.clouds[source], index), rows(populations.clouds[target], index)
        if self.coupling is independent and not self.settings.within_types:
            return self.cloud(source, count, rng)[0], self.cloud(target, count, rng)[0]
        if max(len(populations.clouds[source]), len(populations.clouds[target])) > CELLS:
            (x, a), (y, b) = self.cloud(source, count, rng), self.cloud(target, count, rng)
            i, j = pairs(self.plan(x, y, a, b), count, rng("pairs"))
            return x[i.to(x.device)], y[j.to(y.device)]
        x, y = rows(populations.clouds[source]), rows(populations.clouds[target])
        if k not in self.plans:
            types = (None, None) if populations.types is None else (rows(populations.types[source]), rows(populations.types[target]))
            plan = self.plan(x, y, *types)
            i, j = plan.nonzero(as_tuple=True)
            self.plans[k] = i, j, plan[i, j].double().cumsum(0)
        i, j, mass = self.plans[k]
        drawn = torch.searchsorted(mass, rng.uniform("pairs", (count,)).to(mass.device) * mass[-1], right=True).clamp_max(len(i) - 1)
        return x[i[drawn]], y[j[drawn]]

    def plan(self, x: Tensor, y: Tensor, x_types: Tensor | None, y_types: Tensor | None) -> Tensor:
        """The plan of two clouds."""
        if not self.settings.within_types:
            return self.coupling(x, y)
        if x_types is None or y_types is None:
            raise ValueError("within_types=True and the populations have no types, wanted a type for each cell.")
        return within_types(self.coupling, x, y, x_types, y_types)

    def context(self, chosen: Tensor, rng: Streams) -> Batch:
        """Treatments, and the populations and examples that are embedded ``[P, cells, d]``."""
        batch: Batch = {"treatment": self.treated[chosen]}
        if not self.settings.mean_field:
            drawn = [self.cloud(self.populations.pairs[k].source, self.settings.cells, rng) for k in chosen.tolist()]
            batch |= _stacked("cells", drawn)
        if self.settings.by_example:
            others = [self.populations.pairs[self.other(k, rng)] for k in chosen.tolist()]
            batch |= _stacked("before", [self.cloud(pair.source, self.settings.cells, rng) for pair in others])
            batch |= _stacked("after", [self.cloud(pair.target, self.settings.cells, rng) for pair in others if pair.target is not None])
        return batch

    def other(self, k: int, rng: Streams) -> int:
        """A pair of another group with the same treatment; the pair itself where there is none."""
        mine = self.populations.pairs[k]
        found = [i for i, pair in enumerate(self.populations.pairs) if pair.treatment == mine.treatment and pair.group != mine.group] or [k]
        return found[int(rng.uniform("examples", ()) * len(found))]

    def matching(self, rng: Streams) -> Batch:
        """Cells on straight lines between coupled cells: positions x, velocities, times ``[P, pairs]``; one time for each population on the way."""
        chosen = self.chosen(rng)
        ends = [self.coupled(k, self.settings.pairs, rng) for k in chosen.tolist()]
        x, y = (torch.stack(side) for side in zip(*ends, strict=True))
        times = rng.uniform("times", (len(chosen), 1 if self.settings.mean_field else self.settings.pairs), x.dtype)
        t = times.to(x.device).expand(x.shape[:2]).contiguous()
        return self.context(chosen, rng) | {"x": torch.lerp(x, y, t[..., None]), "velocity": y - x, "t": t}

    def with_paths(self, lagrangian: Lagrangian, rng: Streams, slices: int) -> Callable[[Streams], Batch]:
        """Couple all pairs by least action; the function returned draws their conditional paths at ``slices`` times for each population."""
        built: list[ConditionalPaths] = []
        for pair in self.populations.pairs:
            assert pair.target is not None
            x = self.cloud(pair.source, min(CELLS // 2, len(self.populations.clouds[pair.source])), rng)[0]
            y = self.cloud(pair.target, min(CELLS // 2, len(self.populations.clouds[pair.target])), rng)[0]
            masses = None if lagrangian.normalized else [1.0, pair.mass]
            built.append(ConditionalPaths.of(lagrangian, Snapshots.of([x, y], masses=masses), least_action, rng))
        slices = 1 if self.settings.mean_field else slices

        def draw(rng: Streams) -> Batch:
            chosen = self.chosen(rng)
            paths = [built[k].draw(rng, slices, max(1, self.settings.pairs // slices)) for k in chosen.tolist()]
            stacked = {f"path.{name}": torch.stack([one[name] for one in paths]) for name in paths[0]}
            return self.context(chosen, rng) | stacked

        return draw


def _stacked(name: str, drawn: list[tuple[Tensor, Tensor | None]]) -> Batch:
    types = [code for _, code in drawn if code is not None]
    return {name: torch.stack([x for x, _ in drawn])} | ({f"{name}.types": torch.stack(types)} if types else {})
