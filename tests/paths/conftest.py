"""A molecule for tests: the alanine dipeptide of the examples, in its two minima of amber14/protein.ff14SB.xml without solvent."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from popflow.paths.molecule import Molecule

EXAMPLES = Path(__file__).parents[2] / "examples"


def text(column: int, swap: tuple[int, int] | None = None, mirror: bool = False, scale: float = 1.0) -> str:
    """The text of a PDB file of one state (0 or 1), perhaps with two atoms exchanged, or of its mirror image, or in a wrong unit."""
    rows = [line for line in (EXAMPLES / f"alanine_dipeptide_{'AB'[column]}.pdb").read_text().splitlines() if line.startswith("ATOM")]
    if swap:
        rows[swap[0]], rows[swap[1]] = rows[swap[1]], rows[swap[0]]
    lines = []
    for serial, row in enumerate(rows, 1):
        x, y, z = (scale * float(row[i : i + 8]) for i in (30, 38, 46))
        lines.append(f"ATOM  {serial:5d}{row[11:30]}{-x if mirror else x:8.3f}{y:8.3f}{z:8.3f}{row[54:]}")
    return "\n".join([*lines, "TER", "END", ""])


@pytest.fixture(scope="session")
def pdb() -> Callable[..., str]:
    """The function that writes the text of a file."""
    return text


@pytest.fixture(scope="session")
def files() -> tuple[Path, Path]:
    """The two files."""
    return EXAMPLES / "alanine_dipeptide_A.pdb", EXAMPLES / "alanine_dipeptide_B.pdb"


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
