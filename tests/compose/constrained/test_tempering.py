"""The exact route against closed forms."""

import math

import pytest
import torch

from popflow.compose import gaussian_mixture
from popflow.compose.constrained import Prior, next_fraction, tempered
from popflow.compose.constrained.candidates import Found
from popflow.compose.constrained.closed_forms import three_modes
from popflow.core import PopflowWarning, Population, State, Streams, ZeroWeightsError


@pytest.fixture(scope="module")
def mixture() -> Prior:
    known = three_modes()
    return Prior.of(known.expert(), known.draw(2000, Streams(1)), rng=Streams(0))


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0, 16.0])
def test_a_tilted_mixture_comes_out_with_its_mean_covariance_and_modes(mixture: Prior, beta: float) -> None:
    known, n = three_modes(), 2000
    found = tempered(mixture, lambda x: beta * known.h(x), mixture.draw(n, Streams(0), 80), rng=Streams(2), steps=40)
    weights, x = found.population.weights().double(), found.population.x.double()
    mean, covariance, modes = known.truth(beta)
    away = x - weights @ x
    # four standard errors of independent draws, by a design effect of 2 for resampling, and a tenth of a width for the reverse steps
    error = 4 * (2 * covariance.diagonal() / n).sqrt() + 0.02
    assert bool(((weights @ x - mean).abs() < error).all())
    assert float(((weights[:, None] * away).T @ away - covariance).abs().max()) < 0.15
    assert float((known.modes(beta, x, weights) - modes).abs().max()) < 0.05
    assert found.levels[-1].fraction == 1
    assert len(found.levels) == (1 if beta == 0 else len(found.levels))


def test_noise_denoise_moves_leave_the_prior_alone(mixture: Prior) -> None:
    known = three_modes()
    x = known.draw(4000, Streams(3))
    for sigma in (0.1, 1.0, 4.0):
        moved = mixture.renoise(x, sigma, 60, Streams(4))
        mean, covariance, _ = known.truth(0.0)
        assert float((moved.double().mean(0) - mean).abs().max()) < 0.12, sigma
        assert float((torch.cov(moved.double().T) - covariance).abs().max()) < 0.25, sigma
        assert float((moved - x).square().mean()) > 0.1 * min(sigma, 0.3) ** 2


def test_temperatures_keep_the_share_asked_for() -> None:
    potential = torch.linspace(0, 20, 500)
    then = next_fraction(potential, 0.0, 0.5)
    weights = (-then * potential.double()).softmax(0)
    assert abs(float(1 / weights.square().sum()) / 500 - 0.5) < 1e-6
    assert next_fraction(torch.tensor([0.0, math.inf]), 0.5, 0.5) == 1.0  # rows ruled out do not count
    assert next_fraction(torch.stack([potential / 100, potential]), 0.0, 0.5) == then  # the least of several populations


def test_the_acceptance_is_that_of_the_moves_that_changed_the_row() -> None:
    values = torch.tensor([[-1.0], [1.0]])

    def signs(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, 1.0, -1.0)

    prior = Prior.of(gaussian_mixture(values, 0.05), values.repeat(500, 1), rng=Streams(0), snap=signs)
    found = tempered(prior, lambda x: torch.zeros(len(x)), prior.draw(400, Streams(0)), rng=Streams(1), last_moves=3, steps=6)
    assert found.acceptance == 1.0  # without an objective every change is taken, and most moves change nothing
    assert float((found.population.aux["changed"] / 3).mean()) < 0.6


def test_what_was_proposed_and_refused_is_among_the_visited() -> None:
    x = Streams(0).normal("x", torch.empty(600, 1))
    prior = Prior.of(gaussian_mixture(torch.zeros(1, 1), 1.0), x, rng=Streams(0))
    asked = []

    def potential(x: torch.Tensor) -> torch.Tensor:
        asked.append(x.clone())
        return 30 * x[:, 0].abs()

    found = tempered(prior, potential, prior.draw(100, Streams(0)), rng=Streams(1), steps=6)
    least = torch.unique(torch.cat(asked)).abs().sort().values[:100]
    torch.testing.assert_close(found.visited.flatten().abs(), least)
    torch.testing.assert_close(found.visited_potential.float(), 30 * least)


def test_rows_ruled_out_never_come_back(mixture: Prior) -> None:
    def half(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] > 0, 0.0, math.inf)

    found = tempered(mixture, half, mixture.draw(500, Streams(0)), rng=Streams(1))
    weights = found.population.weights()
    assert float(weights[found.population.x[:, 0] <= 0].sum()) == 0
    with pytest.raises(ZeroWeightsError, match=r"all 500 particles .* are ruled out"):
        tempered(mixture, lambda x: torch.full((len(x),), math.inf), mixture.draw(500, Streams(0)), rng=Streams(1))


