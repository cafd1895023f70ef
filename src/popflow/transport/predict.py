"""What a flow predicts: cells at held-out times, and trajectories of cells from the first snapshot to the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from popflow.core.checks import at_least_one
from popflow.core.population import Population
from popflow.core.streams import Streams
from popflow.transport.evaluate import FLOW, PATH, Flow, Path, neighbours
from popflow.transport.snapshots import Snapshots

DRAWS = 32
"""Draws of the noise over which fates and positions of cells are averaged by default: probabilities are then known to 0.09 or better."""


def draws_of(flow: Flow, draws: int | None = None) -> int:
    """Number of draws of the noise of a flow: as asked for, or `DRAWS`; 1 for a flow that has no attribute ``noise`` above 0.

    Raises:
        ValueError: for fewer than one.
    """
    if draws is not None:
        at_least_one(draws=draws)
    return (draws or DRAWS) if getattr(flow, "noise", 0.0) else 1


def expected(flow: Flow, x: Tensor, t0: float, t1: float, rng: Streams, *, draws: int | None = None) -> Tensor:
    """Mean place at ``t1`` of each of the cells ``x [n, d]`` of ``t0``: over draws of the noise, each with its weight; one draw without noise."""
    total, log_w = x.new_zeros(x.shape), []
    for _ in range(draws_of(flow, draws)):
        pushed = flow.push(x, t0, t1, rng)
        log_w.append(pushed.log_w)
        share = (log_w[-1] - torch.stack(log_w).logsumexp(0)).exp()[:, None]
        total = (1 - share) * total + share * pushed.x
    return total


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted cells.

    Attributes:
        time: Time in the unit of the snapshots.
        way: How they were predicted: pushed along the flow, or drawn from its path.
        cells: Positions in raw coordinates, weights inside.
    """

    time: float
    way: str
    cells: Population


def predict(flow: Flow, snapshots: Snapshots, marginals: Sequence[int], rng: Streams) -> list[Prediction]:
    """Predict marginals: by pushing the cells of the training marginal before each and, where held out, also by drawing as many cells from the path."""
    found = []
    for k in marginals:
        left, t = neighbours(snapshots, k)[0], float(snapshots.times[k])
        pushed = flow.push(snapshots.x[left], float(snapshots.times[left]), t, rng)
        found.append(Prediction(t, FLOW, pushed.replace(x=snapshots.raw(pushed.x))))
        if k in snapshots.held_out and isinstance(flow, Path):
            drawn = flow.interpolate(t, len(pushed), rng)
            found.append(Prediction(t, PATH, drawn.replace(x=snapshots.raw(drawn.x))))
    return found


@dataclass(frozen=True, eq=False)
class Track:
    """Trajectories of cells: ``times [T]``, positions ``x [T, n, d]`` and weights ``[T, n]``."""

    times: list[float]
    x: Tensor
    weights: Tensor


def track(flow: Flow, snapshots: Snapshots, rng: Streams, *, cells: int = 400, frames: int = 25) -> Track:
    """Follow evenly spread cells of the first snapshot to the time of the last."""
    start = snapshots.x[0]
    count = min(cells, len(start))
    pop = Population.of(start[torch.arange(count) * len(start) // count])
    times = torch.linspace(float(snapshots.times[0]), float(snapshots.times[-1]), frames, dtype=torch.float64).tolist()
    pops = [pop]
    for a, b in pairwise(times):
        pops.append(flow.push(pops[-1], a, b, rng))
    return Track(times, torch.stack([pop.x for pop in pops]), torch.stack([pop.weights() for pop in pops]))


def in_blocks(f: Callable[[Tensor], Tensor], x: Tensor, most: int = 8192) -> Tensor:
    """Evaluate in blocks of rows, so that memory does not grow with the number of cells."""
    return torch.cat([f(rows) for rows in x.split(most)])
