"""Trajectories of molecules, read back by mdtraj."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch

from popflow.paths.molecule import Molecule
from popflow.paths.trajectory import film, to_mdtraj, write


@pytest.fixture
def path(dipeptide: Molecule) -> torch.Tensor:
    s = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None, None]
    return (dipeptide.a + s * (dipeptide.b - dipeptide.a)).flatten(1)


@pytest.mark.parametrize("ending", ["pdb", "dcd", "xtc"])
def test_files_open_in_mdtraj_with_topology_and_units(tmp_path: Path, dipeptide: Molecule, path: torch.Tensor, ending: str) -> None:
    times = torch.linspace(0, 1, 6)
    top = write(tmp_path / "top.pdb", path[:1], dipeptide.topology)
    file = write(tmp_path / f"path.{ending}", path, dipeptide.topology, times)
    read = mdtraj.load(str(file)) if ending == "pdb" else mdtraj.load(str(file), top=str(top))
    assert read.xyz.shape == (6, 22, 3)
    assert np.abs(read.xyz - path.reshape(6, 22, 3).numpy()).max() < 1e-3  # nm
    assert [f"{atom.residue.name}{atom.residue.resSeq}:{atom.name}" for atom in read.topology.atoms] == dipeptide.names
    assert read.topology.n_bonds == 21
    _, phi = mdtraj.compute_phi(read)
    assert np.degrees(phi[0, 0]) == pytest.approx(-151.6, abs=1.0)
    if ending == "xtc":
        assert np.allclose(read.time, times.numpy(), atol=1e-3)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted({"top.pdb", f"path.{ending}"})


def test_bad_trajectories_are_refused(tmp_path: Path, dipeptide: Molecule, path: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"unknown format of a trajectory '.trr'"):
        write(tmp_path / "path.trr", path, dipeptide.topology)
    with pytest.raises(ValueError, match=r"wanted \[frames, 66\]"):
        to_mdtraj(path[:, :60], dipeptide.topology)
    with pytest.raises(ValueError, match="1 values that are not finite"):
        to_mdtraj(path.index_fill(1, torch.tensor([3]), float("nan"))[:1], dipeptide.topology)
    with pytest.raises(ValueError, match="times has shape"):
        to_mdtraj(path, dipeptide.topology, torch.zeros(3))


def test_film_is_an_animated_png(dipeptide: Molecule, path: torch.Tensor) -> None:
    from PIL import Image

    uri = film(path, dipeptide.elements, dipeptide.bonds, frames=5)
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.is_animated  # pyright: ignore[reportAttributeAccessIssue]
        assert image.n_frames == 5  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="elements has 2 symbols for 22 atoms"):
        film(path, ["C", "H"], [])
