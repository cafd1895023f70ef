r"""The parts that objectives of molecules are made of: properties, similarities to a target, and the bells and ramps that turn them into [0, 1].

A term is a function of a molecule. With :math:`G(x;\mu,\sigma)=\exp(-(x-\mu)^2/2\sigma^2)`, several terms are joined by their geometric mean.
The definitions are those of GuacaMol, Brown et al., J. Chem. Inf. Model. 59, 1096 (2019), as PMO uses them.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from popflow.evolve.molecules import Chem, DataStructs, parse, rdFingerprintGenerator

Term = Callable[[Chem.Mol], float]
Ramp = Callable[[float], float]


def gaussian(mu: float, sigma: float) -> Ramp:
    """Return the bell ``G(x; mu, sigma)``, 1 at mu."""
    return lambda x: math.exp(-0.5 * ((x - mu) / sigma) ** 2)


def at_least(mu: float, sigma: float) -> Ramp:
    """Return 1 above mu and the bell below."""
    bell = gaussian(mu, sigma)
    return lambda x: bell(min(x, mu))


def at_most(mu: float, sigma: float) -> Ramp:
    """Return 1 below mu and the bell above."""
    bell = gaussian(mu, sigma)
    return lambda x: bell(max(x, mu))


def clipped(upper: float) -> Ramp:
    """Return ``x / upper``, at most 1.

    >>> clipped(0.75)(0.375)
    0.5
    """
    return lambda x: min(max(x / upper, 0.0), 1.0)


def of(term: Term, ramp: Ramp) -> Term:
    """Return the term ``ramp(term(molecule))``."""
    return lambda molecule: ramp(term(molecule))


def geometric(*terms: Term) -> Term:
    """Return the geometric mean of terms; 0 as soon as one of them is 0."""
    return lambda molecule: geometric_mean([term(molecule) for term in terms])


def geometric_mean(values: list[float]) -> float:
    """Return the geometric mean of numbers that are not negative.

    >>> round(geometric_mean([0.5, 0.5, 4.0]), 12)
    1.0
    """
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if min(values) > 0 else 0.0


def arithmetic(*terms: Term) -> Term:
    """Return the mean of terms."""
    return lambda molecule: math.fsum(term(molecule) for term in terms) / len(terms)


_FEATURES = rdFingerprintGenerator.GetMorganFeatureAtomInvGen()
_GENERATORS = {
    "ECFP4": rdFingerprintGenerator.GetMorganGenerator(radius=2),
    "ECFP6": rdFingerprintGenerator.GetMorganGenerator(radius=3),
    "FCFP4": rdFingerprintGenerator.GetMorganGenerator(radius=2, atomInvariantsGenerator=_FEATURES),
    "AP": rdFingerprintGenerator.GetAtomPairGenerator(maxDistance=10),
}


def similarity(target: str, kind: str) -> Term:
    """Return the Tanimoto similarity of unfolded counts to a target: ``sum min(a, b) / sum max(a, b)``.

    Args:
        target: SMILES.
        kind: "ECFP4", "ECFP6" (Morgan of radius 2, 3), "FCFP4" (Morgan of pharmacophore features) or "AP" (atom pairs up to 10 bonds apart).
    """
    counts = _GENERATORS[kind].GetSparseCountFingerprint
    wanted = counts(parse(target))
    return lambda molecule: DataStructs.TanimotoSimilarity(wanted, counts(molecule))


def pharmacophore_similarity(target: str) -> Term:
    """Return the Tanimoto similarity of two-dimensional pharmacophore bits, after Gobbi and Poppinger (1998)."""
    from rdkit.Chem.Pharm2D import Generate, Gobbi_Pharm2D

    def bits(molecule: Chem.Mol) -> DataStructs.SparseBitVect:
        return Generate.Gen2DFingerprint(molecule, Gobbi_Pharm2D.factory)

    wanted = bits(parse(target))
    return lambda molecule: DataStructs.TanimotoSimilarity(wanted, bits(molecule))


def has(smarts: str) -> Term:
    """Return 1 for a molecule that contains a pattern, else 0."""
    pattern = Chem.MolFromSmarts(smarts)
    return lambda molecule: float(molecule.HasSubstructMatch(pattern))


def lacks(smarts: str) -> Term:
    """Return 0 for a molecule that contains a pattern, else 1."""
    return of(has(smarts), lambda x: 1.0 - x)


def isomer(formula: str) -> Term:
    """Return how near a molecule is to a formula: geometric mean of a bell of width 1 for each element and one of width 2 for all atoms.

    >>> isomer("C2H6O")(parse("COC"))
    1.0
    """
    wanted = {element: int(count or 1) for element, count in re.findall(r"([A-Z][a-z]?)(\d*)", formula)}

    def score(molecule: Chem.Mol) -> float:
        counts = dict.fromkeys(wanted, 0)
        total = 0
        for atom in molecule.GetAtoms():
            hydrogens = atom.GetTotalNumHs()
            counts[atom.GetSymbol()] = counts.get(atom.GetSymbol(), 0) + 1
            counts["H"] = counts.get("H", 0) + hydrogens
            total += 1 + hydrogens
        bells = [gaussian(count, 1.0)(counts[element]) for element, count in wanted.items()]
        return geometric_mean([*bells, gaussian(sum(wanted.values()), 2.0)(total)])

    return score


@lru_cache(maxsize=1)
def _accessibility() -> Term:
    """The scorer that RDKit ships beside the package."""
    from rdkit.Chem import RDConfig

    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("popflow_sascorer", path)
    if spec is None or spec.loader is None or not path.exists():
        raise FileNotFoundError(f"RDKit came without {path}, which scores synthetic accessibility. Fix: pip install rdkit, from its wheel.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.calculateScore


def synthetic_accessibility(molecule: Chem.Mol) -> float:
    """Return the SA score, 1 (easy to make) to 10, after Ertl and Schuffenhauer (2009).

    >>> synthetic_accessibility(parse("CCO")) < 3
    True
    """
    return float(_accessibility()(molecule))


def count_of(element: str) -> Term:
    """Return how many atoms of an element a molecule has."""
    return lambda molecule: float(np.sum([atom.GetSymbol() == element for atom in molecule.GetAtoms()]))
