"""A molecule for tests: alanine dipeptide in its two minima of amber14/protein.ff14SB.xml without solvent, as PDB files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from popflow.paths.molecule import Molecule

# name, residue, element, positions in angstrom at C5 (A) and at C7ax (B)
DIPEPTIDE = """
H1   ACE H   -2.880  -0.896   2.592   -2.470  -0.029   2.777
CH3  ACE C   -2.627   0.163   2.581   -2.585   0.291   1.743
H2   ACE H   -2.729   0.574   3.585   -2.656   1.376   1.693
H3   ACE H   -3.287   0.696   1.899   -3.489  -0.152   1.326
C    ACE C   -1.196   0.330   2.126   -1.396  -0.174   0.937
O    ACE O   -0.375   0.858   2.863   -1.564  -0.928  -0.012
N    ALA N   -0.904  -0.118   0.908   -0.205   0.283   1.330
H    ALA H   -1.643  -0.509   0.343   -0.211   0.895   2.129
CA   ALA C    0.415  -0.025   0.281    1.117   0.022   0.731
HA   ALA H    0.904   0.888   0.622    1.834   0.605   1.309
CB   ALA C    1.262  -1.227   0.724    1.494  -1.451   0.947
HB1  ALA H    2.260  -1.160   0.291    2.521  -1.615   0.619
HB2  ALA H    0.791  -2.155   0.397    0.833  -2.099   0.370
HB3  ALA H    1.352  -1.234   1.812    1.415  -1.706   2.005
C    ALA C    0.294   0.046  -1.253    1.329   0.477  -0.734
O    ALA O   -0.727  -0.347  -1.818    2.387   1.023  -1.036
N    NME N    1.343   0.536  -1.925    0.353   0.294  -1.630
H    NME H    2.147   0.833  -1.393   -0.478  -0.195  -1.310
C    NME C    1.395   0.664  -3.380    0.425   0.694  -3.033
H1   NME H    1.267  -0.317  -3.842    0.583   1.772  -3.101
H2   NME H    0.587   1.315  -3.721    1.263   0.187  -3.516
H3   NME H    2.352   1.086  -3.691   -0.501   0.430  -3.545
"""


def text(column: int, swap: tuple[int, int] | None = None, mirror: bool = False, scale: float = 1.0) -> str:
    """The text of a PDB file of one state (0 or 1), perhaps with two atoms exchanged, or of its mirror image, or in a wrong unit."""
    rows = [line.split() for line in DIPEPTIDE.strip().splitlines()]
    if swap:
        rows[swap[0]], rows[swap[1]] = rows[swap[1]], rows[swap[0]]
    number = {"ACE": 1, "ALA": 2, "NME": 3}
    lines = []
    for serial, (name, residue, element, *numbers) in enumerate(rows, 1):
        x, y, z = (scale * float(one) for one in numbers[3 * column : 3 * column + 3])
        lines.append(
            f"ATOM  {serial:5d} {name if len(name) > 3 else ' ' + name:4s} {residue:3s} A{number[residue]:4d}    "
            f"{-x if mirror else x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {element:>2s}"
        )
    return "\n".join([*lines, "TER", "END", ""])


@pytest.fixture(scope="session")
def pdb() -> Callable[..., str]:
    """The function that writes the text of a file."""
    return text


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The two files."""
    folder = tmp_path_factory.mktemp("dipeptide")
    for name, column in (("A", 0), ("B", 1)):
        (folder / f"{name}.pdb").write_text(text(column))
    return folder / "A.pdb", folder / "B.pdb"


@pytest.fixture(scope="session")
def dipeptide(files: tuple[Path, Path]) -> Molecule:
    """The molecule without solvent."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # both states are minima
        return Molecule.from_pdb(*files)


@pytest.fixture(scope="session")
def solvated(files: tuple[Path, Path]) -> Molecule:
    """The molecule in OBC2 solvent."""
    return Molecule.from_pdb(*files, forcefield=("amber14/protein.ff14SB.xml", "implicit/obc2.xml"), warn=False)
