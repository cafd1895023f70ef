"""Spaces: what each does to points, noise and densities, and samplers that do not notice in which coordinates a space is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from popflow.compose import (
    CentredParticles,
    Euclidean,
    Expert,
    Guidance,
    Sampler,
    average,
    both,
    either,
    feynman_kac,
    flow_below,
    gaussian_mixture,
    karras,
    keep,
    sample,
    scores,
    tilt,
)
from popflow.compose.spaces.space import Space
from popflow.compose.spaces.steps import noise_for
from popflow.core import PopflowWarning, Population, Streams

F64 = torch.float64
PARTICLES = CentredParticles(3, 2)
GRID = karras(20, 0.05, 10.0)


def basis(space: CentredParticles) -> Tensor:
    """Orthonormal coordinates of the configurations without centre of mass, ``[dim, count, axes]``."""
    ones = torch.full((space.count, 1), space.count**-0.5, dtype=F64)
    relative = torch.linalg.qr(torch.cat([ones, torch.eye(space.count, space.count - 1, dtype=F64)], 1)).Q[:, 1:]
    return torch.einsum("nk,ab->kanb", relative, torch.eye(space.axes, dtype=F64)).reshape(space.dim, *space.event)


BASIS = basis(PARTICLES)


def mixture(seed: int, name: str) -> Expert:
    rng = torch.Generator().manual_seed(seed)
    means = torch.randn(3, PARTICLES.dim, generator=rng, dtype=F64)
    return gaussian_mixture(means, 0.4 + torch.rand(3, generator=rng, dtype=F64), name=name)


def on_particles(expert: Expert, space: Space = PARTICLES, shift: float = 0.0) -> Expert:
    """The same density of configurations; ``shift`` adds to the score what a network that is not centred would."""

    def coordinates(x: Tensor) -> Tensor:
        return torch.einsum("rna,kna->rk", x, BASIS.to(x))

    def model(x: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
        return torch.einsum("rk,kna->rna", expert.model(coordinates(x), sigma, None), BASIS.to(x)) + shift

    return Expert(
        model, space.event, None, expert.name, space, expert.log_prob and (lambda x, sigma: expert.log_prob(coordinates(x), sigma))
    )


FLAT = [mixture(seed, f"q{seed}") for seed in (1, 2)]
EXPERTS = [replace(on_particles(e), loss=e.loss) for e in FLAT]


def walk(sampler: Sampler, y: Tensor, grid: Tensor = GRID) -> Population:
    pop = sampler.start(y, float(grid[0]))
    for t0, t1 in zip(grid.square().tolist(), grid.square().tolist()[1:], strict=False):
        pop = sampler.step(pop, t0, t1, Streams(0))
    return pop


def test_centred_noise_has_unit_variance_in_the_subspace_and_none_outside():
    pop = Population.of(torch.zeros(1, 200_000, *PARTICLES.event, dtype=F64), batch=1)
    z = noise_for(PARTICLES, pop, Streams(0))
    assert z.mean(-2).abs().max() < 1e-12
    inside = torch.einsum("bpna,kna->pk", z, BASIS)
    assert torch.allclose(torch.cov(inside.T), torch.eye(PARTICLES.dim, dtype=F64), atol=0.01)


def test_a_start_has_the_density_that_it_says():
    """``E[1/density]`` over a region is its volume: here through the entropy, ``E log p = -d/2 (log 2 pi sigma^2/B + 1)``, d = 4 of 6."""
    for space in (PARTICLES, Euclidean((3, 2))):
        x = space.start(torch.empty(1, 100_000, 3, 2, dtype=F64), 3.0, 2.0, Streams(0))
        entropy = -float(space.log_start(x, 3.0, 2.0).mean())
        assert entropy == pytest.approx(space.dim / 2 * (math.log(2 * math.pi * 9 / 2) + 1), abs=0.02)
        assert torch.equal(space.log_start(x, 3.0, 1.0), space.log_reference(x, 3.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: feynman_kac(a**2 * b, zeta=0.0, correct=True, track=False, kernel_steps=0),
        lambda a, b: feynman_kac(a ** (lambda sigma: 1 + 1 / (1 + sigma)) * b, zeta=0.0),
        lambda a, b: either([a, b], deterministic=True, probes=None),
        lambda a, b: both([a, b], deterministic=True, probes=None, guidance=Guidance(a, 2.0)),
    ],
    ids=["product", "ramp", "either", "both"],
)
@pytest.mark.filterwarnings("ignore:zeta=0 with resampling")
def test_particles_without_centre_are_the_euclidean_space_of_their_relative_coordinates(make: Callable[[Expert, Expert], Sampler]):
    """Moves, weights, log Z and tracked densities of 3 particles in the plane are those of the 4 coordinates, step by step."""
    u = 10 * torch.randn(2, 16, PARTICLES.dim, generator=torch.Generator().manual_seed(0), dtype=F64)
    grid = torch.cat([karras(8, 0.05, 10.0), torch.zeros(1, dtype=F64)])
    flat, particles = walk(make(*FLAT), u, grid), walk(make(*EXPERTS), torch.einsum("bpk,kna->bpna", u, BASIS), grid)
    assert torch.allclose(torch.einsum("bpna,kna->bpk", particles.x, BASIS), flat.x, atol=1e-8)
    assert particles.x.mean(-2).abs().max() < 1e-12
    assert torch.allclose(particles.log_w, flat.log_w, atol=1e-8)
    assert torch.allclose(particles.log_z, flat.log_z, atol=1e-8)
    for name in flat.aux:
        assert torch.allclose(particles.aux[name], flat.aux[name], atol=1e-7), name
    assert flat.log_w.std() > 0.1 or flat.aux["log_q"].std() > 0.1


@pytest.mark.parametrize("kernel_steps", [0, 1])
def test_annealed_particles_have_the_temperature_and_log_z_of_theory(kernel_steps: int):
    """Harmonic particles: ``q^beta`` has variance ``c^2 / beta`` and ``log Z = -d/2 log beta + d/2 (1 - beta) log 2 pi c^2`` with d = 4, not 6."""
    c2, beta, d = 0.5, 0.7, PARTICLES.dim
    q = Expert(lambda x, sigma, cond: x * (sigma / (c2 + sigma**2)), PARTICLES.event, space=PARTICLES)
    sampler = feynman_kac(q**beta, kernel_steps=kernel_steps)
    pop = sample(sampler, karras(150, 0.01, 20.0), particles=4096, rng=Streams(0), dtype=F64).population
    variance = float(pop.mean(lambda x: x.square().sum((-2, -1))).mean()) / d
    assert variance == pytest.approx(c2 / beta, rel=0.05)
    exact = -d / 2 * math.log(beta) + d / 2 * (1 - beta) * math.log(2 * math.pi * c2)
    assert float(pop.log_normalizer().mean()) == pytest.approx(exact, abs=0.15)


def test_the_ito_density_of_particles_is_the_exact_one():
    sampler = average(EXPERTS)
    error = []
    for steps in (50, 450):
        out = sample(sampler, karras(steps, 0.2, 10.0), particles=128, rng=Streams(0), dtype=F64).population
        exact = torch.stack([e.log_prob(out.x[0], 0.2) for e in EXPERTS if e.log_prob is not None], -1)
        error.append(float((out.aux["log_q"][0] - exact).square().mean().sqrt()))
    assert error[1] < 0.4
    assert 2 < error[0] / error[1] < 4.5  # falls as the root of the number of steps: 3


def test_a_network_that_is_not_centred_changes_nothing():
    shifted = on_particles(FLAT[0], shift=3.0)
    x = PARTICLES.project(torch.randn(2, 8, 3, 2, generator=torch.Generator().manual_seed(0), dtype=F64))
    assert torch.allclose(shifted.score(x, 0.7), EXPERTS[0].score(x, 0.7), atol=1e-12)
    assert shifted.score(x, 0.7).mean(-2).abs().max() < 1e-12


def test_rewards_push_inside_the_space():
    """A reward on one particle alone: the gradient loses its mean, and weights are those of relative coordinates."""
    target = tilt(EXPERTS[0], lambda x: x[:, 0, 0], 2.0)
    flat = tilt(FLAT[0], lambda u: u @ BASIS[:, 0, 0], 2.0)
    u = 10 * torch.randn(1, 16, PARTICLES.dim, generator=torch.Generator().manual_seed(0), dtype=F64)
    options = {"zeta": 0.0, "ess_below": 1e-9}
    with pytest.warns(PopflowWarning):
        a, b = walk(feynman_kac(target, **options), torch.einsum("bpk,kna->bpna", u, BASIS)), walk(feynman_kac(flat, **options), u)
    assert torch.allclose(torch.einsum("bpna,kna->bpk", a.x, BASIS), b.x, atol=1e-8)
    assert torch.allclose(a.log_w, b.log_w, atol=1e-8)


def test_around_is_centred_and_flows_stay_centred():
    x = torch.arange(6.0).reshape(3, 2)
    sampler = flow_below(average(EXPERTS), 1.0)
    with pytest.warns(PopflowWarning, match=r"1 of 1 configurations have a centre of mass away from 0 \(largest 3\); it was subtracted"):
        out = sample(sampler, GRID, particles=8, rng=Streams(0), around=x)
    assert out.x.mean(-2).abs().max() < 1e-4


# bad input


def test_experts_of_different_spaces_do_not_compose():
    plain = gaussian_mixture(torch.zeros(1, 3, 2), 1.0, name="plain")
    with pytest.raises(
        ValueError, match=r"'q1' and 'plain' live in the spaces CentredParticles\(count=3, axes=2\) and 'data', wanted the same"
    ):
        EXPERTS[0] * plain
    with pytest.raises(ValueError, match="live in the spaces"):
        either([EXPERTS[0], plain])


def test_an_expert_of_another_shape_than_its_space_is_named():
    with pytest.raises(ValueError, match=r"expert 'wide': event=\(4, 2\), wanted \(3, 2\), the shape of a point of CentredParticles"):
        Expert(lambda x, sigma, cond: x, (4, 2), name="wide", space=PARTICLES)
    bad = Expert(lambda x, sigma, cond: x[:, :1], PARTICLES.event, name="short", space=PARTICLES)
    with pytest.raises(ValueError, match=r"expert 'short' returned shape \(5, 1, 2\) for samples \(5, 3, 2\), wanted \(5, 3, 2\)"):
        scores([bad], torch.zeros(5, 3, 2), 1.0)


def test_what_needs_euclidean_space_says_so():
    with pytest.raises(ValueError, match=r"live in CentredParticles.*wanted Euclidean space: elsewhere parts cannot be replaced"):
        keep(average(EXPERTS), torch.zeros(3, 2), torch.ones(3, 2))


@pytest.mark.parametrize(("count", "axes"), [(1, 3), (3, 0)])
def test_impossible_particles_are_refused(count: int, axes: int):
    with pytest.raises(ValueError, match=f"count={count}, axes={axes}, wanted at least 2 particles"):
        CentredParticles(count, axes)


def test_configurations_of_the_wrong_shape_are_named():
    with pytest.raises(ValueError, match=r"x has shape \(5, 4, 2\), wanted \[\.\.\., 3, 2\]"):
        PARTICLES.check(torch.zeros(5, 4, 2))
