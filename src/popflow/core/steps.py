"""Steps: functions ``step(pop, t0, t1, rng) -> pop`` that move, reweight or resample a population, and `chain` to join them.

Use the order ``chain(resample_if(...), move, temper(...), kernel)``: resampling first, so that the final population keeps its weights and
recorders see the true effective sample size; kernels last, at the new time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from popflow.core.checks import is_put_off
from popflow.core.population import Population
from popflow.core.process import Ito, Process, Rates, advance
from popflow.core.resampling import systematic
from popflow.core.streams import Streams


@runtime_checkable
class Step(Protocol):
    """Take a population from ``t0`` to ``t1``. Steps hold no state and draw random numbers from the named streams only."""

    def __call__(self, pop: Population, t0: float, t1: float, rng: Streams, /) -> Population:
        """Return the population at ``t1``."""
        ...


Scheme = Callable[[Tensor, Generator], Tensor]
"""A resampling scheme of `popflow.core.resampling`."""


def euler(process: Process) -> Step:
    """Euler-Maruyama: rates at the left end, one displacement.

    >>> pop = euler(lambda t, pop: Rates(drift=-pop.x))(Population.of(torch.ones(2, 1)), 0.0, 0.1, Streams(0))
    >>> round(pop.x[0].item(), 6)
    0.9
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        rates = process(t0, pop)
        noise = rng.normal("noise", pop.x) if rates.diffusion is not None else None
        return advance(pop, rates, t1 - t0, noise)

    return step


def heun(process: Process) -> Step:
    """Heun's predictor-corrector: drift and time coefficients averaged over both ends of the step, one noise.

    Second order in ``h`` without noise, weak order one with additive noise. Two evaluations per step. With noise, the terms ``<dx, dX>``
    are Ito integrals and stay at the left end; without noise they are averaged too.

    >>> pop = heun(lambda t, pop: Rates(drift=-pop.x))(Population.of(torch.ones(2, 1)), 0.0, 0.1, Streams(0))
    >>> round(pop.x[0].item(), 6)
    0.905
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        left, h = process(t0, pop), t1 - t0
        noise = rng.normal("noise", pop.x) if left.diffusion is not None else None
        right = process(t1, advance(pop, left, h, noise))

        def average(a: Ito, b: Ito) -> Ito:
            dx = a.dx if left.diffusion is not None or a.dx is None or b.dx is None else (a.dx + b.dx) / 2
            return Ito((a.dt + b.dt) / 2, dx)

        growth = left.growth if left.growth is None or right.growth is None else average(left.growth, right.growth)
        track = {name: average(ito, right.track[name]) for name, ito in left.track.items()}
        return advance(pop, Rates((left.drift + right.drift) / 2, left.diffusion, growth, track), h, noise)

    return step


def chain(*steps: Step) -> Step:
    """Apply the steps one after another over the same interval."""

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        for one in steps:
            pop = one(pop, t0, t1, rng)
        return pop

    return step


def resample_if(ess_below: float = 0.5, scheme: Scheme = systematic) -> Step:
    """Resample every population whose effective sample size is below ``ess_below * n``; 1.0 resamples whenever weights differ.

    Resampling sets the log weights to zero and moves ``log_normalizer()`` into ``log_z``. Random numbers are drawn whether or not a
    population is resampled, so the stream does not depend on the weights.

    Raises:
        ValueError: unless ``0 < ess_below <= 1``.
        ZeroWeightsError: when a population has no weight left.

    Example:
        >>> pop = Population.of(torch.arange(4.0).unsqueeze(1)).reweight(torch.tensor([9.0, 0.0, 0.0, 0.0]))
        >>> resample_if(0.5)(pop, 0.0, 0.0, Streams(0)).x.flatten().tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    if not 0 < ess_below <= 1:
        raise ValueError(
            f"ess_below={ess_below!r}, wanted a fraction of the particles in (0, 1]: 0.5 is usual, 1.0 resamples at every step."
        )

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        weights = pop.weights()
        short = not is_put_off()  # shortcuts give the same bits, but reading a value makes an accelerator wait
        if not short:  # an index out of range would abort an accelerator before the lost weights are reported
            weights = weights.nan_to_num(1 / len(pop))
        idx = rng.each("resample", scheme, weights)
        due = 1 / weights.square().sum(-1) < ess_below * len(pop) * (1 - 1e-6)
        if short and not bool(due.any()):
            return pop
        if short and bool(due.all()):
            chosen, log_w, log_z = pop.take(idx), torch.zeros_like(pop.log_w), pop.log_normalizer()
        else:
            chosen = pop.take(torch.where(due[..., None], idx, torch.arange(len(pop), device=idx.device)))
            log_w = torch.where(due[..., None], 0.0, pop.log_w)
            log_z = torch.where(due, pop.log_normalizer(), pop.log_z)
        return chosen.replace(log_w=log_w, log_z=log_z)

    return step


def temper(log_increment: Callable[[Population, float, float], Tensor]) -> Step:
    """Add the exact change of the target's log-density, ``log p_{t1}(x) - log p_{t0}(x)``, to the log weights."""

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        return pop.reweight(log_increment(pop, t0, t1))

    return step
