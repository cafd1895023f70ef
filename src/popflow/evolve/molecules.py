"""Molecules as text: parsing, the canonical key, checks of files of seeds, fingerprints.

The key of a molecule is its canonical isomeric SMILES: two spellings of one molecule are one call of an oracle, two stereoisomers are two.
This is the file through which the room imports RDKit. Its log is switched off on import, and so in every worker process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from os import PathLike
from pathlib import Path

import numpy as np

from popflow.core.errors import MissingExtraError

try:
    from rdkit import Chem, DataStructs, rdBase
    from rdkit.Chem import rdFingerprintGenerator
except ImportError as error:  # pragma: no cover - the development environment has it
    raise MissingExtraError("rdkit is not installed and is needed for molecules. Fix: pip install 'popflow[chem]'.") from error

rdBase.DisableLog("rdApp.*")

MOST_ATOMS = 150
"""Heavy atoms of the largest molecule that is taken."""

LONGEST = 2000
"""Characters of the longest SMILES that is parsed."""

_SHOWN = 8


def parse(smiles: str, most_atoms: int = MOST_ATOMS) -> Chem.Mol:
    """Return the sanitised molecule of a SMILES, without the numbers of atom maps, or say what is wrong with it.

    Args:
        smiles: One connected molecule.
        most_atoms: Heavy atoms allowed.

    Raises:
        TypeError: when it is no text.
        ValueError: when it is empty, too long, no molecule, a salt or mixture (a dot), has dummy atoms, or has too many atoms.

    Example:
        >>> parse("c1ccccc1").GetNumAtoms()
        6
        >>> parse("CCO.Cl")
        Traceback (most recent call last):
        ValueError: SMILES 'CCO.Cl' has 2 parts, wanted one molecule: keep the largest part, without the salt.
    """
    if not isinstance(smiles, str):
        raise TypeError(f"smiles={smiles!r}, wanted text such as 'CCO'.")
    text = smiles.strip()
    shown = repr(text if len(text) <= 60 else f"{text[:57]}...")
    if not text:
        raise ValueError("SMILES is empty, wanted a molecule such as 'CCO'.")
    if len(text) > LONGEST:
        raise ValueError(f"SMILES {shown} has {len(text)} characters, wanted at most {LONGEST}.")
    if any(character.isspace() for character in text):
        raise ValueError(f"SMILES {shown} has blanks, wanted one molecule without a name.")
    molecule = Chem.MolFromSmiles(text)
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise ValueError(f"SMILES {shown} is no molecule that RDKit can read: {_reason(text)}.")
    parts = len(Chem.GetMolFrags(molecule)) if "." in text else 1
    if parts > 1:
        raise ValueError(f"SMILES {shown} has {parts} parts, wanted one molecule: keep the largest part, without the salt.")
    heavy = molecule.GetNumHeavyAtoms()
    if heavy < molecule.GetNumAtoms() and any(atom.GetAtomicNum() == 0 for atom in molecule.GetAtoms()):
        raise ValueError(f"SMILES {shown} has a dummy atom (*), wanted a whole molecule.")
    if heavy > most_atoms:
        raise ValueError(f"SMILES {shown} has {heavy} heavy atoms, wanted at most {most_atoms}.")
    for atom in molecule.GetAtoms() if ":" in text else ():
        atom.SetAtomMapNum(0)
    return molecule


def _reason(smiles: str) -> str:
    """Why RDKit refuses a SMILES: grammar, or the first chemical problem."""
    molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None:
        return "its grammar is wrong (an unclosed ring or bracket, an unknown symbol)"
    problems = Chem.DetectChemistryProblems(molecule)
    return problems[0].Message().rstrip(".") if problems else "it cannot be sanitised"


def canonical(smiles: str, most_atoms: int = MOST_ATOMS) -> str:
    """Return the key of a molecule, its canonical isomeric SMILES; raises as `parse` does.

    >>> canonical("OCC"), canonical("C(C)O")
    ('CCO', 'CCO')
    >>> canonical("N[C@@H](C)C(=O)O") == canonical("N[C@H](C)C(=O)O")
    False
    """
    return Chem.MolToSmiles(parse(smiles, most_atoms))


def canonical_or_none(smiles: str, most_atoms: int = MOST_ATOMS) -> str | None:
    """Return the key of a molecule, or None where `parse` would raise: for text that a model wrote.

    >>> canonical_or_none("C1CC") is None
    True
    """
    try:
        return canonical(smiles, most_atoms)
    except (ValueError, TypeError):
        return None


def seeds(lines: Iterable[str], source: str = "seeds", most_atoms: int = MOST_ATOMS) -> list[str]:
    """Return the different molecules of the lines of a file, canonical, in their order.

    A line holds a SMILES, then perhaps a name after a blank or a tab. Empty lines, lines that begin with ``#`` and a first line ``smiles``
    are passed over.

    Raises:
        ValueError: naming the bad lines by their numbers, or when there is no molecule at all.

    Example:
        >>> seeds(["CCO ethanol", "OCC", "", "c1ccccc1"])
        ['CCO', 'c1ccccc1']
        >>> seeds(["CCO", "C1CC"])
        Traceback (most recent call last):
        ValueError: seeds has 1 line that is no usable molecule. Fix or delete it:
          line 2: SMILES 'C1CC' is no molecule that RDKit can read: its grammar is wrong (an unclosed ring or bracket, an unknown symbol).
    """
    found: dict[str, int] = {}
    bad: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or line.lstrip().startswith("#") or (number == 1 and words[0].lower() == "smiles"):
            continue
        try:
            found.setdefault(canonical(words[0], most_atoms), number)
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        rest = [] if len(bad) <= _SHOWN else [f"and {len(bad) - _SHOWN} more"]
        what = "1 line that is no usable molecule. Fix or delete it" if len(bad) == 1 else f"{len(bad)} lines that are no usable molecules"
        raise ValueError("\n  ".join([f"{source} has {what}:", *bad[:_SHOWN], *rest]))
    if not found:
        raise ValueError(f"{source} holds no molecule, wanted one SMILES a line.")
    return list(found)


def read_seeds(path: str | PathLike[str], most_atoms: int = MOST_ATOMS) -> list[str]:
    """Return the different molecules of a file of SMILES, as `seeds` does; errors name the file and its lines.

    Raises:
        ValueError: when there is no such file, it is no text, or a line of it is no usable molecule.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"seeds {str(file)!r} cannot be read ({error}), wanted a text file with one SMILES a line.") from error
    return seeds(text.splitlines(), source=str(file), most_atoms=most_atoms)


