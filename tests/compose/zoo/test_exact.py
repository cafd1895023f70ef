import math

import pytest
import torch

from popflow.compose import cfg, gaussian_mixture, scores
from popflow.compose.zoo import digits
from popflow.compose.zoo.exact import guided_draws, product_draws
from popflow.core import Streams

A, B = torch.tensor([[-2.0], [-0.5], [0.3]]), torch.tensor([[-1.0], [0.4], [2.0]])
GRID = torch.linspace(-6, 6, 4001, dtype=torch.float64).unsqueeze(1)


def ks(draws: torch.Tensor, log_density: torch.Tensor) -> float:
    cdf = log_density.exp().cumsum(0) / log_density.exp().sum()
    empirical = torch.searchsorted(draws.flatten().double().sort().values, GRID.flatten()) / len(draws)
    return float((empirical - cdf).abs().max())


@pytest.mark.parametrize("powers", [(1.0, 1.0), (0.5, 0.5), (0.3, 1.4), (2.0, 1.0), (3.0, 0.2)])
def test_draws_of_a_product_of_powers_have_its_distribution(powers):
    y = product_draws(A, B, 0.5, 20_000, Streams(0), powers=powers)
    a, b = gaussian_mixture(A, 0.5), gaussian_mixture(B, 0.5)
    assert ks(y, powers[0] * a.log_prob(GRID, 0.0) + powers[1] * b.log_prob(GRID, 0.0)) < 1.95 / math.sqrt(20_000)


@pytest.mark.parametrize("w", [1.0, 2.5])
def test_draws_of_guidance_have_its_distribution(w):
    y = guided_draws(torch.cat([A, B]), B, 0.5, w, 20_000, Streams(0))
    u, c = gaussian_mixture(torch.cat([A, B]), 0.5), gaussian_mixture(B, 0.5)
    assert ks(y, (1 - w) * u.log_prob(GRID, 0.0) + w * c.log_prob(GRID, 0.0)) < 1.95 / math.sqrt(20_000)


def stein(score: torch.Tensor, y: torch.Tensor) -> float:
    """Standard scores of ``E <s(y), y> = -d``, the identity that holds for draws from the density whose score is s."""
    value = (score * y).flatten(1).sum(1) + 64
    return float(value.mean() / (value.std() / math.sqrt(len(value))))


@pytest.mark.parametrize("powers", [(1.0, 1.0), (0.5, 0.5)])
def test_draws_in_64_dimensions_satisfy_the_identity_of_stein(powers):
    even, prime = digits.training().of(digits.EVEN).images, digits.training().of(digits.PRIME).images
    y = product_draws(even, prime, 0.3, 4000, Streams(1), powers=powers)
    s = scores([digits.kernel_expert(digits.EVEN), digits.kernel_expert(digits.PRIME)], y, 1e-6)
    assert abs(stein(powers[0] * s[0] + powers[1] * s[1], y)) < 3.5
    assert abs(stein(0.9 * (powers[0] * s[0] + powers[1] * s[1]), y)) > 10


def test_guided_draws_in_64_dimensions_satisfy_the_identity_of_stein():
    everything, threes = digits.kernel_expert(), digits.kernel_expert((3,))
    y = guided_draws(digits.training().images, digits.training().of((3,)).images, 0.3, 3.0, 4000, Streams(1))
    beta = cfg(everything, threes, 3.0).exponents(0.0)
    s = scores([everything, threes], y, 1e-6)
    assert abs(stein(beta[0] * s[0] + beta[1] * s[1], y)) < 3.5


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"powers=\(1.0, 0.0\)"):
        product_draws(A, B, 0.5, 10, Streams(0), powers=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"w=0.5, .* wanted w >= 1"):
        guided_draws(A, A, 0.5, 0.5, 10, Streams(0))
    with pytest.raises(ValueError, match="not in everything"):
        guided_draws(A, B, 0.5, 2.0, 10, Streams(0))
    far = digits.training().images[:50]
    with pytest.raises(RuntimeError, match="hardly overlap"):
        product_draws(far, far, 0.5, 64, Streams(0), powers=(6.0, 6.0))
