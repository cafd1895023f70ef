"""Energies of particle systems: check values of the published conventions, forces, symmetries, and what bad input says."""

import math

import pytest
import torch

from popflow.compose.particles import Cluster, apart, double_well, icosahedron, lennard_jones
from popflow.core import PopflowWarning

SYSTEMS = [lennard_jones(13), lennard_jones(3, depth=0.7, minimum=1.3, trap=0.0), double_well(4), double_well(5)]


def configurations(system: Cluster, rows: int = 6, dtype=torch.float64) -> torch.Tensor:
    """Particles on a jittered lattice, so that none is too near another."""
    generator = torch.Generator().manual_seed(0)
    side = math.ceil(system.particles ** (1 / system.dimensions))
    lattice = torch.cartesian_prod(*[torch.arange(float(side), dtype=dtype)] * system.dimensions)[: system.particles]
    x = system.distance * (lattice + 0.1 * torch.randn(rows, *system.event, generator=generator, dtype=dtype))
    return x - x.mean(1, keepdim=True)


def test_the_relaxed_icosahedron_has_the_check_value_of_ordered_pairs():
    x = icosahedron()
    energy, force = lennard_jones(13).energy_and_force(x)
    assert float(energy) == pytest.approx(-83.09, abs=0.005)
    assert float(force.abs().max()) < 1e-9


def test_each_pair_once_is_another_convention():
    """Half the depth leaves the trap as it is: the wrong convention shows at once in the check value."""
    x = icosahedron()
    trap = float(x.square().sum()) / 2
    whole, half = (float(lennard_jones(13, depth=depth).energy(x)) for depth in (1.0, 0.5))
    assert half == pytest.approx((whole - trap) / 2 + trap, abs=1e-9)
    assert half == pytest.approx(-38.77, abs=0.005)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: f"{system.name}-{system.trap}")
def test_forces_are_minus_the_gradient_and_sum_to_zero(system):
    x = configurations(system).requires_grad_()
    energy, force = system.energy_and_force(x)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    force = force.detach()
    assert torch.allclose(force, -gradient, rtol=1e-9, atol=1e-9)
    assert float(force.sum(1).abs().max()) < 1e-9 * float(force.abs().max())


def test_forces_are_finite_differences_of_the_energy():
    system, h = lennard_jones(13), 1e-6
    x = configurations(system, 1)[0]
    force = system.energy_and_force(x)[1]
    for i, k in ((0, 0), (5, 1), (12, 2)):
        step = torch.zeros_like(x)
        step[i, k] = h
        assert float((system.energy(x - step) - system.energy(x + step)) / (2 * h)) == pytest.approx(float(force[i, k]), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("system", SYSTEMS[::2], ids=lambda system: system.name)
def test_energies_see_neither_order_nor_place_nor_orientation(system):
    x, generator = configurations(system), torch.Generator().manual_seed(1)
    turn, _ = torch.linalg.qr(torch.randn(system.dimensions, system.dimensions, generator=generator, dtype=x.dtype))
    moved = x[:, torch.randperm(system.particles, generator=generator)] @ turn + 3.0
    assert torch.allclose(system.energy(moved), system.energy(x), rtol=1e-9)


def test_leading_dimensions_and_single_precision():
    system = lennard_jones(13)
    x = configurations(system, 6)
    energy, force = system.energy_and_force(x.reshape(2, 3, 13, 3).float())
    assert energy.shape == (2, 3)
    assert force.shape == (2, 3, 13, 3)
    assert torch.allclose(energy.flatten().double(), system.energy(x), rtol=1e-4)
    assert system.energy(x[0]).shape == ()


def test_two_particles_in_the_double_well_have_their_minima_where_the_docstring_says():
    system = double_well(2)
    r = torch.linspace(1, 7, 60001, dtype=torch.float64)
    x = torch.zeros(len(r), 2, 2, dtype=torch.float64)
    x[:, 0, 0] = r
    energy = system.energy(x)
    low = r < 4
    assert float(r[low][energy[low].argmin()]) == pytest.approx(4 - 20**0.5 / 3, abs=1e-4)
    assert float(energy.min()) == pytest.approx(-40 / 9, abs=1e-6)


def test_atoms_on_one_another_have_infinite_energy_and_are_refused_where_it_matters():
    system, x = lennard_jones(13), configurations(lennard_jones(13), 3)
    x[1, 4] = x[1, 9]
    assert float(system.energy(x)[1]) == math.inf
    with pytest.raises(ValueError, match="particles 4 and 9 of configuration 1 coincide"):
        apart(system, x)
    assert apart(system, x[:1]) is not None


def test_uncentred_particles_are_centred_with_a_warning():
    system, x = lennard_jones(13), configurations(lennard_jones(13))
    with pytest.warns(PopflowWarning, match="centre of mass"):
        centred = system.space.check(x + 100.0)
    assert torch.allclose(centred, x, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lennard_jones(1), "particles=1, wanted at least 2"),
        (lambda: lennard_jones(3, depth=0.0), "depth=0.0, minimum=1.0, wanted finite numbers above 0"),
        (lambda: double_well(0), "particles=0"),
        (lambda: lennard_jones(13).energy(torch.zeros(4, 39)), r"wanted \[..., 13, 3\], a configuration of LJ-13"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
