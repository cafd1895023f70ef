"""What looks on while a composed pipeline samples: the callback of the user, the progress bar of the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from popflow.compose.diffusers.plan import Plan
from popflow.compose.sampler import Sampler
from popflow.core import Population, Streams

Callback = Callable[[Any, int, float, dict[str, Any]], Any]
"""``callback(pipeline, step, timestep, {"latents", "weights", "ess", "log_densities", "kappa"})``; a returned ``"latents"`` replaces them."""


def counted(sampler: Sampler, bar: Any) -> Sampler:
    """Return a sampler that moves a progress bar on after each step. No value is read, so nothing waits for an accelerator."""

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        after = sampler.step(pop, t0, t1, rng)
        bar.update()
        return after

    return replace(sampler, step=step)


def telling(plan: Plan, callback: Callback, pipeline: Any) -> Sampler:
    """Return a sampler that calls back after each step."""
    number = {float(v): k for k, v in enumerate(plan.levels.square()[1:])}
    source = plan.experts[0].source

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        after = plan.sampler.step(pop, t0, t1, rng)
        seen = {"latents": after.x, "weights": after.weights(), "ess": after.ess()}
        seen |= {"log_densities": plan.log_densities(after), "kappa": after.aux.get("kappa")}
        answer = callback(pipeline, number[t1], float(source.reading.schedule.time(t0**0.5)), seen)
        if answer is not None and not isinstance(answer, dict):
            raise TypeError(
                f"callback_on_step_end returned a {type(answer).__name__}, wanted a dictionary such as {{'latents': x}}, or None."
            )
        x = None if answer is None else answer.get("latents")
        if x is None:
            return after
        if not isinstance(x, Tensor) or x.shape != after.x.shape:
            shape = f"latents of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__} as latents"
            raise ValueError(
                f"callback_on_step_end returned {shape}, wanted {tuple(after.x.shape)}: [runs, particles, channels, height, width]."
            )
        return after.replace(x=x.to(after.x))

    return replace(plan.sampler, step=step)
