"""Markov kernels that target the density at the new time: Langevin (unadjusted) and Metropolis-Hastings (random walk or MALA).

Kernels come last in a `chain`: they move particles towards the target at ``t1`` and leave the weights alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from popflow.core.checks import shaped
from popflow.core.errors import StaleTrackingError
from popflow.core.population import Population
from popflow.core.steps import Step
from popflow.core.streams import Streams

Score = Callable[[float, Population], Tensor]
"""Gradient of a log-density at a time: ``[*batch, n, *event]``."""
LogDensity = Callable[[float, Population], Tensor]
"""Unnormalised log-density at a time: ``[*batch, n]``."""
Refresh = Callable[[float, Population, Population], Population]
"""``refresh(t, before, after)``: recompute the tracked companions of a population whose ``x`` a kernel has moved."""
StepSize = float | Callable[[float], float]
"""``eta``, a number or a function of the time."""


def langevin(
    score: Score,
    step_size: StepSize,
    steps: int = 1,
    *,
    tracked: Sequence[str] = (),
    refresh: Refresh | None = None,
    precision: Callable[[float, Population], float | Tensor] | None = None,
) -> Step:
    """Unadjusted Langevin kernel: ``x += eta s(x) + sqrt(2 eta - eta^2 P) z``, ``steps`` times.

    With ``P = 0`` its stationary law is wider than the target by a share ``eta P / 2`` of the variance; with the target's own mean precision P a Gaussian is left exactly as
    it is, and the bias of other targets is that of their deviation from it.

    Args:
        score: Gradient of the target's log-density at ``t1``.
        step_size: ``eta``.
        steps: Number of moves.
        tracked: Names in ``aux`` that depend on ``x`` and would become stale.
        refresh: Recomputes them after the moves.
        precision: ``P`` at ``t1``, for each coordinate or for all; None for 0. ``eta P`` counts as at most 1.

    Raises:
        StaleTrackingError: when the population carries a tracked name and there is no ``refresh``.
        ValueError: when the step size is not finite and positive, or the score is not shaped like ``x``.

    Example:
        >>> pop = Population.of(torch.full((1000, 1), 3.0))
        >>> moved = langevin(lambda t, pop: -pop.x, step_size=0.1, steps=50)(pop, 0.0, 1.0, Streams(0))
        >>> bool(moved.mean().abs() < 0.2)
        True
    """

    def move(pop: Population, t: float, eta: float, rng: Streams) -> Population:
        contraction = 0.0 if precision is None else eta * precision(t, pop)
        contraction = contraction.clamp(max=1.0) if isinstance(contraction, Tensor) else min(contraction, 1.0)
        width = (2 * eta - eta * contraction) ** 0.5
        for _ in range(steps):
            pull = eta * shaped("score", score(t, pop), pop.x).to(pop.x.dtype)
            pop = pop.replace(x=pop.x + pull + width * rng.normal("kernel", pop.x))
        return pop

    return _kernel(move, step_size, tracked, refresh)


def metropolis(
    log_density: LogDensity,
    step_size: StepSize,
    steps: int = 1,
    *,
    score: Score | None = None,
    tracked: Sequence[str] = (),
    refresh: Refresh | None = None,
) -> Step:
    """Metropolis-Hastings kernel, exactly invariant: a random walk, or MALA when a ``score`` is given.

    Proposes ``x' = x + eta s(x) + sqrt(2 eta) z`` and accepts with probability ``min(1, p(x') q(x|x') / (p(x) q(x'|x)))``.
    A population with an ``aux["accepted"]`` entry counts its acceptances there.

    Args:
        log_density: Unnormalised log-density of the target at ``t1``.
        step_size: ``eta``.
        steps: Number of proposals.
        score: Gradient of ``log_density``; None for a random walk.
        tracked: As in `langevin`.
        refresh: As in `langevin`.

    Raises:
        StaleTrackingError: as in `langevin`.
        ValueError: when the step size is not finite and positive, or a density or score has the wrong shape.
    """

    def move(pop: Population, t: float, eta: float, rng: Streams) -> Population:
        def evaluate(at: Population) -> tuple[Tensor, Tensor | float]:
            pull = 0.0 if score is None else eta * shaped("score", score(t, at), at.x).to(at.x.dtype)
            return shaped("log_density", log_density(t, at), at.log_w), pull

        log_p, pull = evaluate(pop)
        accepted = pop.aux.get("accepted")
        for _ in range(steps):
            z = rng.normal("kernel", pop.x)
            proposal = pop.replace(x=pop.x + pull + (2 * eta) ** 0.5 * z)
            new_log_p, new_pull = evaluate(proposal)
            back = pop.x - proposal.x - new_pull
            log_ratio = new_log_p - log_p + _squared_norm(z, log_p) / 2 - _squared_norm(back, log_p) / (4 * eta)
            accept = rng.uniform("kernel", tuple(log_p.shape), log_p.dtype).log() < log_ratio
            mask = accept.reshape(*accept.shape, *[1] * len(pop.event))
            pop = pop.replace(x=torch.where(mask, proposal.x, pop.x))
            log_p = torch.where(accept, new_log_p, log_p)
            if isinstance(pull, Tensor):
                pull = torch.where(mask, new_pull, pull)
            if accepted is not None:
                accepted = accepted + accept
        return pop if accepted is None else pop.replace(aux={**pop.aux, "accepted": accepted})

    return _kernel(move, step_size, tracked, refresh)


def _kernel(
    move: Callable[[Population, float, float, Streams], Population], step_size: StepSize, tracked: Sequence[str], refresh: Refresh | None
) -> Step:
    """A step that applies ``move(pop, t1, eta, rng)`` repeatedly and refreshes tracked quantities."""

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        stale = [name for name in tracked if name in pop.aux]
        if stale and refresh is None:
            raise StaleTrackingError(
                f"the kernel would move x and leave the tracked {stale} behind. Fix: pass refresh=... that recomputes them "
                "(exact for experts with log_prob), stop tracking them, or take no kernel steps."
            )
        eta = step_size(t1) if callable(step_size) else step_size
        if not 0 < eta < math.inf:
            raise ValueError(f"step_size is {eta!r} at t={t1!r}, wanted a finite number above 0.")
        moved = move(pop, t1, eta, rng)
        return moved if refresh is None else refresh(t1, pop, moved)

    return step


def _squared_norm(value: Tensor, per_particle: Tensor) -> Tensor:
    """``|value|^2`` over the event, which may be empty: ``[*batch, n, *event]`` -> ``[*batch, n]``."""
    return value.square().reshape(*per_particle.shape, -1).sum(-1)
