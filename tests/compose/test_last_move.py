"""Curvature that a particle learns from its last move: closed forms, and what it is worth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from popflow.compose import feynman_kac, gaussian_mixture, karras, last_move, sample
from popflow.compose.backward_kernel import Variance
from popflow.compose.last_move import curvatures, remembered, tells
from popflow.compose.spaces.space import Euclidean
from popflow.core import Population, Streams

F64 = torch.float64
UNLIKE = gaussian_mixture(torch.tensor([[-4.0], [4.0]], dtype=F64), torch.tensor([0.2, 1.5], dtype=F64))


def learned(expert, before: Tensor, after: Tensor, sigma: float, lower: float) -> Tensor:
    """Curvature at ``after`` of a particle that came from ``before``."""
    there = Population.of(before)
    here = there.replace(x=after, aux=remembered(expert.home, there, expert.score(before, sigma).unsqueeze(0), sigma**2))
    return curvatures([expert], here, expert.score(after, lower).unsqueeze(0), lower**2)[0]


@pytest.mark.parametrize("dim", [1, 3])
def test_a_gaussian_is_known_from_any_move(dim: int):
    """``-1 / (std^2 + sigma^2)``, however far and wherever the particle went."""
    q, rng = gaussian_mixture(torch.full((1, dim), 0.7, dtype=F64), 0.4), Streams(0)
    before, after = rng.normal("a", torch.empty(50, dim, dtype=F64)) * 3, rng.normal("b", torch.empty(50, dim, dtype=F64)) * 9
    assert torch.allclose(learned(q, before, after, 2.0, 0.5), torch.full((50,), -1 / (0.16 + 0.25), dtype=F64), atol=1e-12)


def test_before_the_first_move_the_loss_speaks():
    x = torch.randn(4, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert UNLIKE.loss is not None
    found = curvatures([UNLIKE], Population.of(x), UNLIKE.score(x, 1.0).unsqueeze(0), 1.0)
    assert torch.allclose(found, torch.full((1, 4), float(UNLIKE.loss(1.0)) - 1, dtype=F64))  # pyright: ignore[reportArgumentType]


def test_particles_learn_the_width_of_the_mode_they_are_in():
    rng, sigma, lower = Streams(0), 0.5, 0.4
    for mean, std in ((-4.0, 0.2), (4.0, 1.5)):
        before = mean + (std**2 + sigma**2) ** 0.5 * rng.normal("x", torch.empty(4000, 1, dtype=F64))
        h = sigma**2 - lower**2
        after = before + h * UNLIKE.score(before, sigma) + h**0.5 * rng.normal("noise", before)
        found, true = learned(UNLIKE, before, after, sigma, lower), -1 / (std**2 + lower**2)
        usual = curvatures([UNLIKE], Population.of(after), UNLIKE.score(after, lower).unsqueeze(0), lower**2)
        assert abs(float(found.median()) - true) < 0.6 * abs(float(usual.mean()) - true)


def test_the_way_from_one_mode_to_another_says_nothing():
    before, after = (torch.tensor([[x]], dtype=F64) for x in (-1.0, 3.0))
    usual = curvatures([UNLIKE], Population.of(after), UNLIKE.score(after, 0.8).unsqueeze(0), 0.8**2)[0]
    assert torch.equal(learned(UNLIKE, before, after, 1.0, 0.8), usual)


@pytest.mark.parametrize("variance", ["optimal", "local"])
def test_powers_of_separate_modes_of_unequal_widths(variance: Variance):
    """Masses of the modes of ``q^3`` are ``w^3 / std^2``; ``local`` without a bound on c put all on one mode."""
    std, w = torch.tensor([0.3, 1.0], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64)
    q = gaussian_mixture(torch.tensor([[-4.0], [4.0]], dtype=F64), std, w)
    exact = (w**3 / std**2)[0] / (w**3 / std**2).sum()
    out = sample(
        feynman_kac(q**3.0, zeta=2**0.5, variance=variance), karras(30, 0.02, 25.0), particles=2048, runs=8, rng=Streams(1), dtype=F64
    )
    left = (out.population.weights() * (out.x[..., 0] < 0)).sum(-1).mean()
    assert float(left) == pytest.approx(float(exact), abs=0.06)


def test_moves_are_remembered_in_few_flat_dimensions_and_dropped_at_sigma_zero():
    assert tells(Euclidean((16,)))
    assert not tells(Euclidean((17,)))
    names = {last_move._POINT, last_move._SCORES, last_move._CLOCK}
    for levels, kept in ((karras(4, 0.1, 10.0), names), (torch.cat([karras(4, 0.1, 10.0), torch.zeros(1, dtype=F64)]), set())):
        out = sample(feynman_kac(UNLIKE**2.0), levels, particles=8, rng=Streams(0), dtype=F64)
        assert names & set(out.population.aux) == kept


def test_tracked_densities_take_the_curvature_of_each_particle(monkeypatch: pytest.MonkeyPatch):
    def error(variance: Variance) -> float:
        sampler = feynman_kac(UNLIKE**1.5, track=True, variance=variance)
        pop = sample(sampler, karras(60, 0.05, 25.0), particles=512, rng=Streams(0), dtype=F64).population
        return float((pop.aux["log_q"][0, :, 0] - UNLIKE.log_prob(pop.x[0], 0.05)).std())  # pyright: ignore[reportOptionalCall]

    learns, local = error("optimal"), error("local")
    monkeypatch.setattr(last_move, "_FEW", 0)
    table = error("optimal")
    assert learns < 0.8 * table
    assert local < 0.5 * table
