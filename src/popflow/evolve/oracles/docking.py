"""Docking with AutoDock Vina: the energy of the best pose of a molecule in a box of a receptor.

A molecule gets hydrogens as its SMILES implies them, a conformer by distance geometry and MMFF94, and is docked flexibly into a rigid receptor. The
energy is that of Vina's scoring function, in kcal/mol, and grows with size: it ranks molecules, it is no affinity.

Source: Eberhardt, Santos-Martins, Tillack and Forli, "AutoDock Vina 1.2.0", J. Chem. Inf. Model. 61, 3891 (2021).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from popflow.core.checks import at_least_one
from popflow.core.errors import MissingExtraError
from popflow.evolve.molecules import Chem, parse

LARGEST_SIDE = 126.0
"""Length of the longest box, in angstroms."""


@dataclass(frozen=True, slots=True)
class Box:
    """Where a ligand may lie, in angstroms.

    Attributes:
        center: Centre ``(x, y, z)``.
        size: Lengths of the sides.

    Raises:
        ValueError: for other than three numbers, or a side that is not positive or longer than 126.
    """

    center: tuple[float, float, float]
    size: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name, values in (("center", self.center), ("size", self.size)):
            if len(values) != 3 or not np.isfinite(values).all():
                raise ValueError(f"{name}={values!r}, wanted three finite numbers, in angstroms.")
        if not all(0 < side <= LARGEST_SIDE for side in self.size):
            raise ValueError(f"size={self.size!r}, wanted sides above 0 and up to {LARGEST_SIDE:g} angstroms.")

    def holds(self, points: np.ndarray) -> np.ndarray:
        """Return which points ``[n, 3]`` lie in the box, ``[n]``."""
        return np.all(np.abs(points - np.array(self.center)) <= np.array(self.size) / 2, axis=1)


def read_box(path: str | PathLike[str]) -> Box:
    """Return the box of a configuration file of Vina, with lines such as ``center_x = 8.97`` and ``size_x = 30``.

    Raises:
        ValueError: when there is no such file, or one of the six values is missing or no number.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"box {str(path)!r} cannot be read ({error}), wanted a configuration file of Vina.") from error
    found = {name.strip(): value.split("#")[0].strip() for name, mark, value in (line.partition("=") for line in lines) if mark}
    try:
        center, size = (tuple(float(found[f"{kind}_{axis}"]) for axis in "xyz") for kind in ("center", "size"))
    except (KeyError, ValueError) as error:
        raise ValueError(f"box {str(path)!r} has no usable value ({error}), wanted center_x, _y, _z and size_x, _y, _z.") from error
    return Box(center, size)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Docking:
    """The oracle ``docking(smiles) -> minus the energy of the best pose``, in kcal/mol: the larger, the better.

    The same inputs, seed, exhaustiveness and version of Vina give the same energy. The maps of the receptor are computed at the first call in each
    process. One call uses one core.

    Args:
        receptor: Rigid receptor, as PDBQT.
        box: Where the ligand may lie.
        exhaustiveness: Independent searches for a pose. Vina's own default is 8; 1 is for screening many molecules.
        seed: Seed of the conformer and of the search.

    Raises:
        ValueError: when the receptor cannot be read, has no atoms, or none of them lies in the box; by a call, for text that is no molecule.
        MissingExtraError: without vina and meeko.
        RuntimeError: by a call, when a molecule gets no conformer or no pose.
    """

    receptor: str
    box: Box
    exhaustiveness: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        at_least_one(exhaustiveness=self.exhaustiveness, seed=self.seed)
        _imported()
        atoms = receptor_atoms(self.receptor)
        if not self.box.holds(atoms).any():
            low, high = (tuple(map(float, np.round(corner, 1))) for corner in (atoms.min(0), atoms.max(0)))
            raise ValueError(
                f"box with center={self.box.center} and size={self.box.size} holds no atom of {self.receptor!r}, whose atoms lie between {low} and "
                f"{high}. Fix: move the box to the pocket; both are in angstroms and in the frame of the receptor."
            )

    def energy(self, smiles: str) -> float:
        """Return the energy of the best pose, in kcal/mol."""
        engine = _engine(self)
        engine.set_ligand_from_string(ligand(smiles, self.seed))
        engine.dock(exhaustiveness=self.exhaustiveness, n_poses=1)
        energies = np.asarray(engine.energies(n_poses=1))
        if not energies.size:
            raise RuntimeError(f"Vina found no pose of {smiles!r} in the box. Fix: make it larger.")
        return float(energies[0, 0])

    def __call__(self, smiles: str) -> float:
        """Return minus the energy of the best pose, in kcal/mol."""
        return -self.energy(smiles)

    def identity(self) -> str:
        """Return what fixes the energies: digest of the receptor, box, exhaustiveness, seed and versions."""
        digest = hashlib.sha256(Path(self.receptor).read_bytes()).hexdigest()
        versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("vina", "meeko", "rdkit"))
        return f"{digest} {self.box.center} {self.box.size} exhaustiveness {self.exhaustiveness} seed {self.seed} {versions}"


def receptor_atoms(path: str | PathLike[str]) -> np.ndarray:
    """Return the positions ``[atoms, 3]`` in a PDBQT file, in angstroms.

    Raises:
        ValueError: when there is no such file, or no atom in it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"receptor {str(path)!r} cannot be read ({error}), wanted a PDBQT file.") from error
    try:
        rows = [[float(line[at : at + 8]) for at in (30, 38, 46)] for line in lines if line.startswith(("ATOM", "HETATM"))]
    except ValueError as error:
        raise ValueError(f"receptor {str(path)!r} has an atom without position ({error}), wanted a PDBQT file.") from error
    if not rows:
        raise ValueError(f"receptor {str(path)!r} has no atoms, wanted a PDBQT file, made by mk_prepare_receptor.py of meeko for instance.")
    return np.array(rows)


def ligand(smiles: str, seed: int = 1) -> str:
    """Return a molecule with a conformer as PDBQT text.

    Raises:
        MissingExtraError: without vina and meeko.
        RuntimeError: when it gets no conformer or has no atom types.
    """
    meeko, _ = _imported()
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    molecule = Chem.AddHs(parse(smiles))
    if rdDistGeom.EmbedMolecule(molecule, randomSeed=seed) < 0:
        raise RuntimeError(f"no conformer of {smiles!r} was found.")
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
        rdForceFieldHelpers.MMFFOptimizeMolecule(molecule)
    text, fine, reason = meeko.PDBQTWriterLegacy.write_string(meeko.MoleculePreparation().prepare(molecule)[0])
    if not fine:
        raise RuntimeError(f"meeko cannot write {smiles!r}: {reason}")
    return text


@lru_cache(maxsize=4)
def _engine(docking: Docking) -> Any:
    """Vina with a receptor and the maps of its box, one for each process."""
    _, vina = _imported()
    engine = vina.Vina(sf_name="vina", cpu=1, seed=docking.seed, verbosity=0)
    engine.set_receptor(docking.receptor)
    engine.compute_vina_maps(center=list(docking.box.center), box_size=list(docking.box.size))
    return engine


def _imported() -> tuple[Any, Any]:
    """The packages meeko and vina."""
    try:
        return importlib.import_module("meeko"), importlib.import_module("vina")
    except ImportError as error:
        raise MissingExtraError(f"docking needs vina and meeko ({error}). Fix: pip install 'popflow[chem]'.") from error