def test_values_that_are_no_numbers_are_refused(mixture: Prior) -> None:
    with pytest.raises(ValueError, match="NaN or minus infinity"):
        tempered(mixture, lambda x: torch.full((len(x),), math.nan), mixture.draw(8, Streams(0)), rng=Streams(1))
    with pytest.raises(ValueError, match=r"ess=1.5, wanted a share"):
        tempered(mixture, lambda x: x[:, 0], mixture.draw(8, Streams(0)), rng=Streams(1), ess=1.5)


def test_a_beta_that_freezes_the_particles_is_told_with_its_acceptance() -> None:
    x = Streams(0).normal("x", torch.empty(600, 6))
    prior = Prior.of(gaussian_mixture(torch.zeros(1, 6), 1.0), x, rng=Streams(0))
    with pytest.warns(PopflowWarning, match=r"acceptance of moves fell to 0.* beta is so large"):
        tempered(
            prior, lambda x: 1e7 * (x - 1).square().sum(1), prior.draw(400, Streams(0)), rng=Streams(0), moves=1, last_moves=1, steps=4
        )


@pytest.mark.parametrize("moves", [1, 2])
def test_few_moves_do_not_shrink_their_noise(moves: int) -> None:
    x = Streams(0).normal("x", torch.empty(600, 2))
    prior = Prior.of(gaussian_mixture(torch.zeros(1, 2), 1.0), x, rng=Streams(0))
    found = tempered(
        prior, lambda x: 10 * (x - 1.5).square().sum(1), prior.draw(300, Streams(0)), rng=Streams(0), moves=moves, last_moves=moves, steps=6
    )
    assert len(found.levels) > 3
    assert found.levels[-1].sigma > 0.5


def test_draws_follow_the_weights() -> None:
    x, log_w = torch.tensor([[0.0], [1.0]]).repeat_interleave(200, 0), torch.tensor([0.0, math.log(3)]).repeat_interleave(200)
    found = Found(Population.of(x).reweight(log_w), 1.0, 1.0)
    for n in (300, 400, 800):  # 3 of 4 have the value 1
        assert abs(float(found.draw(n, Streams(0)).mean()) - 0.75) < 0.06


def test_the_best_are_different_rows_and_as_many_as_there_are() -> None:
    x = torch.tensor([[[1.0], [2.0], [3.0]], [[2.0], [4.0], [5.0]]])  # the row 2 is second in one population, and first in the other
    value = torch.tensor([[0.1, 0.2, math.inf], [7.0, 8.0, 9.0]])
    found = Found(Population.of(x, 1), 1.0, 1.0, (), (x, value))
    assert found.best(2).flatten().tolist() == [1, 2]
    assert found.best(4).flatten().tolist() == [1, 2, 4, 5]
    assert found.best(9).flatten().tolist() == [1, 2, 4, 5]  # 3 has no value
    particles = torch.tensor([[3.0], [1.0], [2.0], [1.0]])
    one = Found(Population.of(particles, potential=torch.tensor([0.3, 0.1, 0.2, 0.1])), 1.0, 1.0)
    assert one.best(3).flatten().tolist() == [1, 2, 3]


def test_a_resumed_run_ends_with_the_same_bits(mixture: Prior) -> None:
    known, states = three_modes(), []
    start = mixture.draw(100, Streams(0), 10)

    def go(record=(), resume=None, rng=None):
        return tempered(mixture, lambda x: 16 * known.h(x), start, rng=rng or Streams(7), steps=5, record=record, resume=resume)

    whole = go(record=[lambda state: states.append({k: v.clone() for k, v in state.tensors().items()})])
    rng = Streams(7)
    again = go(resume=State.of(states[2], rng), rng=rng)
    assert torch.equal(whole.population.x, again.population.x)
    assert whole.levels == again.levels


def test_several_populations_share_temperatures_and_keep_their_own_targets() -> None:
    x = Streams(0).normal("x", torch.empty(1000, 1))
    prior = Prior.of(gaussian_mixture(torch.zeros(1, 1), 1.0), x, rng=Streams(0))
    potentials = [lambda x, c=c: 4 * (x[:, 0] - c).square() / 2 for c in (-1.0, 1.0)]
    found = tempered(prior, potentials, prior.draw(1600, Streams(0)).unflatten(0, (2, 800)), rng=Streams(0))
    means = found.population.mean()[:, 0]
    assert abs(float(means[0]) + 0.8) < 0.08
    assert abs(float(means[1]) - 0.8) < 0.08
