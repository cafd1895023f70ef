"""One suite over every public step, kernel and sampler: shapes, seeds, batches, float64, one particle."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from popflow import compose, core
from popflow.compose import Sampler, average, both, either, feynman_kac, gaussian_mixture, karras, sample
from popflow.core import Population, Rates, Step, Streams, euler, simulate


def normal(t: float, pop: Population) -> Tensor:
    return -0.5 * pop.x.square().sum(-1)


def decay(t: float, pop: Population) -> Rates:
    return Rates(drift=-pop.x, diffusion=1.0)


STEPS: dict[str, Callable[[], Step]] = {
    "chain": lambda: core.chain(core.resample_if(0.9), euler(decay)),
    "euler": lambda: euler(decay),
    "heun": lambda: core.heun(lambda t, pop: Rates(drift=-pop.x)),
    "langevin": lambda: core.langevin(lambda t, pop: -pop.x, 0.1, steps=2),
    "metropolis": lambda: core.metropolis(normal, 0.3, steps=2),
    "resample_if": lambda: core.resample_if(1.0),
    "temper": lambda: core.temper(lambda pop, t0, t1: (t1 - t0) * pop.x.sum(-1)),
}
"""Public name -> one step of its kind on points of two coordinates. A new step adds a line."""

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "feynman_kac": lambda a, b: feynman_kac(a * b),
    "either": lambda a, b: either([a, b]),
    "both": lambda a, b: both([a, b]),
    "average": lambda a, b: average([a, b]),
}
"""Public name -> a sampler of two experts. A new sampler adds a line."""


def returning(room, kind: str) -> set[str]:
    """Public functions of a room that are annotated to return ``kind``."""
    found = ((name, getattr(room, name)) for name in room.__all__)
    return {name for name, one in found if inspect.isfunction(one) and inspect.signature(one).return_annotation in (kind, kind.strip("'"))}


def test_every_public_step_and_sampler_takes_part() -> None:
    assert returning(core, "Step") == STEPS.keys()
    wrappers = {"composition", "flow_below", "keep", "probability_flow", "steer"}  # make a sampler of a sampler, or of a name
    assert returning(compose, "Sampler") - wrappers == SAMPLERS.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 2), (8, 2), (3, 8, 2)], ids=["one particle", "a population", "three populations"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_keeps_shape_and_type_and_follows_its_seed(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def go(seed: int) -> Population:
        rng = Streams(seed)
        pop = Population.of(Streams(0).normal("start", torch.empty(shape, dtype=dtype)), batch=len(shape) - 2)
        pop = pop.reweight(pop.x.sum(-1))
        return simulate(STEPS[name](), pop, [0.0, 0.5, 1.0], rng=rng)

    first, again = go(1), go(1)
    assert first.x.shape == shape
    assert first.x.dtype == first.log_w.dtype == dtype
    assert first.log_w.shape == shape[:-1]
    assert bool(first.x.isfinite().all())
    for one, other in ((first.x, again.x), (first.log_w, again.log_w), (first.log_z, again.log_z)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("particles", [1, 8])
@pytest.mark.filterwarnings("ignore:particles=1")
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_keeps_shape_and_type_and_follows_its_seed(name: str, particles: int, dtype: torch.dtype) -> None:
    a, b = (gaussian_mixture(torch.tensor([[x, 0.0]], dtype=dtype), 1.0) for x in (-1.0, 1.0))
    sampler = SAMPLERS[name](a, b)
    ends = [
        sample(sampler, karras(8, 0.1, 10.0), particles=particles, runs=2, rng=Streams(seed), dtype=dtype).population for seed in (3, 3, 4)
    ]
    assert ends[0].x.shape == (2, particles, 2)
    assert ends[0].x.dtype == dtype
    assert bool(ends[0].x.isfinite().all())
    assert torch.equal(ends[0].x, ends[1].x)
    assert torch.equal(ends[0].log_w, ends[1].log_w)
    assert not torch.equal(ends[0].x, ends[2].x)
