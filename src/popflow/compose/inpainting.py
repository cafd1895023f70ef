"""Inpainting: part of a sample is known and kept, the rest is sampled around it.

After each step the known part is replaced by the known data noised to the new level (replacement, Song et al. 2021). This is an approximation: the
free part is drawn given a noised version of the known part, not given the known part itself, so borders may not match with few steps. Weights and
tracked densities are those of the models' own moves; the replacement is not weighted.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from popflow.compose.sampler import Sampler
from popflow.compose.spaces.space import Euclidean
from popflow.core import Population, Streams


def keep(sampler: Sampler, known: Tensor, free: Tensor) -> Sampler:
    """Return a sampler that keeps the known part.

    Args:
        sampler: From `feynman_kac`, `either`, `both`, `average`, `flow_below`.
        known: Clean data ``[*event]``, or anything that broadcasts to ``[runs, particles, *event]``.
        free: 1 where samples are free, 0 where ``known`` is kept; broadcasts likewise.

    Raises:
        ValueError: for samples that do not live in Euclidean space: parts of them cannot be replaced one by one.

    Example:
        >>> import torch
        >>> from popflow.compose import feynman_kac, gaussian_mixture, karras, sample
        >>> model = gaussian_mixture(torch.tensor([[-3.0, -3.0], [3.0, 3.0]]), 0.2)
        >>> half = keep(feynman_kac(model, correct=False), torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0]))
        >>> out = sample(half, torch.cat([karras(200, 0.01, 20.0), torch.zeros(1)]), particles=256, rng=Streams(0))
        >>> bool((out.x[..., 0] == 3).all()), bool(((out.x[..., 1] - 3).abs() < 1).float().mean() > 0.95)
        (True, True)
    """
    space = sampler.experts[0].home
    if not isinstance(space, Euclidean):
        raise ValueError(f"sampler: its samples live in {space}, wanted Euclidean space: elsewhere parts cannot be replaced one by one.")

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        after = sampler.step(pop, t0, t1, rng)
        noised = known.to(after.x)
        if t1 > 0:
            noised = noised + math.sqrt(t1 / sampler.precision(math.sqrt(t1))) * rng.normal("known", after.x)
        mask = free.to(after.x)
        return after.replace(x=mask * after.x + (1 - mask) * noised)

    return replace(sampler, step=step)
