"""Molecules: read from text, files, ASE and PySCF; what cannot be is refused, what is suspicious is questioned."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from popflow.core import PopflowWarning, Streams
from popflow.electrons import LocalEnergy, Molecule, MoleculeError, Trap, exact_state, quantum_dot
from popflow.electrons.config import GroundConfig
from popflow.electrons.molecule import BOHR
from popflow.electrons.references import reference
from popflow.electrons.report import spins

WATER = "O 0 0 0.117; H 0 0.757 -0.469; H 0 -0.757 -0.469"


def test_all_sources_give_the_same_molecule(tmp_path: Path) -> None:
    ase, gto = pytest.importorskip("ase"), pytest.importorskip("pyscf.gto")
    text = Molecule.of(WATER)
    (tmp_path / "water.xyz").write_text("3\nwater\n" + WATER.replace("; ", "\n") + "\n")
    rows = [row.split() for row in WATER.split("; ")]
    atoms = ase.Atoms("OHH", [[float(one) for one in row[1:]] for row in rows])
    others = (
        Molecule.from_xyz(tmp_path / "water.xyz"),
        Molecule.from_ase(atoms),
        Molecule.from_pyscf(gto.M(atom=WATER, basis="sto-3g", verbose=0)),
        Molecule.of("; ".join(" ".join([row[0], *(f"{float(one) / BOHR!r}" for one in row[1:])]) for row in rows), unit="bohr"),
    )
    for other in others:
        assert other.symbols == text.symbols
        assert torch.allclose(other.centres, text.centres, rtol=1e-7)
        assert (other.up, other.down) == (5, 5)
    assert abs(text.nuclear_repulsion - float(gto.M(atom=WATER, basis="sto-3g", verbose=0).energy_nuc())) < 1e-6


def test_spins_of_atoms_follow_hund_and_molecules_are_low() -> None:
    assert [(Molecule.of(atom).up, Molecule.of(atom).down) for atom in ("H", "Li", "N", "O", "Ne", "Cr")] == [
        (1, 0), (2, 1), (5, 2), (5, 3), (5, 5), (15, 9),
    ]  # fmt: skip
    assert Molecule.of("N 0 0 0; N 0 0 1.1").up == 7
    assert Molecule.of("Li", charge=1).up == 1


@pytest.mark.parametrize(
    ("atom", "charge", "unpaired"),
    [("N", 1, 2), ("O", 1, 3), ("O", -1, 1), ("C", -1, 3), ("F", -1, 0), ("S", 1, 3), ("Ar", 2, 2)],
)
def test_lone_ions_follow_hund_and_assumed_spins_are_told(atom: str, charge: int, unpaired: int) -> None:
    ion = Molecule.of(atom, charge=charge)
    assert ion.up - ion.down == unpaired
    assert spins(ion) == f"{ion.up} up, {ion.down} down"
    assert "spin 0 assumed" in spins(Molecule.of("O 0 0 0; O 0 0 1.21"))
    assert "assumed" not in spins(Molecule.of("O 0 0 0; O 0 0 1.21", spin=2))


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("Xx 0 0 0", {}, "unknown element 'Xx'"),
        ("H 0 0", {}, "wanted an element and three numbers"),
        ("H 0 0 zero", {}, "wanted an element and three numbers"),
        ("H 0 0 inf; H 0 0 0", {}, "three finite coordinates"),
        ("H 0 0 0; H 0 0 0.01", {}, "two atoms at one place"),
        ("N 0 0 0; N 0 0 0.053; H 0 3 0; H 0 3 0.048", {}, "two atoms at one place"),
        ("H", {"charge": 1}, "wanted at least one electron"),
        ("He", {"spin": 1}, "spin=1 is impossible with 2 electrons"),
        ("He", {"spin": 4}, "spin=4 is impossible"),
        ("", {}, "0 symbols"),
        ("H", {"charge": -2}, "makes 3 electrons for 1 protons, wanted at most 2"),
        ("He", {"charge": True}, "charge=True, wanted a whole number"),
        ("Li", {"spin": True}, "spin=True, wanted a whole number"),
        ("H2O", {}, "unknown element 'H2O'.*every atom with its place"),
        ("CO", {}, "'CO' may be a formula.*'Co'"),
    ],
)
def test_what_cannot_be_is_refused(text: str, options: dict, said: str) -> None:
    with pytest.raises(MoleculeError, match=said):
        Molecule.of(text, **options)


def test_capital_letters_are_an_element_where_it_can_be_nothing_else() -> None:
    assert Molecule.of("HE").symbols == ("He",)
    assert Molecule.of("Co").electrons == 27
    assert Molecule.of("CL 0 0 0; H 0 0 1.27").symbols == ("Cl", "H")
    assert Molecule.of("H", charge=-1).electrons == 2  # bound, as no H2- is


def test_a_crystal_is_no_molecule() -> None:
    ase = pytest.importorskip("ase")
    with pytest.raises(MoleculeError, match="wanted a molecule"):
        Molecule.from_ase(ase.Atoms("Li", [[0.0, 0.0, 0.0]], cell=[3.0, 3.0, 3.0], pbc=True))


def test_settings_without_effect_are_refused() -> None:
    without: list[tuple[dict[str, Any], str]] = [
        ({"pretrain": "none"}, "pretrain='none'"),
        ({"network": "slater-jastrow"}, "slater-jastrow"),
        ({"start": Path("run")}, "--start"),
        ({"molecule": "dot"}, "dot"),
    ]
    for options, said in without:
        unused: dict[str, Any]
        for unused in ({"basis": "sto-6g"}, {"pretrain_steps": 9}):
            with pytest.raises(ValueError, match=f"has no effect (with|on) {said}|has no effect with network='{said}'"):
                GroundConfig(**{"molecule": "He", **options, **unused})
    assert GroundConfig("He", basis="sto-6g", pretrain_steps=9).file is None
    assert GroundConfig("water.XYZ").file == Path("water.XYZ")


def test_a_file_that_is_no_xyz_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoleculeError, match="give the path of an XYZ file"):
        Molecule.from_xyz(tmp_path / "absent.xyz")
    (tmp_path / "short.xyz").write_text("2\n\nH 0 0 0\n")
    with pytest.raises(MoleculeError, match="says 2 atoms and has 1"):
        Molecule.from_xyz(tmp_path / "short.xyz")
    (tmp_path / "text.xyz").write_text("hydrogen\n")
    with pytest.raises(MoleculeError, match="first line is not the number"):
        Molecule.from_xyz(tmp_path / "text.xyz")


def test_comments_of_xyz_files_may_be_anything_and_further_geometries_are_told(tmp_path: Path) -> None:
    frame = "2\n\xe9tat\nH 0 0 0\nH 0 0 0.74\n".encode("latin-1")
    (tmp_path / "one.xyz").write_bytes(frame)
    (tmp_path / "two.xyz").write_bytes(frame + frame)
    one = Molecule.from_xyz(tmp_path / "one.xyz")
    with pytest.warns(PopflowWarning, match="its first geometry was read"):
        assert Molecule.from_xyz(tmp_path / "two.xyz") == one


def test_one_electron_at_a_nucleus_has_the_energy_of_hydrogen_times_the_charge_squared() -> None:
    for atom, charge, energy in (("H", 0, -0.5), ("He", 1, -2.0), ("Be", 3, -8.0)):
        ion = Molecule.of(atom, charge=charge)
        assert reference(ion) == energy
        x = torch.randn(5, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(LocalEnergy(exact_state(ion), ion)(x).energy, torch.tensor(energy, dtype=torch.float64))
    assert reference(Molecule.of("Li", charge=1)) is None


def test_suspicious_units_are_questioned_and_usual_distances_are_not() -> None:
    with pytest.warns(PopflowWarning, match="closer than any bond"):
        Molecule.of("H 0 0 0; H 0 0 0.74", unit="bohr")
    with pytest.warns(PopflowWarning, match=r"O1 and H2 are 0\.957 bohr apart, closer than any bond"):
        Molecule.of(WATER, unit="bohr")
    methylamine = "C 0.0517 0.7044 0; N 0.0517 -0.7596 0; H -0.9417 1.1762 0; H -0.4582 -1.0994 0.8124; H -0.4582 -1.0994 -0.8124; "
    with pytest.warns(PopflowWarning, match="closer than any bond"):
        Molecule.of(methylamine + "H 0.5928 1.0567 0.8807; H 0.5928 1.0567 -0.8807", unit="bohr")
    with pytest.warns(PopflowWarning, match="were these bohr, read as Angstrom"):
        Molecule.of("Li 0 0 0; Li 0 0 9", unit="angstrom")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Molecule.of("H 0 0 0; H 0 0 1.4", unit="bohr")
        Molecule.of("N 0 0 0; N 0 0 1.098")
        Molecule.of(WATER)
        Molecule.of(methylamine + "H 0.5928 1.0567 0.8807; H 0.5928 1.0567 -0.8807")
        Molecule.of("F 0 0 0; H 0 0 0.917")


def test_electrons_begin_at_their_atoms_with_spins_alternating() -> None:
    far = Molecule.of("H 0 0 0; H 0 0 10", unit="bohr")
    x = far.start(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    assert sorted(x[0, :, 2].tolist()) == [0.0, 10.0]
    hydride = Molecule.of("Li 0 0 0; H 0 0 3.015", unit="bohr")
    zeros = torch.zeros(1, 4, 3, dtype=torch.float64)
    assert sorted(hydride.start(zeros, zeros)[0, :, 2].tolist()) == [0.0, 0.0, 0.0, 3.015]
    assert Molecule.of("He", spin=2).start(torch.zeros(1, 2, 3), Streams(0).normal("x", torch.zeros(1, 2, 3))).shape == (1, 2, 3)


def test_traps_are_checked_and_references_are_known() -> None:
    with pytest.raises(ValueError, match="omega=0"):
        Trap(0.0, 3, 1, 0)
    with pytest.raises(ValueError, match="electrons=0"):
        Trap(1.0, 3, 0, 0)
    with pytest.raises(ValueError, match="has no closed form"):
        exact_state(Molecule.of("Li"))
    assert reference(quantum_dot()) == 3.0
    assert reference(Molecule.of("Li 0 0 0; H 0 0 3.015", unit="bohr")) == -8.070548
    assert reference(Molecule.of("He", spin=2)) is None
    assert reference(Molecule.of("Li", charge=1)) is None
