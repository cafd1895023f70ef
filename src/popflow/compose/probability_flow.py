"""Deterministic steps: the probability-flow ODE in sigma, for any sampler.

A sampler's step to ``sigma = 0`` gives its clean prediction ``x_0(y)``. Then ``d y / d sigma = (y - x_0(y)) / sigma``, and an Euler step of it,

    y'  =  y + (1 - sigma'/sigma) (x_0(y) - y),

is the deterministic step of DDIM and of the Euler schedulers of diffusers (Song et al. 2021; Karras et al. 2022, equation 1). It is exact for
data that are one point, at any step length, where Euler-Maruyama steps of S^2 leave noise of relative size ``r^2 + 1/r^2 - 1``, ``r =
sigma'/sigma``, too much: with tens of steps that shows at small sigma, so image pipelines end without noise.
"""

from __future__ import annotations

import math
from dataclasses import replace

from popflow.compose.sampler import Sampler
from popflow.core import Population, Streams


def flow_below(sampler: Sampler, sigma: float = math.inf) -> Sampler:
    """Return a sampler that adds noise above a level and follows the probability flow of its clean prediction below it.

    Below, weights, tracked densities and shares stay as they are: nothing is weighed or resampled there.

    Args:
        sampler: From `feynman_kac`, `either`, `both`, `average`.
        sigma: The level; infinite for no noise at all. AND and OR then keep the densities of the first level, and equal shares.

    Raises:
        ValueError: for a level that is negative or not a number, or a space that is not flat.

    Example:
        >>> import torch
        >>> from popflow.compose import Expert, feynman_kac, karras, sample
        >>> point = Expert(lambda y, sigma, cond: (y - 2.0) / sigma, (1,))
        >>> out = sample(flow_below(feynman_kac(point, correct=False)), karras(3, 0.01, 10.0), particles=2, rng=Streams(0))
        >>> bool(((out.x - 2).abs() < 0.1).all())
        True
    """
    if not sigma >= 0:
        raise ValueError(f"sigma={sigma}, wanted a noise level >= 0: 0 adds noise down to the last level, math.inf adds none.")
    space = sampler.experts[0].home
    if not space.flat:
        raise ValueError(
            f"sampler: its samples live in {space}, wanted a flat space: elsewhere no straight line leads to the clean prediction."
        )

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        if math.sqrt(t0) > sigma:
            return sampler.step(pop, t0, t1, rng)
        clean = sampler.step(pop, t0, 0.0, rng)
        return clean if t1 == 0 else pop.replace(x=pop.x + (1 - math.sqrt(t1 / t0)) * (clean.x - pop.x))

    return replace(sampler, step=step, separates=lambda level: level > sigma and sampler.separates(level))
