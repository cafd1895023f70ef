"""Products of spaces: parts, clocks of their own, and samplers that see one space in other units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from popflow.compose import (
    CentredParticles,
    Euclidean,
    Expert,
    ProductSpace,
    Proportional,
    Rotations,
    Sampler,
    average,
    both,
    either,
    feynman_kac,
    from_scores,
    gaussian_mixture,
    igso3_mixture,
    linear,
    sample,
)
from popflow.compose.backward_kernel import denoising_loss
from popflow.compose.spaces.steps import between
from popflow.core import Population, Streams

F64 = torch.float64
SPACE = ProductSpace((Rotations(2), CentredParticles(3), Euclidean((4,))))
SLOW = ProductSpace((Euclidean((1,)), Euclidean((2,))), (Proportional(0.5), Proportional()))


def test_split_and_join_undo_each_other():
    x = torch.randn(5, 7, 31, generator=torch.Generator().manual_seed(0))
    assert SPACE.event == (18 + 9 + 4,)
    assert SPACE.tangent == (6 + 9 + 4,)
    assert SPACE.dim == 6 + 6 + 4
    assert [tuple(part.shape) for part in SPACE.split(x)] == [(5, 7, 2, 3, 3), (5, 7, 3, 3), (5, 7, 4)]
    assert torch.equal(SPACE.join(SPACE.split(x)), x)
    assert torch.equal(SPACE.join_tangent(SPACE.split_tangent(x[..., :19])), x[..., :19])


def test_a_start_and_its_density_are_those_of_the_factors():
    x = SPACE.start(torch.empty(4, 31, dtype=F64), 2.0, 1.5, Streams(0))
    rotations, particles, rest = SPACE.split(x)
    assert torch.allclose(SPACE.check(x), x, atol=1e-12)
    assert particles.mean(-2).abs().max() < 1e-12
    assert (rotations.mT @ rotations - torch.eye(3, dtype=F64)).abs().max() < 1e-12
    expected = CentredParticles(3).log_start(particles, 2.0, 1.5) + Euclidean((4,)).log_start(rest, 2.0, 1.5)
    assert torch.allclose(SPACE.log_start(x, 2.0, 1.5), expected)
    assert SPACE.project(torch.ones(19))[6:15].abs().max() == 0


def test_the_stretch_is_the_share_of_each_clock_in_a_step():
    space = ProductSpace((Rotations(), Euclidean((2,))), (math.log1p, Proportional()))
    like = torch.zeros(1, dtype=F64)
    stretch = between(space, 2.0, 1.5, like)
    assert stretch is not None
    own = math.log(3) ** 2 - math.log(2.5) ** 2
    assert torch.allclose(stretch.square(), torch.tensor([own / (4 - 2.25)] * 3 + [1.0] * 2, dtype=F64))
    last = between(space, 0.5, 0.0, like)
    assert last is not None
    assert float(last[0]) == pytest.approx(math.log(1.5) / 0.5)
    assert SPACE.stretch(lambda clock: clock(1.0), like) is None


def mixture(seed: int) -> tuple[Expert, Expert]:
    """A density on the line and the plane whose first number is noised half as fast, and the same in units in which all are noised alike."""
    rng = torch.Generator().manual_seed(seed)
    flat = gaussian_mixture(2 * torch.randn(3, 3, generator=rng, dtype=F64), 0.5, name=f"q{seed}")
    unit = torch.tensor([0.5, 1.0, 1.0], dtype=F64)

    def units(parts: Sequence[Tensor]) -> Tensor:
        return SLOW.join(parts) / unit

    def score(parts: Sequence[Tensor], levels: Sequence[float]) -> Sequence[Tensor]:
        assert levels[0] == levels[1] / 2
        return SLOW.split_tangent(flat.score(units(parts), levels[1]) / unit)

    def log_prob(parts: Sequence[Tensor], levels: Sequence[float]) -> Tensor:
        assert flat.log_prob is not None
        return flat.log_prob(units(parts), levels[1])

    def loss(sigma: float) -> list[float]:
        return [denoising_loss(flat, sigma)] * 2

    return flat, replace(from_scores(score, SLOW, log_prob=log_prob, name=flat.name), loss=loss)


PAIRS = [mixture(seed) for seed in (1, 2)]


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: feynman_kac(a**1.3 * b, ess_below=1e-9, track=True),
        lambda a, b: feynman_kac(a**1.3 * b, ess_below=1e-9, track=True, variance="posterior"),
        lambda a, b: feynman_kac(a**1.3 * b, ess_below=1e-9, zeta=1.4),
        lambda a, b: feynman_kac(a**1.3 * b, ess_below=1e-9, zeta=0.5),
        lambda a, b: either([a, b], temperature=2.0),
        lambda a, b: both([a, b]),
        lambda a, b: average([a, b]),
    ],
    ids=["product", "posterior", "more noise", "less noise", "either", "both", "average"],
)
def test_a_factor_on_half_the_noise_is_a_factor_in_other_units(make: Callable[[Expert, Expert], Sampler]):
    """Same noise, same moves, weights, densities and shares; the last step denoises the slow factor whole."""
    y = 10 * torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    unit = torch.tensor([0.5, 1.0, 1.0], dtype=F64)
    pops = []
    for k, start in ((0, y), (1, y * unit)):
        sampler = make(PAIRS[0][k], PAIRS[1][k])
        pop = sampler.start(start, 10.0)
        pop, rng = pop.replace(log_w=torch.zeros_like(pop.log_w)), Streams(0)
        for t0, t1 in ((100.0, 50.0), (50.0, 10.0), (10.0, 1.0), (1.0, 0.2), (0.2, 0.0)):
            pop = sampler.step(pop, t0, t1, rng)
        pops.append(pop)
    flat, slow = pops
    assert torch.allclose(slow.x / unit, flat.x, atol=1e-9)
    assert torch.allclose(slow.log_w, flat.log_w, atol=1e-8)
    for name in flat.aux:
        assert torch.allclose(slow.aux[name], flat.aux[name], atol=1e-6), name


def test_kernels_step_by_each_factors_own_level():
    """Two independent Gaussians at their stationary law stay there under ``eta_f``, drawn for each factor from its own level."""
    space = ProductSpace((Euclidean((1,)), Euclidean((1,))), (Proportional(0.1), Proportional()))
    q = from_scores(lambda parts, levels: [-parts[0] / (0.01 + levels[0] ** 2), -parts[1] / (1 + levels[1] ** 2)], space)
    sampler = feynman_kac(q, kernel_steps=20, step_size=lambda sigma: 0.1 * sigma**2)
    var = torch.tensor([0.02, 2.0], dtype=F64)
    x = var.sqrt() * torch.randn(1, 20_000, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    out = sampler.step(Population.of(x, batch=1), 1 + 1e-9, 1.0, Streams(0)).x[0]
    assert torch.allclose(out.var(0) / var, torch.ones(2, dtype=F64), atol=0.06)
    assert float(torch.corrcoef(torch.stack([out[:, 0], x[0, :, 0]]))[0, 1]) < 0.5


def test_independent_factors_are_sampled_together_as_alone():
    r, b = igso3_mixture(torch.eye(3).unsqueeze(0), 0.4), gaussian_mixture(torch.tensor([[1.0, 0.0]], dtype=F64), 0.7)
    space = ProductSpace((r.home, b.home), (Proportional(0.25), Proportional()))

    def log_prob(parts: Sequence[Tensor], levels: Sequence[float]) -> Tensor:
        assert r.log_prob is not None
        assert b.log_prob is not None
        return r.log_prob(parts[0], levels[0]) + b.log_prob(parts[1], levels[1])

    q = from_scores(lambda p, s: [r.score(p[0], s[0]), b.score(p[1], s[1])], space, log_prob=log_prob)
    out = sample(feynman_kac(q), linear(100, 0.02, 10.0), particles=2000, rng=Streams(0), dtype=F64)
    rotations, places = space.split(out.x)
    assert float(rotations.diagonal(dim1=-2, dim2=-1).sum(-1).mean()) == pytest.approx(3 * math.exp(-0.16), abs=0.06)
    assert torch.allclose(places.mean((0, 1)), torch.tensor([1.0, 0.0], dtype=F64), atol=0.08)


# bad input


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ProductSpace((Rotations(),)), "wanted at least two spaces"),
        (lambda: ProductSpace((SPACE, Rotations())), "none of them a product"),
        (lambda: ProductSpace((Rotations(), Rotations()), (Proportional(),)), "clocks holds 1, wanted one for each of 2 factors"),
        (lambda: Proportional(0.0), "factor=0.0, wanted a number above 0"),
        (lambda: SPACE.check(torch.zeros(3, 5)), r"x has shape \(3, 5\), wanted \[\.\.\., 31\]"),
        (lambda: SPACE.check(torch.zeros(3, 31)), "not orthonormal"),
        (lambda: SLOW.check_levels(torch.tensor([2.0, 2.0])), "does not fall with every level"),
    ],
)
def test_bad_products_are_named(make: Callable[[], object], says: str):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_factor_refuses_steps_too_large_for_its_own_clock():
    q = from_scores(
        lambda p, s: [torch.zeros_like(p[0][..., 0]), -p[1]],
        ProductSpace((Rotations(), Euclidean((1,))), (Proportional(0.5), Proportional())),
    )
    with pytest.raises(ValueError, match=r"the step of rotations from noise level 5 to .* wanted at most 0.5"):
        sample(feynman_kac(q), linear(20, 0.02, 10.0), particles=2, rng=Streams(0))
