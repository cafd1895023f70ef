"""Choice of structures within a budget of memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from popflow.optim.structures.blocks import BlockDiagonal, Dense, Diagonal
from popflow.optim.structures.hierarchical import Hierarchical
from popflow.optim.structures.structure import Structure


@dataclass(frozen=True)
class Auto:
    """Choose the richest structures within a budget of memory.

    Attributes:
        max_state_ratio: State of the whole optimiser relative to AdamW's two numbers per parameter: 1.0 is AdamW's memory, 0.55 about half.
            Every layer starts diagonal; the cheapest upgrades (blocks of 32, hierarchical (32, 32), dense) are taken while they fit. Products of
            dense and diagonal factors that are kept between refreshes count too.
    """

    max_state_ratio: float = 1.0

    def __post_init__(self):
        if not (isinstance(self.max_state_ratio, (int, float)) and self.max_state_ratio > 0):
            raise ValueError(f"max_state_ratio={self.max_state_ratio!r}, wanted a number above 0. Fix: 1.0 is AdamW's memory.")

    def choose(
        self, shapes: list[tuple[int, int, int]], kept: int, *, momentum: bool, factor_momentum: bool
    ) -> list[tuple[Structure, Structure]]:
        """Return (inputs, outputs) structures for layers ``(blocks, d, inputs)``, given that ``kept`` numbers are stored for other parameters.

        Raises:
            ValueError: when even diagonal factors exceed the budget; the message names the smallest ratio that is enough.

        Example:
            >>> Auto(1.0).choose([(1, 64, 9)], 0, momentum=True, factor_momentum=True)
            [(Dense(), Diagonal())]
        """
        copies = 2 if factor_momentum else 1

        def numbers(structure: Structure, n: int) -> int:
            return structure.size(n) * (copies + isinstance(structure, Dense | Diagonal))

        count = sum(b * d * p for b, d, p in shapes) + kept // 2
        factors = [(b, n) for b, d, p in shapes for n in (p, d)]
        ladders = [sorted(_ladder(n), key=lambda structure, n=n: structure.size(n)) for _, n in factors]
        at = [0] * len(factors)
        used = kept + sum(b * numbers(ladder[0], n) for (b, n), ladder in zip(factors, ladders, strict=True))
        used += sum(b * d * p for b, d, p in shapes) if momentum else 0
        budget = 2 * self.max_state_ratio * count
        if used > budget:
            raise ValueError(
                f"max_state_ratio={self.max_state_ratio}: diagonal factors alone need {used / (2 * count):.3f}. "
                f"Fix: Auto(max_state_ratio={math.ceil(used / count * 50) / 100 + 0.01:.2f})."
            )
        while True:
            offers = []
            for i, ((b, n), ladder) in enumerate(zip(factors, ladders, strict=True)):
                if at[i] + 1 < len(ladder):
                    offers.append((b * (numbers(ladder[at[i] + 1], n) - numbers(ladder[at[i]], n)), i))
            if not offers or used + min(offers)[0] > budget:
                break
            cost, i = min(offers)
            used, at[i] = used + cost, at[i] + 1
        chosen = [ladder[k] for ladder, k in zip(ladders, at, strict=True)]
        return list(zip(chosen[::2], chosen[1::2], strict=True))


def _ladder(n: int) -> list[Structure]:
    richer: list[Structure] = [BlockDiagonal(32), Hierarchical(32, 32)]
    return [Diagonal(), *(one for one in richer if n < one.size(n) < n * n), Dense()]
