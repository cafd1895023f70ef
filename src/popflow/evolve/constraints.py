"""What a molecule must or must not be, beside its score: patterns, a similarity window, structural alerts, a core that stays, values to hit.

A constraint is a function of a canonical SMILES that returns None for a molecule that is allowed and a reason in words for one that is not. It is
asked before the oracle, so what it refuses costs no call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from popflow.core.errors import unknown
from popflow.evolve.molecules import Chem, canonical, parse, tanimoto

Constraint = Callable[[str], str | None]


def refused(smiles: str, constraints: Sequence[Constraint]) -> str | None:
    """Return the first reason why a molecule is not allowed, or None.

    >>> refused("CCO", [Required("[OX2H]"), Forbidden("[#7]")]) is None
    True
    >>> refused("CCN", [Required("[OX2H]")])
    "lacks the pattern '[OX2H]'"
    """
    return next((reason for constraint in constraints if (reason := constraint(smiles)) is not None), None)


@lru_cache(maxsize=256)
def _pattern(smarts: str) -> Chem.Mol:
    pattern = Chem.MolFromSmarts(smarts)
    if pattern is None or pattern.GetNumAtoms() == 0:
        raise ValueError(f"pattern {smarts!r} is no SMARTS that RDKit can read, wanted one such as '[OX2H]'.")
    return pattern


@dataclass(frozen=True, slots=True)
class Required:
    """A substructure that every molecule must have, as SMARTS; raises ValueError for text that is no SMARTS."""

    smarts: str

    def __post_init__(self) -> None:
        _pattern(self.smarts)

    def __call__(self, smiles: str) -> str | None:
        """Return why a molecule is refused, or None."""
        return None if parse(smiles).HasSubstructMatch(_pattern(self.smarts)) else f"lacks the pattern {self.smarts!r}"


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A substructure that no molecule may have, as SMARTS; raises ValueError for text that is no SMARTS."""

    smarts: str

    def __post_init__(self) -> None:
        _pattern(self.smarts)

    def __call__(self, smiles: str) -> str | None:
        """Return why a molecule is refused, or None."""
        return f"has the forbidden pattern {self.smarts!r}" if parse(smiles).HasSubstructMatch(_pattern(self.smarts)) else None


@dataclass(frozen=True, slots=True)
class Similarity:
    """A window of Tanimoto similarity (ECFP4) to a molecule.

    Args:
        reference: SMILES.
        low: Least similarity allowed.
        high: Largest similarity allowed; below 1 it asks for something new.

    Raises:
        ValueError: for no molecule, or a window that is none.

    Example:
        >>> Similarity("CCO", low=0.9)("CCCCN")
        'has similarity 0.21 to CCO, wanted 0.9 to 1'
    """

    reference: str
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        canonical(self.reference)
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"low={self.low!r}, high={self.high!r}, wanted 0 <= low <= high <= 1.")

    def __call__(self, smiles: str) -> str | None:
        """Return why a molecule is refused, or None."""
        found = float(tanimoto(canonical(self.reference), [smiles])[0])
        inside = self.low <= found <= self.high
        return None if inside else f"has similarity {found:.2f} to {self.reference}, wanted {self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Alerts:
    """Structural alerts of a catalogue that RDKit ships: reactive, toxic or interfering groups.

    Args:
        catalogue: "PAINS", "BRENK", "NIH" or "ZINC".

    Example:
        >>> Alerts("BRENK")("CC(=O)Cl")
        'has the BRENK alert acid_halide'
        >>> Alerts("PAINS")("CCO") is None
        True
    """

    catalogue: str = "BRENK"

    def __post_init__(self) -> None:
        if self.catalogue not in ALERTS:
            raise ValueError(unknown("catalogue of alerts", self.catalogue, ALERTS))

    def __call__(self, smiles: str) -> str | None:
        """Return why a molecule is refused, or None."""
        hit = _catalogue(self.catalogue).GetFirstMatch(parse(smiles))
        return None if hit is None else f"has the {self.catalogue} alert {hit.GetDescription()}"


ALERTS = ("PAINS", "BRENK", "NIH", "ZINC")


