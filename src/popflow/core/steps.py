"""Steps: functions ``step(pop, t0, t1, rng) -> pop`` that move, weigh or resample a population, and `chain` to join them.

The order that keeps the last weights and shows recorders the true effective sample size is
``chain(resample_if(...), move, temper(...), kernel)``: resample first, kernels last and at the new time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from popflow.core.checks import is_put_off
from popflow.core.errors import StaleTrackingError
from popflow.core.population import Population
from popflow.core.process import Ito, Process, Rates, advance
from popflow.core.resampling import systematic
from popflow.core.streams import Streams


@runtime_checkable
class Step(Protocol):
    """The one verb: take a population from ``t0`` to ``t1``. Stateless; randomness comes from the named streams alone."""

    def __call__(self, pop: Population, t0: float, t1: float, rng: Streams, /) -> Population:
        """Return the population at ``t1``."""
        ...


Scheme = Callable[[Tensor, Generator], Tensor]
"""A resampling scheme of `popflow.core.resampling`."""
Score = Callable[[float, Population], Tensor]
"""The gradient of a log-density at a time: ``[*batch, n, *event]``."""
LogDensity = Callable[[float, Population], Tensor]
"""An unnormalised log-density at a time: ``[*batch, n]``."""
Refresh = Callable[[float, Population, Population], Population]
"""``refresh(t, before, after)``: put right the tracked companions of a population whose ``x`` a kernel has moved."""


def euler(process: Process, stream: str = "noise") -> Step:
    """Euler-Maruyama: rates at the left end, one displacement.

    >>> pop = euler(lambda t, pop: Rates(drift=-pop.x))(Population.of(torch.ones(2, 1)), 0.0, 0.1, Streams(0))
    >>> round(pop.x[0].item(), 6)
    0.9
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        rates = process(t0, pop)
        noise = rng.normal(stream, pop.x) if rates.diffusion is not None else None
        return advance(pop, rates, t1 - t0, noise)

    return step


def heun(process: Process, stream: str = "noise") -> Step:
    """Heun's predictor-corrector: drift and time-coefficients averaged over both ends, one noise, ``Ito.dx`` at the left end.

    Second order in ``h`` without noise; with noise that does not depend on ``x`` first order in the weak sense. Two evaluations a step.
    Terms ``<dx, dX>`` stay at the left end when there is noise (they are Ito integrals) and are averaged when there is none.

    >>> pop = heun(lambda t, pop: Rates(drift=-pop.x))(Population.of(torch.ones(2, 1)), 0.0, 0.1, Streams(0))
    >>> round(pop.x[0].item(), 6)
    0.905
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        left, h = process(t0, pop), t1 - t0
        noise = rng.normal(stream, pop.x) if left.diffusion is not None else None
        right = process(t1, advance(pop, left, h, noise))

        def average(a: Ito, b: Ito) -> Ito:
            dx = a.dx if left.diffusion is not None or a.dx is None or b.dx is None else (a.dx + b.dx) / 2
            return Ito((a.dt + b.dt) / 2, dx)

        growth = left.growth if left.growth is None or right.growth is None else average(left.growth, right.growth)
        track = {name: average(ito, right.track[name]) for name, ito in left.track.items()}
        return advance(pop, Rates((left.drift + right.drift) / 2, left.diffusion, growth, track), h, noise)

    return step


def chain(*steps: Step) -> Step:
    """Do the steps one after another over the same interval."""

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        for one in steps:
            pop = one(pop, t0, t1, rng)
        return pop

    return step


def resample_if(ess_below: float = 0.5, scheme: Scheme = systematic, stream: str = "resample") -> Step:
    """Resample those populations whose effective sample size is below ``ess_below * n``; 1.0 resamples whenever weights differ.

    The random numbers are drawn whether or not a population is due, so that the stream stays in step. Weights of a resampled population
    return to zero and its ``log_normalizer()`` is kept in ``log_z``.

    Raises:
        ValueError: unless ``0 < ess_below <= 1``.
        ZeroWeightsError: when a population has no weight left.

    Example:
        >>> pop = Population.of(torch.arange(4.0).unsqueeze(1)).reweight(torch.tensor([9.0, 0.0, 0.0, 0.0]))
        >>> resample_if(0.5)(pop, 0.0, 0.0, Streams(0)).x.flatten().tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    if not 0 < ess_below <= 1:
        raise ValueError(f"ess_below={ess_below!r}, wanted a share of the particles in (0, 1]: 0.5 is usual, 1.0 resamples every step.")

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        weights = pop.weights()
        short = not is_put_off()  # cuts that give the same bits, for the price of looking at a value
        if not short:  # indices out of range would stop an accelerator before lost weights are named
            weights = weights.nan_to_num(1 / len(pop))
        idx = scheme(weights, rng(stream))
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
    """Add an exact change of the target's log-density, ``log p_{t1}(x) - log p_{t0}(x)``, to the log weights."""

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        return pop.reweight(log_increment(pop, t0, t1))

    return step


