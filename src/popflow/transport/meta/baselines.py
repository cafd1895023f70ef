"""Trivial answers beside every prediction, and the scores of all of them on populations that were held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core import Population, Streams
from popflow.transport.evaluate import FLOOR, SPLITS, Score, sampling_floor, score
from popflow.transport.meta.populations import Pair, Populations, rows

IDENTITY, SHIFT, SHIFT_BY_TYPE, IDEAL, POOLED = (
    "identity",
    "mean shift",
    "mean shift within cell types",
    "ideal shift",
    "treated cells of the others",
)
CELLS = 400
"""Cells of a cloud in a score."""

Predictor = Callable[[Pair, Populations], Population]
"""Predicts the treated cells of a held-out pair from its populations, whose treated cells it must not look at."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Distances over subsamples: mean and standard error of W1, W2 and MMD (the root of `popflow.core.metrics.mmd2`), in the units of the features.

    A sampling floor has no errors: its splits share the cells.
    """

    w1: float
    w2: float
    mmd: float
    w1_error: float | None = None
    w2_error: float | None = None
    mmd_error: float | None = None


def trivial(training: Populations, test: Populations, pair: Pair, rng: Streams) -> dict[str, Tensor]:
    """Predictions ``[n, d]`` that need no flow, from the training pairs with the same treatment; ``ideal shift`` looks at the answer.

    Args:
        training: What was learned from.
        test: Populations of the pair.
        pair: Held out.
        rng: Streams for the choice of pooled cells.
    """
    x = rows(test.clouds[pair.source])
    others = [one for one in training.pairs if one.treatment == pair.treatment and one.target is not None]
    found = {IDENTITY: x}
    if others:
        moved = [(rows(training.clouds[one.source]), rows(training.clouds[one.target])) for one in others if one.target is not None]
        found[SHIFT] = x + torch.stack([b.mean(0) - a.mean(0) for a, b in moved]).mean(0)
        if training.types is not None and test.types is not None:
            shift = torch.stack([_type_shift(training, others, kind).to(x) for kind in range(len(training.type_names))])
            own = shift[rows(test.types[pair.source])]
            found[SHIFT_BY_TYPE] = x + torch.where(own.isnan(), found[SHIFT] - x, own)
        pool = torch.cat([b for _, b in moved])
        found[POOLED] = pool[rng.uniform("pool", (len(pool),)).argsort()[: max(CELLS, len(x))].to(pool.device)]
    if pair.target is not None:
        found[IDEAL] = x + rows(test.clouds[pair.target]).mean(0) - x.mean(0)
    return found


def _type_shift(training: Populations, pairs: Sequence[Pair], kind: int) -> Tensor:
    """Mean over patients of the shift of one type; NaN where nobody has it on both sides."""
    moved, types = [], training.types
    for pair in pairs:
        if types is not None and pair.target is not None:
            ends = [rows(training.clouds[k])[rows(types[k]) == kind] for k in (pair.source, pair.target)]
            if len(ends[0]) and len(ends[1]):
                moved.append(ends[1].mean(0) - ends[0].mean(0))
    return torch.stack(moved).mean(0) if moved else torch.full((training.dim,), math.nan)


def compare(
    predictors: Mapping[str, Predictor],
    training: Populations,
    test: Populations,
    *,
    rng: Streams,
    cells: int = CELLS,
    draws: int = 3,
    beside: bool = True,
    splits: int = SPLITS,
) -> dict[Pair, dict[str, Scores]]:
    """Score predictions on held-out pairs, all rows on the same subsamples of ``cells`` cells, beside the trivial ones and the sampling floor.

    Args:
        predictors: Name -> how to predict a pair.
        training: What was learned from.
        test: Held-out populations with treated cells.
        rng: Streams for the subsamples.
        cells: Cells of each cloud in a score.
        draws: Subsamples.
        beside: Whether to score the trivial answers and the floor too.
        splits: Random splits behind the floor.

    Returns:
        Pair -> name -> `Scores`. The floor is `popflow.transport.evaluate.sampling_floor` for as many cells as the control cells and the true cells
        in a score.
    """
    found = {}
    for pair in test.complete().pairs:
        assert pair.target is not None
        truth = rows(test.clouds[pair.target])
        clouds = {name: predict(pair, test) for name, predict in predictors.items()}
        if beside:
            clouds |= {name: Population.of(x) for name, x in trivial(training, test, pair, rng).items()}
        seen: dict[str, list[Score]] = {name: [] for name in clouds}
        for _ in range(draws):
            order = rng.uniform("subsample", (len(truth),)).argsort().to(truth.device)
            goal = truth[order[:cells]]
            for name, pop in clouds.items():
                some = rng.uniform("subsample", (len(pop),)).argsort()[:cells].to(pop.x.device)
                seen[name].append(score(pop.x[some], goal, pop.weights()[some]))
        found[pair] = {name: _mean(values) for name, values in seen.items()}
        if beside:
            before, after = (min(cells, len(cloud)) for cloud in (test.clouds[pair.source], truth))
            floor = sampling_floor(truth, before, after, rng=rng, splits=splits)
            found[pair][FLOOR] = Scores(floor.w1, floor.w2, floor.mmd)
    return found


def _mean(values: Sequence[Score]) -> Scores:
    table = torch.tensor([[one.w1, one.w2, one.mmd] for one in values], dtype=torch.float64)
    error = table.std(0, correction=min(1, len(table) - 1)) / math.sqrt(len(table))
    return Scores(*table.mean(0).tolist(), *error.tolist())
