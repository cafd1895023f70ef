"""Guidance and Langevin steps against Gaussians, where both are known."""

import math

import pytest
import torch

from popflow.compose import gaussian_mixture
from popflow.compose.constrained import Prior, corrected, guided, line_integral
from popflow.core import Streams


@pytest.fixture(scope="module")
def normal() -> Prior:
    x = Streams(0).normal("x", torch.empty(1000, 2))
    return Prior.of(gaussian_mixture(torch.zeros(1, 2), 1.0), x, rng=Streams(0))


def test_the_line_integral_of_a_mixture_is_its_log_ratio() -> None:
    expert = gaussian_mixture(torch.tensor([[-1.0], [1.0]]), 0.6)
    prior = Prior.of(expert, torch.tensor([[-1.0], [1.0]]), rng=Streams(0), sigma_min=1e-3)
    x, y = torch.tensor([[0.3], [-1.0]]), torch.tensor([[0.9], [0.2]])
    truth = expert.log_prob(y, 1e-3) - expert.log_prob(x, 1e-3)
    torch.testing.assert_close(line_integral(prior, x, y), truth, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(line_integral(prior, y, x), -truth, rtol=1e-3, atol=1e-3)


def test_guidance_without_an_objective_samples_the_prior(normal: Prior) -> None:
    x = guided(normal, lambda y, sigma: torch.zeros_like(y), 2000, rng=Streams(0), steps=100)
    assert float(x.mean(0).abs().max()) < 0.1
    assert float((x.std(0) - 1).abs().max()) < 0.1


@pytest.mark.parametrize("adjust", [True, False])
def test_langevin_steps_reach_the_tilted_gaussian(normal: Prior, adjust: bool) -> None:
    beta = 3.0  # N(0, 1) exp(-beta (x - 1)^2 / 2): mean 3/4, variance 1/4

    def slope(x: torch.Tensor, sigma: float = 0.0) -> torch.Tensor:
        return beta * (x - 1)

    start = guided(normal, slope, 1500, rng=Streams(1), steps=30)
    pop = corrected(
        normal, slope, lambda x: beta * (x - 1).square().sum(1) / 2, start, rng=Streams(2), step_size=0.05, steps=80, adjust=adjust
    )
    assert float((pop.x.mean(0) - 0.75).abs().max()) < 0.06
    assert float((pop.x.std(0) - 0.5).abs().max()) < 0.06
    assert 0.3 < float(pop.aux["accepted"].mean()) <= 1.0


def test_rows_ruled_out_are_not_entered(normal: Prior) -> None:
    def wall(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] < 0, 0.0, math.inf)

    start = -torch.ones(200, 2)
    pop = corrected(normal, torch.zeros_like, wall, start, rng=Streams(0), steps=40)
    assert float(pop.x[:, 0].max()) < 0
    with pytest.raises(ValueError, match=r"step_size=0\.0, wanted"):
        corrected(normal, torch.zeros_like, wall, start, rng=Streams(0), step_size=0.0)