@lru_cache(maxsize=16)
def _morgan(radius: int, size: int) -> rdFingerprintGenerator.FingerprintGenerator64:
    return rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=size)


def count_fingerprints(smiles: Sequence[str], radius: int = 2, size: int = 2048) -> np.ndarray:
    """Return the folded Morgan counts ``[n, size]`` (float32) of molecules: how often each circular fragment occurs.

    >>> count_fingerprints(["CCO", "CCN"]).shape
    (2, 2048)
    """
    generator = _morgan(radius, size)
    rows = [generator.GetCountFingerprintAsNumPy(parse(one)) for one in smiles]
    return np.asarray(rows, dtype=np.float32).reshape(len(rows), size)


@lru_cache(maxsize=20000)
def bit_fingerprint(smiles: str, radius: int = 2, size: int = 2048) -> DataStructs.ExplicitBitVect:
    """Return the Morgan bit vector (ECFP4 by default) of a molecule."""
    return _morgan(radius, size).GetFingerprint(parse(smiles))


def tanimoto(smiles: str, others: Sequence[str]) -> np.ndarray:
    """Return the Tanimoto similarities ``[n]`` (float64) of one molecule to others, on ECFP4 bits.

    >>> tanimoto("CCO", ["OCC"])
    array([1.])
    """
    return np.asarray(DataStructs.BulkTanimotoSimilarity(bit_fingerprint(smiles), [bit_fingerprint(one) for one in others]))
