"""Which cells become which type, and how fast each type grows: a flow read through the cell types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core.population import Population
from popflow.core.streams import Streams
from popflow.transport.evaluate import Flow
from popflow.transport.predict import draws_of, in_blocks
from popflow.transport.snapshots import Snapshots

NEIGHBOURS = 15
"""Number of nearest cells that vote on the type of a pushed cell."""


@dataclass(frozen=True, eq=False)
class Fates:
    """The fates of the cells of one time.

    Attributes:
        types: Names of the types.
        probability: ``[n, types]``: shares of the types among the descendants of each cell.
        descendants: ``[n]``: expected number (mass) of descendants of each cell, relative to the mean of the population.
        table: ``[types, types]``: shares of the types among the descendants (columns) of each type at the start (rows); NaN for absent types.
        draws: Draws of the noise over which all of these are averages; 1 without noise.
    """

    types: tuple[str, ...]
    probability: Tensor
    descendants: Tensor
    table: Tensor
    draws: int = 1


def fates(
    flow: Flow,
    snapshots: Snapshots,
    annotation: Sequence[Sequence[str]],
    start: int,
    end: int,
    *,
    rng: Streams,
    neighbours: int = NEIGHBOURS,
    draws: int | None = None,
) -> Fates:
    """Push the cells of marginal ``start`` to the time of ``end`` and read off the types of the observed cells near them.

    The type of a pushed cell is that of its ``neighbours`` nearest cells of marginal ``end``, each with an equal vote.
    Under noise the fate of a cell is random: its probabilities are averages over many draws, ``sum_r w_r vote_r / sum_r w_r`` with the weight
    ``w_r`` of draw ``r``, with a standard error of at most ``0.5 / sqrt(draws)`` where weights are equal.

    Args:
        flow: The flow to follow.
        snapshots: Samples.
        annotation: A type for each cell of each marginal.
        start: Marginal whose cells are followed.
        end: Marginal with which they are compared.
        rng: Streams for the noise of the flow.
        neighbours: Number of cells that vote; all where there are fewer.
        draws: Draws of the noise for each cell; None: `popflow.transport.predict.DRAWS` for a flow with noise and 1 without.

    Raises:
        ValueError: when the annotation does not fit the cells, or ``start`` and ``end`` are not two marginals in order.
    """
    for k in (start, end):
        if len(annotation[k]) != len(snapshots.x[k]):
            raise ValueError(f"annotation[{k}] holds {len(annotation[k])} types for {len(snapshots.x[k])} cells, wanted one each.")
    if not 0 <= start < end < len(snapshots) or neighbours < 1:
        raise ValueError(
            f"start={start}, end={end}, neighbours={neighbours}: wanted two marginals of 0..{len(snapshots) - 1} in order, and a neighbour or more."
        )
    types = tuple(sorted({*annotation[start], *annotation[end]}))
    member = {name: i for i, name in enumerate(types)}
    goal = torch.nn.functional.one_hot(torch.tensor([member[name] for name in annotation[end]]), len(types)).double()
    x, target = snapshots.x[start], snapshots.x[end]
    goal, votes, log_w = goal.to(x.device), [], []
    for _ in range(draws := draws_of(flow, draws)):
        pushed = flow.push(Population.of(x), float(snapshots.times[start]), float(snapshots.times[end]), rng)
        near = [torch.cdist(rows, target).topk(min(neighbours, len(target)), largest=False).indices for rows in pushed.x.split(2048)]
        votes.append(goal[torch.cat(near)].mean(1))
        log_w.append(pushed.log_w.double())
    weight = torch.stack(log_w).flatten().softmax(0).unflatten(0, (draws, len(x)))
    joint = torch.einsum("rn,rnk->nk", weight, torch.stack(votes))
    mass = weight.sum(0)
    begin = torch.nn.functional.one_hot(torch.tensor([member[name] for name in annotation[start]]), len(types)).double().to(x.device)
    flow_of_types = begin.T @ joint
    return Fates(
        types,
        (joint / mass[:, None]).nan_to_num(1 / len(types)),
        mass * len(x),
        flow_of_types / flow_of_types.sum(1, keepdim=True),
        draws,
    )


def fates_at_every_time(
    flow: Flow, snapshots: Snapshots, annotation: Sequence[Sequence[str]], first: Fates, *, rng: Streams
) -> list[Tensor]:
    """Fate probabilities ``[n, types]`` at the last time of the cells of every marginal, given those of the ``first`` one.

    Columns are the types of ``first``; the cells of the last marginal have their own type. As many draws of the noise as for ``first``.
    """
    last, found = len(snapshots) - 1, [first.probability]
    for k in range(1, last):
        one = fates(flow, snapshots, annotation, k, last, rng=rng, draws=first.draws)
        here = one.probability.new_zeros(len(one.probability), len(first.types))
        for j, name in enumerate(one.types):
            if name in first.types:
                here[:, first.types.index(name)] = one.probability[:, j]
        found.append(here)
    own = torch.tensor([first.types.index(name) for name in annotation[last]])
    return [*found, torch.nn.functional.one_hot(own, len(first.types))]


def growth_rates(flow: Flow, snapshots: Snapshots) -> list[Tensor]:
    """Growth rate ``[n_i]`` of each cell at its time, one over the unit of time.

    Under normalised growth (a flow whose attribute ``relative_growth`` is true) it is relative to the mean of the cells of that time, so that it is
    centred at every time. The potential alone is centred on the learned path only: nearly so at the times of training, not at those held out.
    """
    rates = [in_blocks(lambda x, t=t: flow.growth(float(t), x), x) for t, x in zip(snapshots.times, snapshots.x, strict=True)]
    return [rate - rate.mean() for rate in rates] if getattr(flow, "relative_growth", False) else rates


def growth_by_type(
    flow: Flow, snapshots: Snapshots, annotation: Sequence[Sequence[str]]
) -> dict[str, tuple[tuple[float, float, int] | None, ...]]:
    """Growth rate of each type at each time: mean, standard deviation over its cells, and their number; None where there are no cells.

    Rates as of `growth_rates`.
    """
    rates = [one.double() for one in growth_rates(flow, snapshots)]
    found: dict[str, tuple[tuple[float, float, int] | None, ...]] = {}
    for name in sorted({one for row in annotation for one in row}):
        row = []
        for rate, names in zip(rates, annotation, strict=True):
            mine = rate[torch.tensor([one == name for one in names], device=rate.device)]
            row.append((float(mine.mean()), float(mine.std(correction=0)), len(mine)) if len(mine) else None)
        found[name] = tuple(row)
    return found
