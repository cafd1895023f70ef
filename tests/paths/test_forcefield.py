"""The torch force field against OpenMM's Reference platform, and its own derivatives."""

from __future__ import annotations

import openmm
import pytest
import torch
from torch import Tensor

from popflow.paths.forcefield import TorchForce
from popflow.paths.molecule import Molecule, water
from popflow.paths.openmm_force import OpenMMForce


def disturbed(x: Tensor, n: int, noise: float = 0.01) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return x.reshape(1, -1) + noise * torch.randn(n, x.numel(), dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("solvent", ["vacuum", "OBC2"])
@pytest.mark.parametrize("noise", [0.01, 0.05])  # at 0.05 nm atoms sit inside one another's spheres
def test_energy_and_force_agree_with_openmm(dipeptide: Molecule, solvated: Molecule, solvent: str, noise: float) -> None:
    molecule = dipeptide if solvent == "vacuum" else solvated
    x = torch.cat([disturbed(molecule.a, 8, noise), disturbed(molecule.b, 8, noise)])
    energies, forces = OpenMMForce(molecule.system).evaluate(x)
    mine = TorchForce(molecule.system)
    assert float(((mine(x) - energies).abs() / energies.abs().clamp_min(1e3) * 1e3).max()) < 1e-6
    assert float(((mine.force(x) - forces).abs().amax(1) / forces.abs().amax(1)).max()) < 1e-8


def test_force_is_minus_the_gradient_and_its_derivative_is_symmetric(solvated: Molecule) -> None:
    field = TorchForce(solvated.system)
    x = disturbed(solvated.a, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(field(x).sum(), x, create_graph=True)
    force = field.force(x)
    assert float((force + gradient).detach().norm() / gradient.detach().norm()) < 1e-12
    u, v = (disturbed(torch.zeros(66, dtype=torch.float64), 3, 1.0) * k for k in (1.0, 0.5))
    v = v.roll(1, 1)
    (hu,) = torch.autograd.grad(force, x, u, retain_graph=True)
    (hv,) = torch.autograd.grad(force, x, v)
    assert ((hu * v).sum(1) / (hv * u).sum(1)).tolist() == pytest.approx([1.0] * 3, rel=1e-9)
    (double,) = torch.autograd.grad(gradient, x, -u)
    assert float((hu - double).norm() / hu.norm()) < 1e-11


def test_gradcheck_on_four_atoms() -> None:
    system = openmm.System()
    for mass in (1.0, 12.0, 14.0, 16.0):
        system.addParticle(mass)
    bonds, angles, torsions, pairs = (
        openmm.HarmonicBondForce(),
        openmm.HarmonicAngleForce(),
        openmm.PeriodicTorsionForce(),
        openmm.NonbondedForce(),
    )
    for i in range(3):
        bonds.addBond(i, i + 1, 0.14, 300.0)
    angles.addAngle(0, 1, 2, 1.9, 40.0)
    angles.addAngle(1, 2, 3, 1.8, 30.0)
    torsions.addTorsion(0, 1, 2, 3, 2, 0.5, 4.0)
    torsions.addTorsion(0, 1, 2, 3, 3, 0.0, 1.5)
    for charge in (0.4, -0.3, 0.2, -0.3):
        pairs.addParticle(charge, 0.2, 0.3)
    pairs.addException(0, 3, 0.5, 0.25, 0.1)
    pairs.addException(0, 1, 0.0, 0.2, 0.0)
    for force in (bonds, angles, torsions, pairs):
        system.addForce(force)
    field = TorchForce(system)
    x = torch.tensor([[0.0, 0.1, 0.02, 0.1, 0.0, 0.0, 0.2, 0.1, 0.0, 0.25, 0.05, 0.13]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(field, x, eps=1e-6, atol=1e-4)
    assert torch.autograd.gradcheck(field.force, x, eps=1e-6, atol=1e-3)
    energies, forces = OpenMMForce(system).evaluate(x)
    assert float((field(x) - energies).detach().abs().max()) < 1e-10
    assert float((field.force(x) - forces).detach().abs().max()) < 1e-9


def test_energy_and_force_do_not_feel_rotations_and_momentum_is_kept(solvated: Molecule) -> None:
    field = TorchForce(solvated.system)
    x = disturbed(solvated.b, 2)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    turned = (x.reshape(2, 22, 3) @ turn.T + 1.0).flatten(1)
    assert torch.allclose(field(turned), field(x), atol=1e-8)
    force = field.force(x).reshape(2, 22, 3)
    assert torch.allclose(field.force(turned).reshape(2, 22, 3), force @ turn.T, atol=1e-6)
    assert float(force.sum(1).abs().max()) < 1e-8


def test_batches_of_any_shape_and_blocks_are_rows(dipeptide: Molecule) -> None:
    field = TorchForce(dipeptide.system)
    x = disturbed(dipeptide.a, 300)  # more than one block
    whole, rows = field.force(x), torch.cat([field.force(row[None]) for row in x[[0, 150, 299]]])
    assert torch.allclose(whole[[0, 150, 299]], rows, atol=1e-9)
    assert field(x.reshape(3, 100, 66)).shape == (3, 100)
    assert field.force(x[0]).shape == (66,)
    with pytest.raises(ValueError, match="x has 65 coordinates, wanted 3 for each of 22 atoms: 66"):
        field(x[:, 1:])


def test_single_precision_is_close(dipeptide: Molecule) -> None:
    field, x = TorchForce(dipeptide.system), disturbed(dipeptide.a, 8)
    single = TorchForce(dipeptide.system).float()
    force = field.force(x)
    assert float((single.force(x.float()) - force).norm() / force.norm()) < 1e-5


def test_other_solvents_are_refused(dipeptide: Molecule) -> None:
    from popflow.paths.molecule import system_of

    with pytest.raises(ValueError, match=r"not OBC2 .* OpenMMForce"):
        TorchForce(system_of(dipeptide.topology, ["amber14/protein.ff14SB.xml", "implicit/gbn2.xml"]))


def test_openmm_potential_has_the_same_forces_and_hessian_vector_products(solvated: Molecule) -> None:
    potential, field = OpenMMForce(solvated.system), TorchForce(solvated.system)
    x = disturbed(solvated.a, 2).requires_grad_()
    c = disturbed(torch.zeros(66, dtype=torch.float64), 2, 1.0)
    (mine,) = torch.autograd.grad(field.force(x), x, c)
    before = potential.calls
    (theirs,) = torch.autograd.grad(potential.force(x), x, c)
    assert potential.calls - before == 6  # two forces, and two more for each product
    assert float((mine - theirs).norm() / mine.norm()) < 1e-5
    (slope,) = torch.autograd.grad(potential(x).sum(), x)
    assert torch.allclose(slope, -field.force(x).detach(), atol=1e-6)
    with pytest.raises(ValueError, match="platform='TPU', wanted one of Reference"):
        OpenMMForce(solvated.system, platform="TPU")


def test_water_of_the_examples() -> None:
    molecule = water()
    energy = TorchForce(molecule.system)(torch.stack([molecule.a, molecule.b]).flatten(1))
    bonds = torch.stack([x[1:].norm(dim=1) for x in (molecule.a - molecule.a[:1], molecule.b - molecule.b[:1])])
    stretched = 462750.4 / 2 * (bonds - 0.09572).square().sum(1)  # two bonds of TIP3P; the angle is the same
    assert float(energy.diff()) == pytest.approx(float(stretched.diff()), rel=1e-6)
