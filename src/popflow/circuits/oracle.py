"""A cost of bit strings that remembers and counts: what every search asks, whether a table, a network on data or a machine answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from popflow.circuits.cost import check_table
from popflow.circuits.space import check_bits, codes_of


class Oracle:
    """Memoised cost of networks, ``oracle(bits [S, n]) -> [S]`` in float64.

    One evaluation in a hundred is repeated, to find out functions whose answers change; repetitions are not counted.

    Args:
        function: ``bits [S, n] (uint8) -> [S]``.
        n: Bits of a network.

    Attributes:
        calls: Networks asked for.
        evaluations: Different networks evaluated.
        best_cost: Least cost that was ever returned.
        best_bits: Its network, ``[n]``.

    Raises:
        ValueError: when the function returns another shape, values that are not finite, or other values the second time.

    Example:
        >>> oracle = Oracle(lambda bits: bits.sum(1).double(), n=3)
        >>> oracle(torch.tensor([[0, 1, 1], [0, 1, 1], [1, 0, 0]], dtype=torch.uint8)).tolist()
        [2.0, 2.0, 1.0]
        >>> oracle.calls, oracle.evaluations, oracle.best_bits.tolist()
        (3, 2, [1, 0, 0])
    """

    def __init__(self, function: Callable[[Tensor], Tensor], n: int):
        self.function, self.n = function, n
        self.calls = self.evaluations = 0
        self.best_cost, self.best_bits = float("inf"), torch.zeros(n, dtype=torch.uint8)
        self._known: dict[bytes, float] = {}
        self._unchecked = 0.0

    @staticmethod
    def of_table(table: Tensor) -> Oracle:
        """Return an oracle that reads a table ``[2^n]``."""
        return Oracle(lambda bits: table[codes_of(bits)].double(), check_table(table))

    def __call__(self, bits: Tensor) -> Tensor:
        """Return the costs ``[S]`` of networks ``[S, n]``."""
        check_bits(bits, self.n)
        rows = bits.to("cpu", torch.uint8).contiguous()
        keys = [row.tobytes() for row in rows.numpy()]
        fresh = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._known}
        if fresh:
            chosen = rows[sorted(fresh.values())]
            self._known |= zip((keys[i] for i in sorted(fresh.values())), self._ask(chosen).tolist(), strict=True)
            self.evaluations += len(fresh)
            self._repeat(chosen)
        self.calls += len(keys)
        costs = torch.tensor([self._known[key] for key in keys], dtype=torch.float64)
        if keys and float(costs.min()) < self.best_cost:
            self.best_cost, self.best_bits = float(costs.min()), rows[int(costs.argmin())].clone()
        return costs.to(bits.device)

    def _ask(self, rows: Tensor) -> Tensor:
        costs = self.function(rows)
        if tuple(costs.shape) != (len(rows),):
            raise ValueError(
                f"the oracle returned shape {tuple(costs.shape)} for {len(rows)} networks, wanted [{len(rows)}]: one cost each."
            )
        bad = int((~costs.isfinite()).sum())
        if bad:
            raise ValueError(f"the oracle returned {bad} costs that are NaN or infinite for {len(rows)} networks, wanted finite ones.")
        return costs.detach().cpu().double()

    def _repeat(self, rows: Tensor) -> None:
        self._unchecked += len(rows) / 100
        count = min(int(self._unchecked), len(rows))
        if count == 0:
            return
        self._unchecked -= count
        again = self._ask(rows[-count:])
        for row, cost in zip(rows[-count:].numpy(), again.tolist(), strict=True):
            known = self._known[row.tobytes()]
            if abs(cost - known) > 1e-9 * max(1.0, abs(known)):
                text = "".join(map(str, row))
                raise ValueError(f"the oracle is not deterministic: network {text} cost {known:g} first and {cost:g} again. Fix: seed it.")
