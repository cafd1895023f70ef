"""What changes the weights of a Feynman-Kac sampler beside its moves: the start, exact changes of the target, rewards without gradient; and bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from popflow.compose.densities import all_known, densities, initial_densities, log_initial_normalizer
from popflow.compose.exponents import at
from popflow.compose.product_kernel import weighted_sum
from popflow.compose.rewards import Reward, over_rows, sum_of_rewards
from popflow.compose.target import Target
from popflow.core import Population, Step, Streams, chain, temper
from popflow.core.checks import refuse

Window = tuple[float, float]
"""``(low, high)`` noise levels, both included."""


def changing(target: Target) -> Step | None:
    """Step that weighs by the change of log p at the level before a step, ``sum (delta beta_i) log q_i + (delta gamma) r``; None where nothing depends on sigma."""
    guiding, exact = [r for r in target.rewards if r.gradient], all_known(target.experts)

    def change(pop: Population, t0: float, t1: float) -> Tensor:
        s0, s1 = math.sqrt(t0), math.sqrt(t1)
        delta = torch.zeros_like(pop.log_w)
        if target.varies:
            step = [b - a for a, b in zip(target.exponents(s0), target.exponents(s1), strict=True)]
            log_q = densities(target.experts, pop, s0) if exact else pop.aux["log_q"]
            delta = delta + (log_q * log_q.new_tensor(step)).sum(-1)
        for reward in guiding:
            delta = delta + (at(reward.gamma, s1) - at(reward.gamma, s0)) * over_rows(reward, pop)
        return delta

    return temper(change) if target.varies or guiding else None


def weighted_start(target: Target, pop: Population, sigma: float, window: Window) -> Population:
    """Weigh samples of the first level: ``log_z`` of the Gaussian start, or the density over that of the start where space is curved, and rewards."""
    space, beta, inside = target.home, target.exponents(sigma), window[0] <= sigma <= window[1]
    if space.flat:
        pop = pop.replace(log_z=pop.log_z + log_initial_normalizer(sum(beta), sigma, space.dim))
    elif inside:
        log_p = weighted_sum(beta, initial_densities(target.experts, pop, sigma).movedim(-1, 0))
        pop = pop.reweight(log_p - space.log_start(pop.x, sigma, sum(beta)))
    return pop.reweight(sum_of_rewards(target.rewards, pop, sigma)) if inside else pop


def rewarded(step: Step, rewards: Sequence[Reward], window: Window) -> Step:
    """Weight after a step by the change of rewards without gradient since the last level, ``aux["tilt"]`` (Feynman-Kac steering).

    Raises:
        ValueError: by the step, if a reward was -inf before the last level: what it took away could not be given back.
    """

    def revocable(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        def error(lost: int) -> ValueError:
            return ValueError(
                f"rewards {[r.name for r in rewards]} are -inf for {lost} particles at sigma={math.sqrt(t0):g}, before the last level: a "
                "path ruled out here could still end well. Fix: a finite penalty, or a gamma(sigma) that is 0 until the last level."
            )

        refuse((pop.aux["tilt"] == -math.inf).sum(), error)
        return pop

    def weigh(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        now = sum_of_rewards(rewards, pop, math.sqrt(t1))
        return pop.reweight(now - pop.aux["tilt"]).replace(aux={**pop.aux, "tilt": now})

    return chain(revocable, step, within(window, weigh)) if rewards else step


def clipped(step: Step, limit: float | None) -> Step:
    """Bound a step's weight increments to within ``limit`` of their mean in each run, and count in ``aux["clipped"]``; None for no bound."""
    if limit is None:
        return step

    def bounded(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        after = step(pop, t0, t1, rng)
        delta = after.log_w - pop.log_w
        centre = delta.mean(-1, keepdim=True)
        kept = centre + (delta - centre).clamp(-limit, limit)
        count = after.aux["clipped"] + ((delta - centre).abs() > limit)
        return after.replace(log_w=pop.log_w + kept, aux={**after.aux, "clipped": count})

    return bounded


def within(window: Window, step: Step | None) -> Step:
    """Take a step only while the noise level lies in the window."""

    def guarded(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        return step(pop, t0, t1, rng) if step is not None and window[0] <= math.sqrt(t0) <= window[1] else pop

    return guarded
