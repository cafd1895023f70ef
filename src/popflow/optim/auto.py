"""Choice of structures within a budget of memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from popflow.optim.options import in_range
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
        max_side: The largest side of a dense factor: a refresh multiplies such matrices, and the first one factorises them, ``side^3`` operations each.
        spare: Numbers of state that are never too many, whatever the ratio; the budget is the larger of both.
    """

    max_state_ratio: float = 1.0
    max_side: int | None = None
    spare: int = 0

    def __post_init__(self):
        if not (isinstance(self.max_state_ratio, (int, float)) and self.max_state_ratio > 0):
            raise ValueError(f"max_state_ratio={self.max_state_ratio!r}, wanted a number above 0. Fix: 1.0 is AdamW's memory.")
        if self.max_side is not None:
            in_range("max_side", self.max_side)
        in_range("spare", self.spare)

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
        ladders = {n: sorted(self._ladder(n), key=lambda structure, n=n: structure.size(n)) for n in {n for _, n in factors}}
        costs = {n: [numbers(structure, n) for structure in ladder] for n, ladder in ladders.items()}
        at = [0] * len(factors)
        used = kept + sum(b * costs[n][0] for b, n in factors)
        used += sum(b * d * p for b, d, p in shapes) if momentum else 0
        budget = max(2 * self.max_state_ratio * count, self.spare)
        if used > budget:
            raise ValueError(
                f"max_state_ratio={self.max_state_ratio}: diagonal factors alone need {used / (2 * count):.3f}. "
                f"Fix: Auto(max_state_ratio={math.ceil(used / count * 50) / 100 + 0.01:.2f})."
            )

        def offer(i: int) -> list[tuple[int, int]]:
            b, n = factors[i]
            return [(b * (costs[n][at[i] + 1] - costs[n][at[i]]), i)] if at[i] + 1 < len(costs[n]) else []

        offers = [one for i in range(len(factors)) for one in offer(i)]
        heapify(offers)
        while offers and used + offers[0][0] <= budget:
            cost, i = offers[0]
            used, at[i] = used + cost, at[i] + 1
            heappop(offers)
            for one in offer(i):
                heappush(offers, one)
        chosen = [ladders[n][k] for (_, n), k in zip(factors, at, strict=True)]
        return list(zip(chosen[::2], chosen[1::2], strict=True))

    def _ladder(self, n: int) -> list[Structure]:
        richer: list[Structure] = [BlockDiagonal(32), Hierarchical(32, 32)]
        dense: list[Structure] = [Dense()] if self.max_side is None or n <= self.max_side else []
        return [Diagonal(), *(one for one in richer if n < one.size(n) < n * n), *dense]
