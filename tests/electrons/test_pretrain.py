"""Hartree-Fock orbitals against PySCF, and the fit of a network to them."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest
import torch

from popflow.core import MissingExtraError, Streams
from popflow.core.checkpoint import load_tensors, save_tensors
from popflow.electrons import HartreeFock, Molecule, MoleculeError, PsiFormer, System, pretrain, quantum_dot
from popflow.electrons.config import GroundConfig
from popflow.electrons.job import wants_hartree_fock
from popflow.electrons.pretrain import _solve
from popflow.electrons.wavefunctions import Jastrow


def test_basis_functions_and_determinants_are_those_of_pyscf(points) -> None:
    pytest.importorskip("pyscf")
    hydride = Molecule.of("Li 0 0 0; H 0 0 3.015", unit="bohr")
    field, x = HartreeFock(hydride), points(hydride, 5)
    mol, solved = _solve(hydride, "cc-pvdz")  # s, p and d
    values = torch.as_tensor(mol.eval_gto("GTOval_sph", x.reshape(-1, 3).numpy())).reshape(5, 4, -1)
    assert torch.allclose(field.atomic_orbitals(x), values, rtol=1e-12, atol=1e-12)
    orbitals = values @ torch.as_tensor(solved.mo_coeff[:, :2])
    log = sum(torch.linalg.slogdet(part).logabsdet for part in (orbitals[:, :2], orbitals[:, 2:]))
    assert isinstance(log, torch.Tensor)
    assert torch.allclose(field(x), log, rtol=1e-10)
    assert abs(field.energy - solved.e_tot) < 1e-8


def test_a_network_comes_near_the_orbitals() -> None:
    pytest.importorskip("pyscf")
    helium, losses = Molecule.of("He"), []
    psi = PsiFormer(helium, width=8, layers=1, heads=2, determinants=1)
    walkers = pretrain(
        psi, helium, HartreeFock(helium), steps=100, batch=64, rng=Streams(0), record=[lambda p: losses.append(p.metrics["loss"])]
    )
    assert losses[-1] < losses[0] / 3
    assert walkers.x.shape[1:] == (2, 3)


def test_a_basis_that_is_unknown_or_too_rich_is_refused() -> None:
    pytest.importorskip("pyscf")
    with pytest.raises(MoleculeError, match="no basis 'cc-pvxx'"):
        HartreeFock(Molecule.of("He"), "cc-pvxx")
    with pytest.raises(MoleculeError, match="no functions for He"):
        HartreeFock(Molecule.of("He"), "")
    with pytest.raises(MoleculeError, match="functions beyond d"):
        HartreeFock(Molecule.of("Be"), "cc-pvtz")


def test_what_is_advised_instead_of_a_rich_basis_has_no_functions_beyond_d(monkeypatch: pytest.MonkeyPatch) -> None:
    gto = pytest.importorskip("pyscf.gto")
    highest = {}
    for basis in ("cc-pvdz", "6-31g", "sto-6g"):
        mol = gto.M(atom="Sc", basis=basis, spin=1, verbose=0)
        highest[basis] = max(mol.bas_angular(k) for k in range(mol.nbas))
        if basis == "cc-pvdz":
            monkeypatch.setattr(import_module("popflow.electrons.pretrain"), "_solve", lambda *_, mol=mol: (mol, None))
    assert highest == {"cc-pvdz": 3, "6-31g": 2, "sto-6g": 2}
    with pytest.raises(MoleculeError, match=r"wanted s, p and d\. Fix: 6-31g or sto-6g"):
        HartreeFock(Molecule.of("Sc"))


def test_orbitals_that_were_kept_are_the_same_and_need_no_calculation(points, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    pytest.importorskip("pyscf")
    boron = Molecule.of("B")
    first = HartreeFock(boron)
    save_tensors(tmp_path / "kept", first.tensors())
    monkeypatch.setitem(sys.modules, "pyscf", None)
    second, x = HartreeFock(boron, kept=load_tensors(tmp_path / "kept")[0]), points(boron, 3)
    assert second.energy == first.energy
    assert torch.allclose(first.orbitals(x), second.orbitals(x), rtol=1e-13, atol=1e-15)


def test_without_pyscf_a_search_begins_at_random_and_hartree_fock_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyscf")
    helium = Molecule.of("He")
    assert wants_hartree_fock(GroundConfig(molecule="He"), helium)
    monkeypatch.setattr("popflow.electrons.job.importlib.util.find_spec", lambda name: None)
    assert not wants_hartree_fock(GroundConfig(molecule="He"), helium)
    monkeypatch.setitem(sys.modules, "pyscf", None)
    with pytest.raises(MissingExtraError, match=r"popflow\[qm\]"):
        HartreeFock(helium)


@pytest.mark.parametrize(("system", "slopes"), [(quantum_dot(), [1.0]), (Molecule.of("He"), [0.5]), (Molecule.of("He", spin=2), [0.25])])
def test_cusps_of_two_electrons_are_those_of_kato_in_two_and_three_dimensions(system: System, slopes: list[float]) -> None:
    assert Jastrow(system).slopes.tolist() == slopes
