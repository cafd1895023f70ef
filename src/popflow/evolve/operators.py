"""What every way of making new molecules has in common: parents with scores in, children that name their parents out.

An operator is a function ``operator(parents, n, rng) -> children``. It tries n times and returns what worked, so it may return fewer
than n children, none of them checked against what was seen before: that is the loop's part. It reads its randomness from ``rng`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True, slots=True)
class Parent:
    """A molecule that was scored.

    Attributes:
        smiles: Canonical isomeric SMILES.
        score: The value to be maximised.
    """

    smiles: str
    score: float


@dataclass(frozen=True, slots=True)
class Child:
    """A molecule that an operator proposes.

    Attributes:
        smiles: Canonical isomeric SMILES of a molecule that sanitises.
        operator: Name of what made it, for the credit.
        parents: SMILES of the molecules it was made from.

    Example:
        >>> Child("CCO", "mutation", ("CCN",)).parents
        ('CCN',)
    """

    smiles: str
    operator: str
    parents: tuple[str, ...]


@runtime_checkable
class Operator(Protocol):
    """A way of making children."""

    def __call__(self, parents: Sequence[Parent], n: int, rng: np.random.Generator) -> list[Child]:
        """Return at most ``n`` children of ``parents``, with randomness from ``rng`` alone."""
        ...


def shares_of(operators: Mapping[str, Operator], shares: Mapping[str, float] | None) -> dict[str, float]:
    """Return the shares of operators, which add up to 1; equal ones where none are given.

    Raises:
        ValueError: without operators, for shares that do not fit them, are negative or all zero.
    """
    if not operators:
        raise ValueError("operators is empty, wanted at least one by name.")
    given = dict(shares) if shares is not None else dict.fromkeys(operators, 1.0)
    if given.keys() != operators.keys() or not all(0 <= one < float("inf") for one in given.values()) or sum(given.values()) <= 0:
        raise ValueError(f"shares={given}, wanted one number >= 0 for each of {', '.join(operators)}, not all zero.")
    total = sum(given.values())
    return {name: given[name] / total for name in operators}
