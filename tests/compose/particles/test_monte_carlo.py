"""Ground truth of particle systems against quadrature, and between temperatures."""

import math

import pytest
import torch

from popflow.compose.particles import double_well, lennard_jones, tempered
from popflow.core import Streams, autocorrelation_time


def test_two_lennard_jones_atoms_have_the_energies_of_quadrature():
    system, ladder = lennard_jones(2), (0.8, 2.0)
    found = tempered(
        system, ladder, torch.tensor([[-0.5, 0, 0], [0.5, 0, 0]]), sweeps=250, burn=80, rng=Streams(1), chains=64, step_size=0.05
    )
    r = torch.linspace(0.6, 15.0, 200001, dtype=torch.float64)
    u = 2 * (r**-12 - 2 * r**-6) + r.square() / 4
    for i, t in enumerate(ladder):
        weight = (2 * r.log() - u / t).softmax(0)
        mean, square = float((weight * u).sum()), float((weight * u.square()).sum())
        energy = found.energies[:, i]
        error = math.sqrt((square - mean**2) * autocorrelation_time(energy) / energy.numel())
        assert abs(float(energy.mean()) - mean) < 4 * error


def test_exchange_carries_configurations_and_leaves_both_temperatures_as_they_are():
    """DW-4 at T = 0.5 alone and in a ladder: the same energies."""
    start = torch.tensor([[-2.7, -2.7], [-2.7, 2.7], [2.7, -2.7], [2.7, 2.7]])
    settings = {"sweeps": 140, "burn": 60, "chains": 48, "step_size": 0.12}
    ladder = tempered(double_well(4), (0.5, 1.0, 2.0), start, rng=Streams(0), **settings)
    warm = tempered(double_well(4), (2.0,), start, rng=Streams(1), **settings)
    a, b = ladder.energies[:, 2], warm.energies[:, 0]
    error = math.hypot(*(float(e.std()) * math.sqrt(autocorrelation_time(e) / e.numel()) for e in (a, b)))
    assert abs(float(a.mean() - b.mean())) < 4 * error
    assert float(ladder.energies[:, 0].mean()) < float(ladder.energies[:, 1].mean()) < float(a.mean())


def test_particles_that_start_on_one_another_or_do_not_fit_are_refused():
    for start, message in ((torch.zeros(4, 2), "coincide"), (torch.zeros(3, 2), "wanted")):
        with pytest.raises(ValueError, match=message):
            tempered(double_well(4), (1.0,), start, sweeps=1, burn=0, rng=Streams(0))
