"""Pairs of PDB files: what is read from good ones, and the errors of bad ones, which name the atoms."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from popflow.core.errors import MissingExtraError, PopflowWarning
from popflow.core.streams import Streams
from popflow.paths.config import PathConfig
from popflow.paths.coordinates import ZMatrix
from popflow.paths.forcefield import TorchForce
from popflow.paths.molecule import Molecule, minimise, system_of
from popflow.paths.scene import path, scene

PDB = Callable[..., str]


def written(folder: Path, *texts: str) -> list[Path]:
    paths = [folder / f"{number}.pdb" for number in range(len(texts))]
    for file, text in zip(paths, texts, strict=True):
        file.write_text(text)
    return paths


def test_a_pair_of_files_is_read(dipeptide: Molecule) -> None:
    assert dipeptide.a.shape == (22, 3)
    assert dipeptide.names[8] == "ALA2:CA"
    assert len(dipeptide.bonds) == 21
    assert float(dipeptide.masses.sum() / 3) == pytest.approx(144.17, abs=0.02)
    assert float(dipeptide.a.mean(0).abs().max()) < 1e-12
    energies = TorchForce(dipeptide.system)(torch.stack([dipeptide.a, dipeptide.b]).flatten(1))
    assert energies.tolist() == pytest.approx([-87.000, -85.037], abs=0.02)  # minima of ff14SB without solvent


def test_minimisation_ends_where_no_force_is_left(dipeptide: Molecule) -> None:
    moved = dipeptide.a + 0.005 * torch.randn(22, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    force = TorchForce(dipeptide.system).force(minimise(dipeptide.system, moved, 0.1).reshape(1, -1))
    assert float(force.square().mean().sqrt()) < 0.1
    again = dipeptide.minimised(0.1)
    assert float((again.a - dipeptide.a).abs().max()) < 2e-3


def test_a_molecule_that_a_box_has_cut_is_refused(dipeptide: Molecule) -> None:
    cut = dipeptide.b.clone()
    cut[16:] += torch.tensor([2.4, 0.0, 0.0], dtype=torch.float64)  # the last residue, by a box of 24 angstroms
    with pytest.raises(ValueError, match=r"the bond ALA2:C to NME3:N is 2\.\d+ nm long in B, wanted below 0\.28"):
        Molecule.of(dipeptide.topology, dipeptide.system, dipeptide.a, cut)


def test_other_order_element_and_count_are_refused(tmp_path: Path, pdb: PDB) -> None:
    a, b = written(tmp_path, pdb(0), pdb(1, swap=(10, 14)))
    with pytest.raises(ValueError, match="atom 11 is ALA2:CB in A and ALA2:C in B"):
        Molecule.from_pdb(a, b)
    a, b = written(tmp_path, pdb(0), pdb(1, swap=(0, 1)))
    with pytest.raises(ValueError, match=r"atom 1 is ACE1:H1 \(H\) in A and ACE1:CH3 \(C\) in B"):
        Molecule.from_pdb(a, b)
    a, b = written(tmp_path, pdb(0), "\n".join(pdb(1).splitlines()[:21]))
    with pytest.raises(ValueError, match="A has 22 atoms and B has 21"):
        Molecule.from_pdb(a, b)


def test_mirror_images_and_exchanged_hydrogens_are_refused(tmp_path: Path, pdb: PDB) -> None:
    a, b = written(tmp_path, pdb(0), pdb(1, mirror=True))
    with pytest.raises(ValueError, match=r"has one handedness in A and the other in B"):
        Molecule.from_pdb(a, b)
    text = pdb(1).replace(" HB1 ", " HBx ").replace(" HB2 ", " HB1 ").replace(" HBx ", " HB2 ").splitlines()
    text[11], text[12] = text[12], text[11]
    a, b = written(tmp_path, pdb(0), "\n".join(text))
    with pytest.raises(ValueError, match=r"ALA2:CB with ALA2:CA, ALA2:HB1, ALA2:HB2, ALA2:HB3"):
        Molecule.from_pdb(a, b)


def test_units_and_rough_states_are_noticed(tmp_path: Path, pdb: PDB) -> None:
    a, b = written(tmp_path, pdb(0, scale=0.1), pdb(1, scale=0.1))
    with pytest.raises(ValueError, match=r"kJ/mol/nm, wanted below 1e\+06. Fix: PDB files hold angstroms"):
        Molecule.from_pdb(a, b)
    a, b = written(tmp_path, pdb(0), pdb(1, scale=1.02))
    with pytest.warns(PopflowWarning, match=r"state B: .* not a minimum. Fix: molecule.minimised"):
        Molecule.from_pdb(a, b)


def test_a_residue_without_parameters_is_named(files: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"amber14/tip3p.xml has no parameters for residue ACE1"):
        Molecule.from_pdb(*files, forcefield=["amber14/tip3p.xml"])
    with pytest.raises(ValueError, match=r"forcefield=\['amber15.xml'\]"):
        Molecule.from_pdb(*files, forcefield=["amber15.xml"])


def test_constraints_virtual_sites_and_boxes_are_refused(dipeptide: Molecule) -> None:
    import openmm
    from openmm import app

    topology = dipeptide.topology
    field: Any = app.ForceField("amber14/protein.ff14SB.xml")
    held = field.createSystem(topology, nonbondedMethod=app.NoCutoff, constraints=app.HBonds, removeCMMotion=False)
    with pytest.raises(ValueError, match=r"12 constraints .* constraints=None"):
        TorchForce(held)
    with pytest.raises(ValueError, match="centre of mass"):
        TorchForce(field.createSystem(topology, nonbondedMethod=app.NoCutoff))
    with pytest.raises(ValueError, match="cutoff"):
        TorchForce(field.createSystem(topology, nonbondedMethod=app.CutoffNonPeriodic, removeCMMotion=False))
    system = system_of(topology, ["amber14/protein.ff14SB.xml"])
    system.getForce([type(f).__name__ for f in system.getForces()].index("NonbondedForce")).setNonbondedMethod(openmm.NonbondedForce.PME)
    with pytest.raises(ValueError, match="periodic box"):
        TorchForce(system)
    system = system_of(topology, ["amber14/protein.ff14SB.xml"])
    system.setParticleMass(0, 0.0)
    system.setVirtualSite(0, openmm.TwoParticleAverageSite(1, 2, 0.5, 0.5))
    with pytest.raises(ValueError, match="particle 0 is a virtual site"):
        TorchForce(system)
    system = system_of(topology, ["amber14/protein.ff14SB.xml"])
    system.addForce(openmm.CustomExternalForce("x"))
    with pytest.raises(ValueError, match=r"CustomExternalForce, .*OpenMMForce"):
        TorchForce(system)


def test_without_openmm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, files: tuple[Path, Path]) -> None:
    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(MissingExtraError, match=r"popflow\[md\]"):
        Molecule.from_pdb(*files)


def test_mixtures_begin_on_paths_that_a_molecule_can_take(files) -> None:
    config = PathConfig(a=files[0], b=files[1], components=2)
    made = scene(config)
    start = path(config, made, Streams(0))
    mean = start.moments(torch.linspace(0, made.time, 21, dtype=torch.float64)).mean.detach()
    assert float((mean[10, 0] - mean[10, 1]).abs().max()) > 1e-3  # nm: they are told apart
    assert float(made.energy(mean).mean()) < 1e4  # kJ/mol


def test_massless_particles_and_strange_windings_are_refused(dipeptide: Molecule) -> None:

    system = copy.deepcopy(dipeptide.system)
    system.setParticleMass(3, 0.0)
    with pytest.raises(ValueError, match="particle 3 has no mass"):
        TorchForce(system)
    table = ZMatrix.of(22, dipeptide.bonds)
    with pytest.raises(ValueError, match="winding for atom 99"):
        table.between(dipeptide.a, dipeptide.b, torch.tensor([0.5]), winding={99: 1})