def langevin(
    score: Score,
    step_size: float | Callable[[float], float],
    steps: int = 1,
    *,
    tracked: Sequence[str] = (),
    refresh: Refresh | None = None,
    stream: str = "kernel",
) -> Step:
    """Unadjusted Langevin kernel at the new time ``t1``: ``x += eta s(x) + sqrt(2 eta) z``, ``steps`` times. Weights do not change.

    Args:
        score: Gradient of the log of the target at ``t1``.
        step_size: ``eta``, a number or a function of the time.
        steps: How many moves.
        tracked: Names in ``aux`` that depend on ``x`` and that the kernel would leave behind.
        refresh: Puts them right after the move.
        stream: Name of the random stream.

    Raises:
        StaleTrackingError: when the population carries a tracked name and there is no ``refresh``.
        ValueError: when the step size is not finite and above 0, or the score is not shaped like ``x``.
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        _refuse_stale(pop, tracked, refresh)
        eta = _size(step_size, t1)
        moved = pop
        for _ in range(steps):
            pull = eta * _shaped("score", score(t1, moved), moved.x).to(moved.x.dtype)
            moved = moved.replace(x=moved.x + pull + (2 * eta) ** 0.5 * rng.normal(stream, moved.x))
        return moved if refresh is None else refresh(t1, pop, moved)

    return step


def metropolis(
    log_density: LogDensity,
    step_size: float | Callable[[float], float],
    steps: int = 1,
    *,
    score: Score | None = None,
    tracked: Sequence[str] = (),
    refresh: Refresh | None = None,
    stream: str = "kernel",
) -> Step:
    """Metropolis-Hastings kernel at the new time: random walk, or MALA where a ``score`` is given. Exactly invariant.

    Proposal ``x' = x + eta s(x) + sqrt(2 eta) z``; accepted with probability
    ``min(1, p(x') q(x|x') / (p(x) q(x'|x)))``. A population with an ``aux["accepted"]`` entry has its acceptances added there.

    Args:
        log_density: Unnormalised log target at ``t1``, ``[*batch, n]``.
        step_size: ``eta``, a number or a function of the time.
        steps: How many proposals.
        score: Gradient of ``log_density``; None for a random walk.
        tracked: As in `langevin`.
        refresh: As in `langevin`.
        stream: Name of the random stream.

    Raises:
        StaleTrackingError: as in `langevin`.
        ValueError: when the step size is not finite and above 0, or a density or score has the wrong shape.
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        _refuse_stale(pop, tracked, refresh)
        eta = _size(step_size, t1)
        start, shape = pop, (*pop.log_w.shape, *[1] * len(pop.event))

        def ends(at: Population) -> tuple[Tensor, Tensor | float]:
            pull = 0.0 if score is None else eta * _shaped("score", score(t1, at), at.x).to(at.x.dtype)
            return _shaped("log_density", log_density(t1, at), at.log_w), pull

        log_p, pull = ends(pop)
        accepted = pop.aux.get("accepted")
        for _ in range(steps):
            z = rng.normal(stream, pop.x)
            proposal = pop.replace(x=pop.x + pull + (2 * eta) ** 0.5 * z)
            new_log_p, new_pull = ends(proposal)
            back = pop.x - proposal.x - new_pull
            log_ratio = new_log_p - log_p + _squared_norm(z, log_p) / 2 - _squared_norm(back, log_p) / (4 * eta)
            accept = torch.rand(log_p.shape, generator=rng(stream), dtype=log_p.dtype, device=log_p.device).log() < log_ratio
            mask = accept.reshape(shape)
            pop = pop.replace(x=torch.where(mask, proposal.x, pop.x))
            log_p = torch.where(accept, new_log_p, log_p)
            if isinstance(pull, Tensor):
                pull = torch.where(mask, new_pull, pull)
            if accepted is not None:
                accepted = accepted + accept
        if accepted is not None:
            pop = pop.replace(aux={**pop.aux, "accepted": accepted})
        return pop if refresh is None else refresh(t1, start, pop)

    return step


def _squared_norm(value: Tensor, per_particle: Tensor) -> Tensor:
    """``|value|^2`` over the event, which may be empty: ``[*batch, n, *event]`` -> ``[*batch, n]``."""
    return value.square().reshape(*per_particle.shape, -1).sum(-1)


def _shaped(name: str, value: Tensor, like: Tensor) -> Tensor:
    """Return ``value``; a score or density per population instead of per particle would broadcast in silence."""
    if value.shape != like.shape:
        raise ValueError(f"{name} returned shape {tuple(value.shape)}, wanted {tuple(like.shape)}.")
    return value


def _size(step_size: float | Callable[[float], float], t: float) -> float:
    eta = step_size(t) if callable(step_size) else step_size
    if not 0 < eta < math.inf:
        raise ValueError(f"step_size is {eta!r} at t={t!r}, wanted a finite number above 0.")
    return eta


def _refuse_stale(pop: Population, tracked: Sequence[str], refresh: Refresh | None) -> None:
    stale = [name for name in tracked if name in pop.aux]
    if stale and refresh is None:
        raise StaleTrackingError(
            f"kernel: it would move x and leave the tracked {stale} behind. Fix: pass refresh=... that recomputes them "
            "(exact for experts with log_prob), stop tracking them, or take no kernel steps."
        )