@lru_cache(maxsize=4)
def _catalogue(name: str):
    from rdkit.Chem import FilterCatalog

    parameters = FilterCatalog.FilterCatalogParams()
    parameters.AddCatalog(getattr(FilterCatalog.FilterCatalogParams.FilterCatalogs, name))
    return FilterCatalog.FilterCatalog(parameters)


@dataclass(frozen=True, slots=True)
class Core:
    """A core that must stay, and that may be decorated at its open places alone.

    Without an attachment point (``*``) in it, the core may carry substituents anywhere. With attachment points, what was added to the core hangs
    from these atoms only.

    Args:
        smiles: The core as SMILES, such as "c1ccc2ncsc2c1" or, with places to decorate, "c1cc(*)c2ncsc2c1".

    Raises:
        ValueError: for text that is no molecule.

    Example:
        >>> Core("c1ccccc1*")("Oc1ccccc1") is None
        True
        >>> Core("c1ccccc1*")("Oc1ccc(C)cc1")
        'decorates the core c1ccccc1* at another place'
        >>> Core("c1ccccc1")("CCO")
        'lacks the core c1ccccc1'
    """

    smiles: str

    def __post_init__(self) -> None:
        _core(self.smiles)

    def __call__(self, smiles: str) -> str | None:
        """Return why a molecule is refused, or None."""
        core, own = _core(self.smiles)
        molecule = Chem.AddHs(parse(smiles))
        matches = molecule.GetSubstructMatches(core, uniquify=False, useChirality=True, maxMatches=MOST_MATCHES)
        if not matches:
            return f"lacks the core {self.smiles}"
        if len(own) == core.GetNumAtoms() or any(_bare(molecule, match, own) for match in matches):
            return None
        return f"decorates the core {self.smiles} at another place"


MOST_MATCHES = 10000


@lru_cache(maxsize=64)
def _core(smiles: str) -> tuple[Chem.Mol, tuple[int, ...]]:
    """The core, whose attachment points match a hydrogen or what hangs there, and the numbers of its own atoms."""
    core = Chem.MolFromSmiles(smiles)
    own = () if core is None else tuple(atom.GetIdx() for atom in core.GetAtoms() if atom.GetAtomicNum())
    if not own:
        raise ValueError(f"core {smiles!r} is no molecule, wanted a SMILES such as 'c1ccccc1*', where * is a place to decorate.")
    for atom in core.GetAtoms():
        if not atom.GetAtomicNum():  # a label such as [1*] or [*:1] is no part of the query
            atom.SetIsotope(0)
            atom.SetAtomMapNum(0)
    stars = Chem.AdjustQueryParameters.NoAdjustments()
    stars.makeDummiesQueries = True
    return Chem.AdjustQueryProperties(core, stars), own


def _bare(molecule: Chem.Mol, match: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Whether the core's own atoms have no heavy neighbours but those of the match."""
    inside = set(match)
    neighbours = (neighbour for place in own for neighbour in molecule.GetAtomWithIdx(match[place]).GetNeighbors())
    return all(neighbour.GetIdx() in inside or neighbour.GetAtomicNum() == 1 for neighbour in neighbours)


@dataclass(frozen=True, slots=True)
class Hit:
    r"""An oracle whose value is to be hit rather than maximised: :math:`\exp(-(f(x) - target)^2 / 2 width^2)`, 1 where it is hit.

    Args:
        oracle: ``smiles -> value``.
        target: The value wanted.
        width: Distance from it that lowers the score to 0.61.

    Raises:
        ValueError: for a target that is not finite or a width that is not positive.

    Example:
        >>> Hit(lambda smiles: float(len(smiles)), target=3.0)("CCO")
        1.0
    """

    oracle: Callable[[str], float]
    target: float
    width: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.target) and math.isfinite(self.width) and self.width > 0):
            raise ValueError(f"target={self.target!r}, width={self.width!r}, wanted finite numbers and a positive width.")

    def __call__(self, smiles: str) -> float:
        """Return how nearly a molecule hits the target, in [0, 1]."""
        return math.exp(-0.5 * ((self.oracle(smiles) - self.target) / self.width) ** 2)
