"""Kernels against closed forms: invariant laws, stationary variances, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from popflow.core import Population, StaleTrackingError, Step, Streams, langevin, metropolis
from popflow.core.metrics import kolmogorov_smirnov_to_cdf


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_ks(x: Tensor, std: float) -> float:
    points = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    return kolmogorov_smirnov_to_cdf(x, std * points, torch.special.ndtr(points)).item()


def standard(t: float, pop: Population) -> Tensor:
    return -pop.x.square().flatten(pop.log_w.ndim).sum(-1) / 2 if len(pop.event) else -pop.x.square() / 2


@pytest.mark.parametrize("event", [(), (1,), (3, 2)])
@pytest.mark.parametrize("score", [None, lambda t, pop: -pop.x])
def test_metropolis_leaves_a_gaussian_invariant(event: tuple[int, ...], score: Callable | None) -> None:
    n = 6000
    pop = Population.of(normal(n, *event), accepted=torch.zeros(n))
    last = metropolis(standard, 0.4, 10, score=score)(pop, 0.0, 1.0, Streams(3))
    for x in last.x.reshape(n, -1).T:
        assert gaussian_ks(x, 1.0) < 1.95 / math.sqrt(n)  # the 0.1 % point of the Kolmogorov distribution
    assert 2.0 < last.aux["accepted"].mean() < 9.95
    assert (last.x - pop.x).abs().mean() > 0.3


@pytest.mark.parametrize("score", [None, lambda t, pop: 2 - pop.x.exp()])
def test_metropolis_reaches_a_skewed_law(score: Callable | None) -> None:
    # x = log G, G ~ Gamma(2): log p = 2 x - e^x, mean digamma(2), variance trigamma(2)
    n, two = 6000, torch.tensor(2.0, dtype=torch.float64)
    pop = Population.of(torch.ones(n, 1, dtype=torch.float64))
    x = metropolis(lambda t, pop: (2 * pop.x - pop.x.exp())[..., 0], 0.5, 60, score=score)(pop, 0.0, 1.0, Streams(1)).x
    variance = torch.special.polygamma(1, two).item()
    assert x.mean().item() == pytest.approx(torch.special.digamma(two).item(), abs=4 * math.sqrt(variance / n))
    assert x.var().item() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("eta", [0.1, 0.8])
def test_langevin_has_its_own_known_stationary_variance(eta: float) -> None:
    # for N(0, 1): x' = (1 - eta) x + sqrt(2 eta) z, so the stationary variance is 1 / (1 - eta / 2)
    n, std = 8000, (1 - eta / 2) ** -0.5
    pop = Population.of(std * normal(n, 1))
    last = langevin(lambda t, pop: -pop.x, lambda t: eta * t, 20)(pop, 0.0, 1.0, Streams(5))
    assert gaussian_ks(last.x[:, 0], std) < 1.95 / math.sqrt(n)
    assert gaussian_ks(last.x[:, 0], 2 * std) > 0.1
    assert torch.equal(last.log_w, pop.log_w)


def test_kernels_use_the_new_time_and_every_population_its_own_law() -> None:
    std = torch.tensor([[0.5], [2.0]], dtype=torch.float64)

    def log_density(t: float, pop: Population) -> Tensor:
        return -(pop.x[..., 0] / (t * std)).square() / 2

    pop = Population.of(normal(2, 4000, 1), batch=1)
    last = metropolis(log_density, 0.5, 80)(pop, 0.0, 3.0, Streams(6))
    assert last.x.std(1).flatten().tolist() == pytest.approx([1.5, 6.0], rel=0.3)
    assert last.x[0].std().item() == pytest.approx(1.5, rel=0.05)


def test_a_proposal_without_density_is_refused() -> None:
    pop = Population.of(torch.full((50, 1), 0.5))
    inside = metropolis(lambda t, pop: torch.where((pop.x > 0) & (pop.x < 1), 0.0, -math.inf)[..., 0], 0.5, 5)(pop, 0.0, 1.0, Streams(0))
    assert ((inside.x > 0) & (inside.x < 1)).all()
    nan = metropolis(lambda t, pop: torch.where(pop.x == 0.5, 0.0, math.nan)[..., 0], 0.5, 5)(pop, 0.0, 1.0, Streams(0))
    assert (nan.x == 0.5).all()


KERNELS = [
    lambda **options: langevin(lambda t, pop: -pop.x, 0.1, **options),
    lambda **options: metropolis(standard, 0.1, **options),
]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_refuses_to_leave_tracked_quantities_behind(kernel: Callable[..., Step]) -> None:
    pop = Population.of(normal(5, 1), log_q=torch.zeros(5))
    with pytest.raises(StaleTrackingError, match=r"\['log_q'\].*refresh"):
        kernel(tracked=("log_q",))(pop, 0.0, 1.0, Streams(0))
    kernel(tracked=("log_p",))(pop, 0.0, 1.0, Streams(0))
    refreshed = kernel(
        tracked=("log_q",), refresh=lambda t, before, after: after.replace(aux={"log_q": standard(t, after) - standard(t, before)})
    )(pop, 0.0, 1.0, Streams(0))
    assert torch.allclose(refreshed.aux["log_q"], standard(1.0, refreshed) - standard(1.0, pop))
    assert refreshed.aux["log_q"].abs().max() > 0


@pytest.mark.parametrize("eta", [0.0, -0.1, math.nan, math.inf])
def test_a_step_size_that_is_not_above_zero_is_named(eta: float) -> None:
    for kernel in (langevin(lambda t, pop: -pop.x, eta), metropolis(standard, lambda t: eta)):
        with pytest.raises(ValueError, match="step_size is"):
            kernel(Population.of(normal(3, 1)), 0.0, 1.0, Streams(0))


def test_a_score_or_density_of_the_wrong_shape_is_named() -> None:
    pop = Population.of(normal(5, 5), accepted=torch.zeros(5))  # event as long as the population: it would broadcast
    wrong: list[tuple[Step, str]] = [
        (langevin(lambda t, pop: -pop.x.sum(-1), 0.1), r"score returned \(5,\), wanted a tensor of shape \(5, 5\)"),
        (metropolis(lambda t, pop: -pop.x.square().sum(-1), 0.1, score=lambda t, pop: -pop.x.sum(-1)), r"score returned \(5,\)"),
        (metropolis(lambda t, pop: -pop.x.square().sum(), 0.1), r"log_density returned \(\), wanted a tensor of shape \(5,\)"),
        (metropolis(lambda t, pop: -pop.x.square().sum(-1, keepdim=True), 0.1), r"log_density returned \(5, 1\)"),
    ]
    for step, message in wrong:
        with pytest.raises(ValueError, match=message):
            step(pop, 0.0, 1.0, Streams(0))


def test_kernels_keep_the_dtype_of_the_population() -> None:
    pop = Population.of(normal(5, 2).float(), accepted=torch.zeros(5))
    score, log_p = (lambda t, pop: -pop.x.double()), (lambda t, pop: -pop.x.double().square().sum(-1) / 2)
    for step in (langevin(score, 0.1), metropolis(log_p, 0.1), metropolis(log_p, 0.1, score=score)):
        assert step(pop, 0.0, 1.0, Streams(0)).x.dtype == torch.float32
