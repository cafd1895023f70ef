"""Feasibility scores, fronts and hypervolumes against closed forms."""

import itertools
import math

import pytest
import torch

from popflow.compose import gaussian_mixture
from popflow.compose.constrained import Feasibility, Prior, front, hypervolume, simplex_weights
from popflow.core import Streams


def test_the_score_orders_gaussian_rows_by_their_density() -> None:
    x = Streams(0).normal("x", torch.empty(2000, 2))
    prior = Prior.of(gaussian_mixture(torch.zeros(1, 2), 1.0), x, rng=Streams(0))
    feasible = Feasibility.of(prior, x[:1000], Streams(1))
    line = torch.stack([torch.linspace(0, 4, 30), torch.zeros(30)], 1)
    score = feasible.score(line)
    assert bool((score.diff() < 0).all())
    fresh = feasible(x[1000:])
    for level in (0.05, 0.3, 0.7):  # uniform for the data's own rows, to three standard errors
        assert abs(float((fresh <= level).double().mean()) - level) < 3 * math.sqrt(2 * level * (1 - level) / 1000)


def test_the_score_of_a_gaussian_row_is_the_integral_and_its_feasibility_a_p_value() -> None:
    """The denoiser is linear, ``D = y / (1 + sigma^2)``: with noises in pairs ``E|x - D|^2 / sigma^2 = (sigma^2 x^2 + E eps^2) / (1 + sigma^2)^2``."""
    x = Streams(0).normal("x", torch.empty(99, 1))
    prior = Prior.of(gaussian_mixture(torch.zeros(1, 1), 1.0), x, rng=Streams(0))
    feasible = Feasibility.of(prior, x, Streams(1))
    at = torch.tensor([0.5, 2.0], dtype=torch.float64)
    width = math.log(2.0 / prior.sigma_min) / len(feasible.noises)
    variance = torch.tensor(
        [(prior.sigma_min * math.exp((k + 0.5) * width)) ** 2 for k in range(len(feasible.noises))], dtype=torch.float64
    )
    share = variance / (1 + variance) ** 2
    difference = feasible.score(at[:1, None].float()) - feasible.score(at[1:, None].float())
    assert float(difference) == pytest.approx(float((share * width).sum() * (at[1] ** 2 - at[0] ** 2)), rel=1e-4)
    assert float(feasible(torch.tensor([[50.0]]))) == 1 / 100  # never 0
    assert float(feasible(x[feasible.score(x).argmin()][None])) == 2 / 100  # a held-out row scores no better than itself


def test_a_front_is_what_brute_force_finds() -> None:
    values = torch.rand(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[7] = values[3]
    values[9, 0] = math.nan
    brute = [
        bool(one.isfinite().all()) and not any(bool((other <= one).all() and (other < one).any()) for other in values) for one in values
    ]
    assert front(values).tolist() == brute


def test_a_hypervolume_is_the_area_of_a_union_of_boxes() -> None:
    values = torch.rand(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference = torch.tensor([1.0, 0.9, 1.1], dtype=torch.float64)
    total = 0.0
    inside = [one for one in values if bool((one < reference).all())]
    for size in range(1, len(inside) + 1):  # inclusion and exclusion
        for some in itertools.combinations(inside, size):
            corner = torch.stack(some).amax(0)
            total += (-1) ** (size + 1) * float((reference - corner).clamp_min(0).prod())
    assert hypervolume(values, reference) == pytest.approx(total)
    assert hypervolume(values + 2, reference) == 0.0


@pytest.mark.parametrize(("objectives", "count"), [(1, 1), (2, 5), (3, 10)])
def test_weights_cover_the_simplex(objectives: int, count: int) -> None:
    weights = simplex_weights(objectives, count)
    assert len(weights) >= count
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights), dtype=torch.float64))
    for k in range(objectives):
        assert bool((weights[:, k] == 1).any())
