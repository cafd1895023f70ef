"""Docking into a small peptide: the same energy every time, and boxes and receptors that are none refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from popflow.core import MissingExtraError
from popflow.evolve.oracles import Box, Docking, docking, oracle, read_box

PEPTIDE = "CC(=O)N[C@@H](Cc1ccccc1)C(=O)N[C@@H](CC(=O)O)C(=O)N[C@@H](CO)C(=O)NC"


@pytest.fixture(scope="module")
def receptor(tmp_path_factory) -> str:
    """A tripeptide in one conformation, as a rigid receptor."""
    path = tmp_path_factory.mktemp("receptor") / "peptide.pdbqt"
    path.write_text("\n".join(line for line in docking.ligand(PEPTIDE).splitlines() if line.startswith("ATOM")) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def box(receptor: str) -> Box:
    center = docking.receptor_atoms(receptor).mean(0)
    return Box(tuple(map(float, center)), (16.0, 16.0, 16.0))  # type: ignore[arg-type]


def test_the_energy_is_the_same_every_time_and_grows_with_the_ligand(receptor: str, box: Box) -> None:
    dock = Docking(receptor, box)
    benzene, ethane = dock("c1ccccc1"), dock("CC")
    assert benzene > ethane > 0
    docking._engine.cache_clear()
    assert Docking(receptor, box)("c1ccccc1") == benzene
    assert dock.energy("CC") == -ethane
    assert oracle(f"vina:{receptor}", box=box) == dock


def test_the_identity_tells_settings_apart(receptor: str, box: Box) -> None:
    dock = Docking(receptor, box)
    assert dock.identity() == Docking(receptor, box).identity()
    assert len({dock.identity(), Docking(receptor, box, seed=2).identity(), Docking(receptor, box, exhaustiveness=2).identity()}) == 3


def test_a_box_outside_the_receptor_is_refused(receptor: str) -> None:
    with pytest.raises(ValueError, match=r"holds no atom of .* move the box to the pocket"):
        Docking(receptor, Box((500.0, 0.0, 0.0), (20.0, 20.0, 20.0)))


@pytest.mark.parametrize("size", [(0.0, 1.0, 1.0), (1.0, 1.0, 200.0), (np.nan, 1.0, 1.0)])
def test_boxes_have_sides(size: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="size="):
        Box((0.0, 0.0, 0.0), size)


def test_receptors_that_are_none_are_refused(tmp_path, box: Box) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Docking(str(tmp_path / "absent.pdbqt"), box)
    (tmp_path / "empty.pdbqt").write_text("REMARK nothing\n")
    with pytest.raises(ValueError, match="has no atoms"):
        Docking(str(tmp_path / "empty.pdbqt"), box)
    (tmp_path / "broken.pdbqt").write_text("ATOM      1  N   TYR    32       x\n")
    with pytest.raises(ValueError, match="without position"):
        Docking(str(tmp_path / "broken.pdbqt"), box)


def test_boxes_are_read_from_configurations_of_vina(tmp_path) -> None:
    file = tmp_path / "conf.txt"
    file.write_text("center_x = 8.970\ncenter_y = 21.132\ncenter_z = 24.193\n\nsize_x = 30.0 # angstroms\nsize_y = 30.0\nsize_z = 30.0\n")
    assert read_box(file) == Box((8.97, 21.132, 24.193), (30.0, 30.0, 30.0))
    file.write_text("center_x = 8.970\n")
    with pytest.raises(ValueError, match="no usable value"):
        read_box(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_box(tmp_path / "absent.txt")


def test_docking_needs_a_box() -> None:
    with pytest.raises(ValueError, match="has no box"):
        oracle("vina:receptor.pdbqt")


@pytest.mark.parametrize("package", ["vina", "meeko"])
def test_without_its_packages_the_install_line_is_given_before_any_call(package: str, receptor: str, box: Box, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'popflow\[chem\]'"):
        Docking(receptor, box)
