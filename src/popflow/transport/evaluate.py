"""Score a flow on marginals that it has not seen, always beside trivial predictions.

Every score stands beside those of the marginal before, the midpoint by exact optimal transport, the midpoint of random pairs, and the
sampling floor: the distance between two samples of the true cells, at which a prediction cannot be told from the truth.
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
SPLITS = 20
"""Random splits of the true cells behind a sampling floor."""
_IN_SPLITS = 1000
"""Most cells of a split, both parts together; larger sizes are extrapolated to."""


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
        spread: Standard deviation of ``w1`` over the splits of a sampling floor; None for all else.
    """

    w1: float
    w2: float
    mmd: float
    ess: float
    spread: float | None = None

    def distinguishable(self, floor: Score) -> bool:
        """Whether W1 is more than two standard deviations above a sampling floor; else the sample cannot be told from the true cells.

        >>> floor = Score(0.2, 0.3, 0.1, 100, spread=0.01)
        >>> Score(0.23, 0.3, 0.1, 100).distinguishable(floor), Score(0.21, 0.3, 0.1, 100).distinguishable(floor)
        (True, False)
        """
        return self.w1 > floor.w1 + 2 * (floor.spread or 0.0)


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
        rng: Streams for the subsamples, pairs, splits and the noise of the flow.
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
    found[FLOOR] = sampling_floor(snapshots.x[k], len(before), len(truth), rng=rng)
    return before, truth, found


def sampling_floor(cells: Tensor, n: int, m: int, *, rng: Streams, splits: int = SPLITS) -> Score:
    """Expected distances between ``n`` and ``m`` cells drawn from the same population, and the spread of W1 from draw to draw.

    Averages over random splits of the cells into two parts that share none. Where there are too few cells for parts of ``n`` and ``m`` (or where
    they would cost too much) the parts are smaller by a factor ``s``, and the power law that parts a quarter as large show, ``F(s) ~ s^-p`` with
    ``p`` from 0 to 1/2, is followed to ``s = 1``.

    Args:
        cells: ``[N, d]``, at least two.
        n: Cells of a prediction.
        m: True cells that it is compared with.
        rng: Streams for the splits.
        splits: Number of splits.

    Example:
        >>> floor = sampling_floor(Streams(0).normal("x", torch.empty(400, 1)), 100, 60, rng=Streams(0))
        >>> abs(floor.w1 - 0.19) < 0.05, 0.03 < floor.spread < 0.1  # 0.19 with a standard deviation of 0.08 in fresh samples
        (True, True)
    """

    def mean(share: float) -> tuple[Tensor, float]:
        a, b = max(1, int(n * share)), max(1, int(m * share))
        rows = []
        for _ in range(splits):
            order = rng.uniform("splits", (len(cells),)).argsort().to(cells.device)
            one = score(cells[order[:a]], cells[order[a : a + b]])
            rows.append((one.w1, one.w2, one.mmd))
        table = torch.tensor(rows, dtype=torch.float64)
        return table.mean(0), float(table[:, 0].std(correction=min(1, splits - 1)))

    share = min(1.0, len(cells) / (n + m), _IN_SPLITS / (n + m))
    found, spread = mean(share)
    factor = torch.ones(3, dtype=torch.float64)
    if share < 1:
        power = ((mean(share / 4)[0] / found.clamp_min(1e-300)).log2() / 2).nan_to_num(0.0).clamp(0, 0.5)
        factor = share**power
    return Score(*(factor * found).tolist(), ess=float(n), spread=float(factor[0]) * spread)


def neighbours(snapshots: Snapshots, k: int) -> tuple[int, int | None]:
    """The training marginals before and after ``k``; there may be none after."""
    training = [i for i in range(len(snapshots)) if i not in snapshots.held_out]
    return max(i for i in training if i < k), min((i for i in training if i > k), default=None)


def some(x: Tensor, most: int, rng: Streams) -> Tensor:
    """At most ``most`` of the rows, drawn without replacement."""
    return x if len(x) <= most else x[rng.uniform("baselines", (len(x),)).argsort()[:most].to(x.device)]
