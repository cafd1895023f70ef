"""Steering without gradients meets the tilted law exactly, at any interval, for every sampler."""

from __future__ import annotations

import pytest
import torch

from popflow.compose import Reward, average, feynman_kac, gaussian_mixture, karras, sample
from popflow.compose.probability_flow import flow_below
from popflow.compose.steering import steer
from popflow.core import Streams

GRID = torch.cat([karras(80, 0.01, 20.0), torch.zeros(1, dtype=torch.float64)])
STANDARD = gaussian_mixture(torch.zeros(1, 2), 1.0)


def slope(x: torch.Tensor) -> torch.Tensor:
    return 1.5 * x[:, 0]


@pytest.mark.parametrize(
    ("sampler", "every"),
    [
        (feynman_kac(STANDARD), 7),
        (flow_below(feynman_kac(STANDARD, correct=False), 0.3), 1),
        (average([STANDARD, gaussian_mixture(torch.zeros(1, 2), 1.0)]), 7),
    ],
    ids=["corrected", "ending without noise", "average"],
)
def test_a_linear_reward_moves_the_mean_of_a_gaussian(sampler, every):
    """``N(0, v) exp(1.5 x)`` is ``N(1.5 v, v)``, v the variance that the sampler itself leaves at these steps; the other coordinate stays."""
    plain = sample(sampler, GRID, particles=4096, rng=Streams(0), dtype=torch.float64).population
    v = float(plain.mean(lambda x: x.square()).mean())
    out = sample(steer(sampler, Reward(slope, 1.0), every=every), GRID, particles=4096, rng=Streams(0), dtype=torch.float64).population
    mean = out.mean()[0]
    assert v == pytest.approx(1.0, abs=0.12)
    assert float(mean[0]) == pytest.approx(1.5 * v, abs=0.1)
    assert float(mean[1]) == pytest.approx(0.0, abs=0.1)
    spread = out.mean(lambda x: x[..., 0].square()) - mean[0] ** 2
    assert float(spread) == pytest.approx(v, abs=0.2)


def test_a_reward_of_strength_zero_leaves_the_weights_alone():
    plain = sample(feynman_kac(STANDARD), GRID, particles=8, rng=Streams(0)).population
    same = sample(steer(feynman_kac(STANDARD), Reward(slope, 0.0)), GRID, particles=8, rng=Streams(0)).population
    assert torch.equal(plain.x, same.x)
    assert torch.equal(plain.log_w, same.log_w)


def test_only_the_first_step_after_resuming_reads_its_count(monkeypatch):
    """Reading a number from an accelerator means waiting for it; two populations that take turns have counts of their own."""
    steered, seen = steer(feynman_kac(STANDARD), Reward(slope, 1.0), every=3), []
    pop, levels = steered.start(torch.linspace(-30, 30, 16).reshape(1, 8, 2), float(GRID[0])), GRID.square().tolist()
    rng, reading = Streams(0), torch.Tensor.__int__
    monkeypatch.setattr(torch.Tensor, "__int__", lambda tensor: seen.append(tensor.shape) or reading(tensor))

    def paid(pop, k):
        after = steered.step(pop, levels[k], levels[k + 1], rng)
        return after, not torch.equal(after.aux["potential"], pop.aux["potential"])

    when = []
    for k in range(7):
        pop, reward = paid(pop, k)
        when.append(reward)
    assert when == [False, False, True, False, False, True, False]
    assert len(seen) == 1  # of the start
    other = pop.replace(aux={**pop.aux, "steps": torch.full_like(pop.aux["steps"], 2)})
    assert paid(other, 7)[1]  # its third step
    assert not paid(pop, 7)[1]  # its eighth


@pytest.mark.parametrize(
    ("sampler", "parts"),
    [
        (feynman_kac(STANDARD, zeta=0.0, correct=False), False),
        (feynman_kac(STANDARD, zeta=0.0, correct=False, kernel_steps=1), True),
        (average([STANDARD, STANDARD], deterministic=True), False),
        (average([STANDARD, STANDARD]), True),
    ],
    ids=["no noise", "Langevin steps", "flow", "diffusion"],
)
def test_copies_are_made_only_where_they_part(sampler, parts):
    """Without noise particles are weighed and never copied; with it those of few beginnings part again, as none are copied before the last step."""
    grid = torch.cat([karras(15, 0.1, 20.0), torch.zeros(1, dtype=torch.float64)])
    out = sample(steer(sampler, Reward(slope, 3.0), ess_below=1.0), grid, particles=64, rng=Streams(0), dtype=torch.float64)
    assert len(out.x[0].unique(dim=0)) == 64
    assert (len(out.population.aux["ancestor"].unique()) < 64) == parts


def test_an_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="every=0, wanted at least 1"):
        steer(feynman_kac(STANDARD), Reward(slope, 1.0), every=0)
