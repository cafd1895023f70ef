"""What every way of making new molecules has in common: parents with scores in, children that name their parents out.

An operator is a function ``operator(parents, n, rng) -> children``. It tries n times and returns what worked, so it may return fewer
than n children, none of them checked against what was seen before: that is the loop's part. It reads its randomness from ``rng`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
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
