"""Probabilities of rare events under the reference dynamics, by weighted simulation of a fitted path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popflow.core import Population, Streams, simulate as follow
from popflow.core.checks import at_least_one, shaped
from popflow.core.statistics import Z_95, tail_shape
from popflow.paths.ensemble import guided, spanning
from popflow.paths.process import Process, require_finite

HEAVY = 0.5
"""Shape of the tail of the weights above which they have no variance: the interval is then too short."""


@dataclass(frozen=True)
class Probability:
    """Probability of an event under the reference, with its 95 % interval: [0, 1] when no simulated path has the event.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
        error: Standard error; infinite when no simulated path has the event.
        hits: Share of simulated paths with the event: what is not simulated is not weighed, and a reverse divergence may miss tails.
        ess: Effective number of paths with the event.
        tail: Shape of the tail of their weights (`popflow.core.statistics.tail_shape`): above 0.5 the interval is too short.
        forces: Force evaluations.
    """

    value: float
    low: float
    high: float
    error: float
    hits: float
    ess: float
    tail: float
    forces: int

    def __str__(self) -> str:
        text = f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
        if self.hits == 0:
            return f"{text}: no simulated path hits the set. Fix: move the end of the path into it."
        if self.tail > HEAVY:
            return f"{text}: too small and too sure, for few paths carry the weight (tail {self.tail:.2f}, wanted at most {HEAVY}). Fix: more components."
        return text


def probability(
    process: Process,
    path: Any,
    inside: Callable[[Tensor], Tensor],
    n: int,
    times: Tensor,
    rng: Streams,
    *,
    start: Tensor | None = None,
    first_hit: bool = False,
) -> Probability:
    """Estimate the probability that the reference is in a set at the last time, or hits it before, by weighted simulation of a path.

    Args:
        process: Reference dynamics.
        path: Fitted path that ends in the set.
        inside: Indicator of the set, ``[n, .] -> [n]`` booleans: a ball, or anything.
        n: Paths.
        times: Grid of simulation; a set counts as hit when it is met at one of them, as in any simulation with this step.
        rng: Random streams.
        start: Starts of the reference, ``[D]`` or draws ``[n, D]``; draws of the start law of the path unless given.
        first_hit: Count the first hit at any time after 0, rather than the state at the last time.

    Raises:
        ValueError: when ``inside`` does not return one boolean per path, for times that do not span the path, or a path that does not match the process.
        NonFiniteError: when states or weights are not finite: the time step is too long.
    """
    at_least_one(n=n)
    spanning(path, times)
    move = guided(process, path)
    with torch.no_grad():
        x = path.sample(0.0, n, rng) if start is None else start.expand(n, -1).clone()
        pop = Population.of(x, hit=x.new_zeros(n), at_hit=x.new_zeros(n))

        def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
            pop = move(pop, t0, t1, rng)
            new = shaped("inside", inside(pop.x), pop.log_w).bool() & (pop.aux["hit"] == 0)
            hit, at_hit = torch.where(new, 1.0, pop.aux["hit"]), torch.where(new, pop.log_w, pop.aux["at_hit"])
            return pop.replace(aux={"hit": hit.to(pop.x), "at_hit": at_hit})

        pop = follow(step if first_hit else move, pop, times, rng=rng)
        hit = pop.aux["hit"] > 0 if first_hit else shaped("inside", inside(pop.x), pop.log_w).bool()
        w = torch.where(hit, (pop.aux["at_hit"] if first_hit else pop.log_w).double().exp(), 0.0)
    require_finite("the last states of the paths", pop.x)
    require_finite("the log-weights of the paths", pop.log_w)
    value, error = float(w.mean()), float(w.std()) / math.sqrt(n)
    if not bool(hit.any()):
        return Probability(0.0, 0.0, 1.0, math.inf, 0.0, 0.0, math.nan, n * (len(times) - 1))
    low, high = max(0.0, value - Z_95 * error), value + Z_95 * error
    ess = float(w.sum() ** 2 / w.square().sum()) if value > 0 else 0.0
    tail = tail_shape(w[hit].log())
    return Probability(value, low, high, error, float(hit.double().mean()), ess, tail, n * (len(times) - 1))
