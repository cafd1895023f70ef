"""Parallel-tempered Hamiltonian Monte Carlo against closed forms, and between temperatures."""

import math

import pytest
import torch

from popflow.compose.particles import Cluster, autocorrelation_time, double_well, lennard_jones, tempered
from popflow.core import Streams

TRAP = Cluster("trap", 4, 2, lambda r2: (0 * r2, 0 * r2), trap=2.0)
START = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])


def test_a_harmonic_trap_has_its_gaussian_at_every_temperature():
    ladder = (0.5, 1.0, 2.0)
    found = tempered(TRAP, ladder, START, sweeps=400, burn=100, rng=Streams(0), chains=64, keep_every=3, step_size=0.2)
    for i, t in enumerate(ladder):
        energy, x = found.energies[:, i], found.at(t)
        sd = math.sqrt(6 / 2) * t  # energy of 6 degrees of freedom: Gamma(3, T)
        error = sd * math.sqrt(autocorrelation_time(energy) / energy.numel())
        assert abs(float(energy.mean()) - 3 * t) < 4 * error
        assert float(energy.std()) == pytest.approx(sd, rel=0.05)
        assert float(x.square().mean()) == pytest.approx(t / 2 * 3 / 4, rel=0.05)  # T/k in 3/4 of the dimensions
        assert float(x.mean(1).abs().max()) < 1e-9
    assert bool(((found.acceptance - 0.75).abs() < 0.12).all())
    assert bool((found.exchanged > 0.2).all())


def test_two_lennard_jones_atoms_have_the_energies_of_quadrature():
    system, ladder = lennard_jones(2), (0.8, 2.0)
    found = tempered(
        system, ladder, torch.tensor([[-0.5, 0, 0], [0.5, 0, 0]]), sweeps=500, burn=150, rng=Streams(1), chains=64, step_size=0.05
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
    settings = {"sweeps": 250, "burn": 100, "chains": 48, "step_size": 0.12}
    ladder = tempered(double_well(4), (0.5, 1.0, 2.0), start, rng=Streams(0), **settings)
    warm = tempered(double_well(4), (2.0,), start, rng=Streams(1), **settings)
    a, b = ladder.energies[:, 2], warm.energies[:, 0]
    error = math.hypot(*(float(e.std()) * math.sqrt(autocorrelation_time(e) / e.numel()) for e in (a, b)))
    assert abs(float(a.mean() - b.mean())) < 4 * error
    assert float(ladder.energies[:, 0].mean()) < float(ladder.energies[:, 1].mean()) < float(a.mean())
    assert warm.exchanged.shape == (0,)


def test_companions_belong_to_the_configurations_they_travel_with():
    found = tempered(lennard_jones(3), (1.0, 1.5, 2.0), torch.eye(3) - 1 / 3, sweeps=20, burn=5, rng=Streams(0), chains=4, keep_every=20)
    assert torch.allclose(lennard_jones(3).energy(found.x), found.energies[-1], rtol=1e-9)


def test_equal_seeds_give_equal_bytes():
    one, two = (tempered(TRAP, (1.0, 2.0), START, sweeps=5, burn=5, rng=Streams(3), chains=2, keep_every=1) for _ in range(2))
    assert torch.equal(one.x, two.x)


def test_the_autocorrelation_time_of_a_first_order_process():
    """An AR(1) process with coefficient a has time (1 + a) / (1 - a)."""
    noise, a = torch.randn(20000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.8
    x = noise.clone()
    for k in range(1, len(x)):
        x[k] = a * x[k - 1] + noise[k]
    assert autocorrelation_time(x) == pytest.approx(9.0, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperatures": (2.0, 1.0)}, "strictly increasing"),
        ({"temperatures": ()}, "at least one"),
        ({"temperatures": (-1.0,)}, r"temperatures\[0\]=-1.0"),
        ({"sweeps": 0}, "sweeps=0, wanted at least 1"),
        ({"start": torch.zeros(4, 2)}, "lie on one another"),
        ({"start": torch.zeros(3, 2)}, "wanted"),
    ],
)
def test_bad_input(changes, message):
    values = {"temperatures": (1.0,), "start": START, "sweeps": 1, "burn": 0} | changes
    with pytest.raises(ValueError, match=message):
        tempered(TRAP, rng=Streams(0), **values)
