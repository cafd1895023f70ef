"""Parallel-tempered Hamiltonian Monte Carlo against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from popflow.core import Streams, autocorrelation_time, parallel_tempering


def trap(x: Tensor) -> tuple[Tensor, Tensor]:
    """Harmonic, stiffness 2, six degrees of freedom."""
    return x.square().sum((-1, -2)), -2 * x


START = torch.zeros(3, 2, dtype=torch.float64)


def test_a_harmonic_trap_has_its_gaussian_at_every_temperature():
    ladder = (0.5, 1.0, 2.0)
    found = parallel_tempering(trap, ladder, START, sweeps=300, burn=80, rng=Streams(0), chains=64, keep_every=3, step_size=0.2)
    for i, t in enumerate(ladder):
        energy, x = found.energies[:, i], found.at(t)
        sd = math.sqrt(6 / 2) * t  # energy of 6 degrees of freedom: Gamma(3, T)
        error = sd * math.sqrt(autocorrelation_time(energy) / energy.numel())
        assert abs(float(energy.mean()) - 3 * t) < 4 * error
        assert float(energy.std()) == pytest.approx(sd, rel=0.05)
        assert float(x.square().mean()) == pytest.approx(t / 2, rel=0.05)
        assert torch.allclose(trap(found.x[:, -64:])[0], found.energies[-1])  # companions travel with the configurations
    assert bool(((found.acceptance - 0.75).abs() < 0.12).all())
    assert bool((found.exchanged > 0.2).all())


def test_momenta_stay_where_they_are_projected():
    found = parallel_tempering(
        trap, (1.0,), START, sweeps=200, burn=50, rng=Streams(1), chains=64, step_size=0.2, project=lambda p: p - p.mean(-2, keepdim=True)
    )
    assert float(found.x.mean(-2).abs().max()) < 1e-12
    assert float(found.energies.mean()) == pytest.approx(2.0, rel=0.05)  # four degrees of freedom are left
    assert found.exchanged.shape == (0,)


def test_equal_seeds_give_equal_bytes():
    one, two = (parallel_tempering(trap, (1.0, 2.0), START, sweeps=5, burn=5, rng=Streams(3), chains=2, keep_every=1) for _ in range(2))
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
        ({"step_size": 0.0}, "step_size=0.0, wanted a finite number above 0"),
    ],
)
def test_bad_input(changes, message):
    values = {"temperatures": (1.0,), "sweeps": 1, "burn": 0} | changes
    with pytest.raises(ValueError, match=message):
        parallel_tempering(trap, start=START, rng=Streams(0), **values)
