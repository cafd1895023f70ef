"""Score a flow on marginals that it has not seen, always beside trivial predictions.

Every score stands beside those of the marginal before, the midpoint by exact optimal transport, the midpoint of random pairs, and the
sampling floor: two halves of the true cells, below which distances mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from popflow.core.metrics import mmd2, wasserstein
from popflow.core.population import Population
from popflow.core.streams import Streams
from popflow.transport.coupling import between, exact
from popflow.transport.snapshots import Snapshots

FLOW, PATH, BASELINE = "flow", "path at the time", "OT-conditional flow matching"
PREVIOUS, TRANSPORT, RANDOM, FLOOR = "previous marginal", "exact-OT midpoint", "independent midpoint", "sampling floor"
CELLS = 1500
"""Most cells of a marginal that a score uses: exact distances are cubic in them."""


@runtime_checkable
class Flow(Protocol):
    """What can be evaluated: a drift, a growth rate, and a way to move a population, in the unit of time of the snapshots."""

    def velocity(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Drift ``[n, d]``."""
        ...

    def growth(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Growth rate of the weight ``[n]``, one over time."""
        ...

    def push(self, pop: Population | Tensor, t0: float, t1: float, rng: Streams) -> Population:
        """The population at ``t1``, weights inside."""
        ...


@runtime_checkable
class Path(Flow, Protocol):
    """A flow learned with a path through the snapshots, which also predicts the times between."""

    def interpolate(self, t: float, n: int, rng: Streams) -> Population:
        """``n`` cells of the path at a time between the snapshots, weights inside."""
        ...


@dataclass(frozen=True, slots=True)
class Score:
    """Distances of a weighted sample from the true cells, in the coordinates of the samples.

    Attributes:
        w1: Wasserstein-1.
        w2: Wasserstein-2.
        mmd: Square root of the squared maximum mean discrepancy (V-statistic), kernels as in `popflow.core.metrics.mmd2`.
        ess: Effective number of points of the weighted sample.
    """

    w1: float
    w2: float
    mmd: float
    ess: float


def score(x: Tensor, truth: Tensor, weights: Tensor | None = None) -> Score:
    """Compare a sample ``[n, d]`` with weights ``[n]`` (None: equal) with the cells ``[m, d]``.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> score(x, x + 2, torch.tensor([0.5, 0.5])).w1
    2.0
    """
    share = torch.full((len(x),), 1 / len(x), dtype=torch.float64) if weights is None else weights.double() / weights.double().sum()
    places, mass = merged(x, weights)
    return Score(
        w1=float(wasserstein(places, truth, mass)),
        w2=float(wasserstein(places, truth, mass, order=2)),
        mmd=float(mmd2(x, truth, x_weights=weights).sqrt()),
        ess=float(1 / share.square().sum()),
    )


def merged(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Merge coincident points of a sample and sum their weights: on ties the network simplex can cycle forever.

    >>> merged(torch.tensor([[0.0], [1.0], [0.0]]), None)
    (tensor([[0.],
            [1.]]), tensor([2., 1.], dtype=torch.float64))
    """
    places, which = torch.unique(x, dim=0, return_inverse=True)
    if len(places) == len(x):
        return x, weights
    share = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
    return places, share.new_zeros(len(places)).index_add(0, which, share)


def evaluate(
    flow: Flow, snapshots: Snapshots, *, rng: Streams, marginals: tuple[int, ...] | None = None, cells: int = CELLS
) -> dict[int, dict[str, Score]]:
    """Score the flow at marginals, from the cells of the training marginal before each.

    Args:
        flow: The flow to score.
        snapshots: Samples, with the held-out marginals.
        rng: Streams for the subsamples, pairs, halves and the noise of the flow.
        marginals: Marginals to score, from 1 .. M - 1; None: those held out.
        cells: At most this many cells of a marginal are used.

    Returns:
        Marginal -> name -> `Score`: ``flow``; at held-out marginals ``path at the time`` for a flow that has a path (twice as many points as
        ``cells``, drawn from it); and the baselines of the module. The midpoints interpolate the training marginals on both
        sides at the right fraction of time; the last marginal has none.

    Raises:
        ValueError: when there is nothing to score.
    """
    chosen = snapshots.held_out if marginals is None else marginals
    if not chosen or not all(0 < k < len(snapshots) for k in chosen):
        raise ValueError(f"marginals={chosen}, wanted some of 1..{len(snapshots) - 1}: hold one out (snapshots.hold_out), or name them.")
    found = {}
    for k in chosen:
        before, truth, known = baselines(snapshots, k, rng=rng, cells=cells)
        pushed = flow.push(before, float(snapshots.times[neighbours(snapshots, k)[0]]), float(snapshots.times[k]), rng)
        mine = {FLOW: score(pushed.x, truth, pushed.weights())}
        if k in snapshots.held_out and isinstance(flow, Path):
            drawn = flow.interpolate(float(snapshots.times[k]), 2 * cells, rng)
            mine[PATH] = score(drawn.x, truth, drawn.weights())
        found[k] = mine | known
    return found


def baselines(snapshots: Snapshots, k: int, *, rng: Streams, cells: int = CELLS) -> tuple[Tensor, Tensor, dict[str, Score]]:
    """Cells of the training marginal before ``k``, true cells of ``k``, and the scores of the trivial predictions of it; see the module."""
    left, right = neighbours(snapshots, k)
    truth, before = (some(snapshots.x[i], cells, rng) for i in (k, left))
    found = {PREVIOUS: score(before, truth)}
    if right is not None:
        after = some(snapshots.x[right], cells, rng)
        t = snapshots.times
        share = float((t[k] - t[left]) / (t[right] - t[left]))
        at, mass = between(before, after, exact(before, after), share)
        found[TRANSPORT] = score(at, truth, mass)
        i, j = (rng.uniform("baselines", (cells,)) for _ in range(2))
        paired = (1 - share) * before[(i * len(before)).long()] + share * after[(j * len(after)).long()]
        found[RANDOM] = score(paired, truth)
    half = truth[rng.uniform("baselines", (len(truth),)).argsort().to(truth.device)]
    found[FLOOR] = score(half[: len(half) // 2], half[len(half) // 2 :])
    return before, truth, found


def neighbours(snapshots: Snapshots, k: int) -> tuple[int, int | None]:
    """The training marginals before and after ``k``; there may be none after."""
    training = [i for i in range(len(snapshots)) if i not in snapshots.held_out]
    return max(i for i in training if i < k), min((i for i in training if i > k), default=None)


def some(x: Tensor, most: int, rng: Streams) -> Tensor:
    """At most ``most`` of the rows, drawn without replacement."""
    return x if len(x) <= most else x[rng.uniform("baselines", (len(x),)).argsort()[:most].to(x.device)]
