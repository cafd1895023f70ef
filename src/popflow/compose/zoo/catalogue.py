"""The zoo: small diffusion models that come with the library, so that compositions can be tried at once.

Networks of digits (`popflow.compose.zoo.networks`) and Boltzmann distributions of particle systems (`popflow.compose.particles.models`). An entry says
how its expert is loaded, and how experts of its kind are sampled and judged: see `Recipe`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from popflow.compose.particles import models
from popflow.compose.particles.report import Findings, against_truth
from popflow.compose.target import Expert
from popflow.compose.zoo import networks
from popflow.core import Population
from popflow.core.errors import unknown


@dataclass(frozen=True)
class Sizes:
    """Noise levels and particles of a run.

    Attributes:
        steps: Noise levels minus one.
        sigma_min: Last noise level.
        sigma_max: First noise level.
        grid: Spacing of the levels: karras, linear or geometric.
        particles: Particles of one run.
        runs: Independent runs.
    """

    steps: int
    sigma_min: float
    sigma_max: float
    grid: str
    particles: int
    runs: int


@dataclass(frozen=True, eq=False)
class Recipe:
    """How experts of one kind are sampled and judged by default. B is the sum of exponents of a product.

    Attributes:
        sizes: Noise levels and particles.
        zeta: ``zeta(B, experts)``: noise scale of a product.
        langevin_steps: ``langevin_steps(B)``: Langevin steps at each level of a weighted product.
        langevin_step: ``langevin_step(sigma, B)``: their step size.
        temperature: The temperature that the experts were trained at; 1 for data.
        judge: ``judge(temperature, population)``: what a report shows beside the samples, or None.
    """

    sizes: Sizes
    zeta: Callable[[float, int], float]
    langevin_steps: Callable[[float], int]
    langevin_step: Callable[[float, float], float]
    temperature: float = 1.0
    judge: Callable[[float, Population], Findings] | None = None


@dataclass(frozen=True, eq=False)
class Entry:
    """An expert of the zoo.

    Attributes:
        load: ``load(device=..., chunk=...)`` makes the expert.
        recipe: How it is sampled and judged.
        labels: Class labels that it takes, from 0 to ``labels - 1``; 0 for none.
    """

    load: Callable[..., Expert]
    recipe: Recipe
    labels: int = 0


def data_step(sigma: float, width: float = 0.3) -> float:
    """Langevin step size for data whose density has standard deviations of at least ``width``: ``min(sigma^2 + width^2, 1) / 10``."""
    return min(sigma**2 + width**2, 1.0) / 10


OF_DATA = Recipe(
    Sizes(300, 0.02, 15.0, "karras", 64, 8),
    zeta=lambda total, experts: math.sqrt(2) if total > experts else 1.0,  # more noise for annealing
    langevin_steps=lambda total: 0,
    langevin_step=lambda sigma, total: data_step(sigma),
)
"""Recipe for experts of data, in the zoo or not."""


def _of_particles(name: str) -> Recipe:
    """Tempered noise; and a Langevin step where a system is cooled, whose particles otherwise descend from a few."""
    model = models.find(name)
    return Recipe(
        Sizes(500, *model.sampled, "geometric", 1000, 1),
        zeta=lambda total, experts: total**-0.5 if total > 0 else 1.0,  # other totals are refused when sampled
        langevin_steps=lambda total: int(total > 1),
        langevin_step=model.langevin_step,
        temperature=model.temperature,
        judge=partial(against_truth, name),
    )


ENTRIES = {
    name: Entry(partial(networks.load, name), OF_DATA, networks.NO_CLASS + 1 if name in networks.CONDITIONAL else 0)
    for name in networks.TRAINING
} | {name: Entry(partial(models.load, name), _of_particles(name)) for name in models.MODELS}
"""The experts by name."""


def find(name: str) -> Entry:
    """Return an entry.

    Raises:
        ValueError: for an unknown name, naming the closest.
    """
    if name not in ENTRIES:
        raise ValueError(unknown("expert", name, ENTRIES))
    return ENTRIES[name]


def load(name: str, *, device: torch.device | str = "cpu", chunk: int | None = None) -> Expert:
    """Load an expert of the zoo.

    ``"digits-class"`` takes labels: ``expert.given(torch.tensor(3))``; as loaded it models any digit (label `NO_CLASS`). ``"lj13"`` and ``"dw4"``
    are Boltzmann distributions at T = 2; ``expert ** (2 / T)`` is the one at T.

    Args:
        name: One of `ENTRIES`.
        device: Where its parameters live.
        chunk: Maximum rows per call.

    Raises:
        ValueError: for an unknown name, naming the closest.

    Example:
        >>> from popflow.compose import feynman_kac, karras, sample, zoo
        >>> from popflow.core import Streams
        >>> even, prime = zoo.load("digits-even"), zoo.load("digits-prime")
        >>> sample(feynman_kac(even * prime), karras(5, 0.1, 10.0), particles=4, rng=Streams(0)).x.shape
        torch.Size([1, 4, 1, 8, 8])
    """
    return find(name).load(device=device, chunk=chunk)
