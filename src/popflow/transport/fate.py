"""Which cells become which type, and how fast each type grows: a flow read through annotations of the cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core.population import Population
from popflow.core.streams import Streams
from popflow.transport.evaluate import Flow
from popflow.transport.snapshots import Snapshots


@dataclass(frozen=True, eq=False)
class Fates:
    """Where the cells of one time end.

    Attributes:
        types: Names of the types.
        probability: ``[n, types]``: share of the descendants of each cell that are of each type.
        descendants: ``[n]``: expected number (mass) of descendants of each cell, relative to the mean of the population.
        table: ``[types, types]``: row of a type at the start -> shares of the types among its descendants; NaN for absent types.
    """

    types: tuple[str, ...]
    probability: Tensor
    descendants: Tensor
    table: Tensor


def fates(
    flow: Flow,
    snapshots: Snapshots,
    annotation: Sequence[Sequence[str]],
    start: int,
    end: int,
    *,
    rng: Streams,
    neighbours: int = 15,
    repeats: int = 1,
) -> Fates:
    """Push the cells of marginal ``start`` to the time of ``end`` and read the types of the cells that are near them there.

    The type of a pushed cell is that of its ``neighbours`` nearest cells of marginal ``end``, each with an equal vote.

    Args:
        flow: What was learned.
        snapshots: Its samples.
        annotation: A type for each cell of each marginal.
        start: Marginal whose cells are followed.
        end: Marginal that they are compared with.
        rng: Streams for the noise of the flow.
        neighbours: Cells that vote; all where there are fewer.
        repeats: Times each cell is pushed, for a flow with noise.

    Raises:
        ValueError: when annotations do not fit the cells, or ``start`` and ``end`` are not two marginals in order.
    """
    for k in (start, end):
        if len(annotation[k]) != len(snapshots.x[k]):
            raise ValueError(f"annotation[{k}] holds {len(annotation[k])} types for {len(snapshots.x[k])} cells, wanted one each.")
    if not 0 <= start < end < len(snapshots) or neighbours < 1 or repeats < 1:
        raise ValueError(
            f"start={start}, end={end}, neighbours={neighbours}, repeats={repeats}: wanted two marginals of 0..{len(snapshots) - 1} in order, "
            "and at least one neighbour and one repeat."
        )
    types = tuple(sorted({*annotation[start], *annotation[end]}))
    member = {name: i for i, name in enumerate(types)}
    goal = torch.nn.functional.one_hot(torch.tensor([member[name] for name in annotation[end]]), len(types)).double()
    x, n = snapshots.x[start], len(snapshots.x[start])
    times = float(snapshots.times[start]), float(snapshots.times[end])
    pushed = flow.push(Population.of(x.repeat(repeats, 1)), *times, rng)
    target = snapshots.x[end]
    near = torch.cat([torch.cdist(rows, target).topk(min(neighbours, len(target)), largest=False).indices for rows in pushed.x.split(2048)])
    vote = goal.to(x.device)[near].mean(1)
    mass = pushed.weights().double()
    of_cell = mass.reshape(repeats, n).sum(0)
    joint = (mass[:, None] * vote).reshape(repeats, n, -1).sum(0)
    begin = torch.nn.functional.one_hot(torch.tensor([member[name] for name in annotation[start]]), len(types)).double().to(x.device)
    flow_of_types = begin.T @ joint
    return Fates(
        types,
        (joint / of_cell[:, None]).nan_to_num(1 / len(types)),
        of_cell * n,
        flow_of_types / flow_of_types.sum(1, keepdim=True),
    )


def growth_by_type(
    flow: Flow, snapshots: Snapshots, annotation: Sequence[Sequence[str]]
) -> dict[str, tuple[tuple[float, float, int] | None, ...]]:
    """Growth rate of each type at each time: mean, standard deviation over its cells, and how many; None where there is none.

    Rates are one over the unit of time. Under normalised growth they are relative to the mean of the population.
    """
    rates = [flow.growth(float(t), x).double() for t, x in zip(snapshots.times, snapshots.x, strict=True)]
    found: dict[str, tuple[tuple[float, float, int] | None, ...]] = {}
    for name in sorted({one for row in annotation for one in row}):
        row = []
        for rate, names in zip(rates, annotation, strict=True):
            mine = rate[torch.tensor([one == name for one in names], device=rate.device)]
            row.append((float(mine.mean()), float(mine.std(correction=0)), len(mine)) if len(mine) else None)
        found[name] = tuple(row)
    return found
