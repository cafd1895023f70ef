"""The shipped models of particle systems: what they have learned, their tables, and how samples are compared."""

import math

import pytest
import torch

from popflow.compose import CentredParticles, feynman_kac, geometric, sample, zoo
from popflow.compose.particles import compare, icosahedron, lennard_jones, models, tempered
from popflow.core import Streams


@pytest.mark.parametrize("name", models.MODELS)
def test_the_score_at_little_noise_is_the_force_over_the_temperature(name):
    """What denoising alone learns last: the repulsion. Fresh Monte Carlo samples, not those it was trained on."""
    model, expert = models.find(name), zoo.load(name)
    found = tempered(
        model.system, (model.temperature,), model.start(), sweeps=20, burn=120, rng=Streams(7), chains=64, step_size=model.step_size
    )
    x = found.x[0]
    force = model.system.energy_and_force(x)[1] / model.temperature
    score = expert.score(x.float(), model.levels[0]).double()
    assert float((score - force).square().sum() / force.square().sum()) < 0.06
    assert float(score.sum(1).abs().max()) < 1e-3


@pytest.mark.parametrize("name", models.MODELS)
def test_experts_live_among_centred_particles_and_far_away_is_noise(name):
    model, expert = models.find(name), zoo.load(name)
    assert expert.space == CentredParticles(*model.system.event) == model.system.space
    high = model.sampled[1]
    y = model.system.space.project(torch.randn(8, *model.system.event, generator=torch.Generator().manual_seed(0))) * high
    normal = -y / (high**2 + model.spread**2)
    assert float((expert.score(y, high) - normal).norm() / normal.norm()) < 0.05


def test_loading_twice_gives_the_same_expert_whatever_the_chunk():
    y = models.find("dw4").system.space.project(torch.randn(9, 4, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(zoo.load("dw4").score(y, 0.5), zoo.load("dw4", chunk=2).score(y, 0.5), atol=1e-5)


def test_tables_hold_the_published_energies():
    """Mean energies of LJ-13 in the convention of ordered pairs: published reference samples and independent runs."""
    for temperature, mean in ((0.8, -52.4), (1.5, -14.7), (2.0, 12.35)):
        table = models.tables("lj13", temperature)
        assert table is not None
        assert float(table["energy"].mean()) == pytest.approx(mean, abs=0.5)
        assert all(bool((values.diff() >= 0).all()) and len(values) == models.QUANTILES for values in table.values())
    assert models.tables("lj13", 1.1) is None
    with pytest.raises(ValueError, match="did you mean 'lj13'"):
        models.tables("lj14", 1.0)


@pytest.mark.slow
def test_dw4_sampled_at_its_own_temperature_has_its_energies():
    model = models.find("dw4")
    out = sample(feynman_kac(zoo.load("dw4"), correct=False), geometric(300, *model.sampled), particles=1000, rng=Streams(0))
    table = models.tables("dw4", model.temperature)
    assert table is not None
    found = compare(model.system, out.x[0], None, table["energy"], table["distance"])
    assert found.distance_w2 < 0.1
    assert found.energy_w1 < 0.6


def test_comparison_of_equal_and_shifted_samples():
    system = lennard_jones(2, trap=0.0)
    r = torch.linspace(0.95, 1.5, 50, dtype=torch.float64)
    x = torch.zeros(50, 2, 3, dtype=torch.float64)
    x[:, 0, 0] = r
    same = compare(system, x, None, system.energy(x), r)
    assert max(same.distance_w2, same.energy_w1, same.energy_w2, abs(same.median), same.overlaps) < 1e-9
    shifted = compare(system, x, None, system.energy(x) - 3.0, r + 0.25)
    assert shifted.distance_w2 == pytest.approx(0.25)
    assert shifted.energy_w1 == pytest.approx(3.0) == shifted.energy_w2


def test_overlaps_are_counted_trimmed_and_clipped_and_weights_count():
    system = lennard_jones(2, trap=0.0)
    x = torch.zeros(4, 2, 3, dtype=torch.float64)
    x[:, 0, 0] = torch.tensor([1.0, 1.0, 0.3, 0.0])
    truth, weights = system.energy(x[:1]), torch.tensor([0.4, 0.4, 0.1, 0.1])
    found = compare(system, x, weights, truth, torch.tensor([1.0]))
    assert found.overlaps == pytest.approx(0.2)
    assert found.trimmed_w1 == pytest.approx(0.0, abs=1e-9)
    assert found.energy_w1 == pytest.approx(0.2 * 1002)
    assert found.raw_w1 == math.inf
    assert compare(system, x[:2], None, truth, torch.tensor([1.0])).energy_w1 == pytest.approx(0.0, abs=1e-9)


def test_weights_that_do_not_fit_are_refused():
    x, truth = icosahedron().expand(3, 13, 3), torch.tensor([-83.0])
    for weights in (torch.ones(2), torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), torch.full((3,), torch.nan)):
        with pytest.raises(ValueError, match="wanted one for each, not negative, not all zero"):
            compare(lennard_jones(13), x, weights, truth, torch.tensor([1.0]))
