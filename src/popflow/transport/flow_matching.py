"""(Optimal-transport) conditional flow matching between consecutive snapshots: the baseline, a drift without growth or noise.

    min E | v(t, x_t) - (x_1 - x_0) / (t_1 - t_0) |^2,    x_t = x_0 + (t - t_0) / (t_1 - t_0) (x_1 - x_0),    (x_0, x_1) ~ coupling

over the intervals of a chain of snapshots, ``t`` uniform in each. The independent coupling gives conditional flow matching, the optimal
plan OT-CFM: the plan of all cells up to `CELLS` of a snapshot, beyond that the plan of the cells of each batch.

Source: Tong et al., *Improving and generalizing flow-based generative models with minibatch optimal transport*, TMLR 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from popflow.core.population import Population
from popflow.core.process import Rates
from popflow.core.simulate import simulate
from popflow.core.steps import heun
from popflow.core.streams import Streams
from popflow.learn import MLP, cosine, fit
from popflow.transport.coupling import Coupling, exact, independent, pairs
from popflow.transport.snapshots import Snapshots

CELLS = 2048
"""Snapshots of up to this many cells are coupled once and as a whole."""


@dataclass(frozen=True, eq=False)
class MatchedFlow:
    """A drift learned from snapshots, in their coordinates and unit of time. Mass is conserved.

    Attributes:
        network: Network of position and unit time.
        start: Time of the first snapshot.
        span: Time from the first to the last.
    """

    network: nn.Module
    start: float
    span: float

    def velocity(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Drift ``[n, d]`` at positions ``[n, d]``, in units of ``x`` per unit of time."""
        with torch.no_grad():
            return self.network(x, (torch.as_tensor(t, dtype=x.dtype, device=x.device) - self.start) / self.span) / self.span

    def growth(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Growth rate ``[n]``: zero, mass is conserved."""
        return x.new_zeros(len(x))

    def push(self, pop: Population | Tensor, t0: float, t1: float, rng: Streams, steps: int = 100) -> Population:
        """Carry a population from time ``t0`` to ``t1`` by Heun's method in ``steps`` steps."""
        pop = pop if isinstance(pop, Population) else Population.of(pop)
        times = torch.linspace(t0, t1, steps + 1, dtype=torch.float64)
        return simulate(heun(lambda t, pop: Rates(drift=self.velocity(t, pop.x))), pop, times, rng=rng)


def match(
    snapshots: Snapshots,
    *,
    rng: Streams,
    coupling: Coupling = exact,
    steps: int = 2000,
    batch: int = 256,
    width: int = 64,
    depth: int = 3,
    lr: float = 3e-3,
    ema: float = 0.99,
    **options: Any,
) -> MatchedFlow:
    """Learn a drift by conditional flow matching between the training marginals.

    Args:
        snapshots: Samples; standardise them first.
        rng: Random streams.
        coupling: Pairs the cells of two snapshots: `popflow.transport.coupling.exact` (OT-CFM), ``independent``, or a partial of ``sinkhorn``.
        steps: Training steps.
        batch: Cells of each snapshot in a step.
        width: Hidden width.
        depth: Hidden layers.
        lr: Learning rate of AdamW, lowered along half a cosine.
        ema: Decay of the average of parameters, which the flow uses.
        **options: Handed to `popflow.learn.fit`: ``record``, ``checkpoint``, ``compile`` and so on.

    Example:
        >>> x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
        >>> flow = match(Snapshots.of([x, x + 2], times=[0, 4]), rng=Streams(0), steps=300, batch=64, width=16, depth=2)
        >>> round(flow.push(x, 0.0, 2.0, Streams(0)).mean().item() - x.mean().item(), 1)
        1.0
    """
    training = snapshots.training
    with rng.layers("flow matching"):
        network = MLP(training.dim, width=width, depth=depth).to(training.x[0])
    start, span = float(snapshots.times[0]), float(snapshots.times[-1] - snapshots.times[0])
    x, ends = training.x, training.unit_times.to(training.x[0])
    plans = [coupling(a, b) if coupling is not independent and max(len(a), len(b)) <= CELLS else None for a, b in pairwise(x)]

    def coupled(k: int, rng: Streams) -> tuple[Tensor, Tensor]:
        """Draw a batch of pairs of cells of two snapshots."""
        left, right, plan = x[k], x[k + 1], plans[k]
        if plan is None:
            left, right = (rows[(rng.uniform("cells", (batch,)) * len(rows)).long()] for rows in (left, right))
            if coupling is independent:
                return left, right
            plan = coupling(left, right)
        i, j = pairs(plan, batch, rng("pairs"))
        return left[i], right[j]

    def batches(rng: Streams) -> tuple[Tensor, Tensor, Tensor]:
        share = rng.uniform("times", (len(x) - 1, batch), x[0].dtype)
        points, targets, times = [], [], []
        for k, length in enumerate(ends.diff()):
            left, right = coupled(k, rng)
            points.append(left + share[k, :, None] * (right - left))
            targets.append((right - left) / length)
            times.append(ends[k] + share[k] * length)
        return torch.cat(points), torch.cat(targets), torch.cat(times)

    def loss(params: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x, target, t = batch
        return (functional_call(network, dict(params), (x, t)) - target).square().sum(1).mean(), {}

    result = fit(
        loss,
        dict(network.named_parameters()),
        batches,
        steps=steps,
        rng=rng,
        optimizer=partial(torch.optim.AdamW, lr=lr),
        schedule=cosine(steps, warmup=min(100, steps // 10)),
        clip_norm=1.0,
        ema=ema,
        **options,
    )
    network.load_state_dict(result.ema, strict=False)
    return MatchedFlow(network.requires_grad_(False), start, span)
