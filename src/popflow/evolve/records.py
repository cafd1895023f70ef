"""What a run of evolution keeps: the molecules in the order of their calls, and what each operator achieved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scored:
    """A molecule that was asked for, and where it came from.

    Attributes:
        smiles: Its key.
        values: What the oracle gave; None when it gave no value.
        operator: Name of the operator in the mixture, "fallback", "start" or "fresh".
        parents: What it was made from.
        generation: 0 for the start.
    """

    smiles: str
    values: tuple[float, ...] | None
    operator: str
    parents: tuple[str, ...]
    generation: int


@dataclass(slots=True)
class Credit:
    """What an operator achieved.

    Attributes:
        asked: Attempts.
        made: Children that it returned.
        refused: Children that the constraint refused.
        repeated: Children that were known.
        fallbacks: Attempts without a child, left to the fallback.
        scored: Children that were scored.
        improved: Scored children better than all their parents.
        entered: Scored children that entered the population.
        records: Scored children better than everything before.
    """

    asked: int = 0
    made: int = 0
    refused: int = 0
    repeated: int = 0
    fallbacks: int = 0
    scored: int = 0
    improved: int = 0
    entered: int = 0
    records: int = 0
