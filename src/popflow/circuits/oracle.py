"""The oracle of a search: the cost of networks, memoised and counted, from a table, from data or from hardware."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from popflow.circuits.cost import check_table
from popflow.circuits.space import check_bits, codes_of
from popflow.core.checks import untouched
from popflow.runs import oracle


class Oracle(oracle.Oracle[Tensor]):
    """Memoised cost of networks, ``oracle(bits [S, n]) -> [S]`` in float64; see `popflow.runs.oracle.Oracle`.

    Args:
        function: ``bits [S, n] (uint8) -> [S]``.
        n: Bits of a network.

    Raises:
        ValueError: on what are not bits, and when the function returns another shape, values that are not finite, or other values the
            second time.

    Example:
        >>> oracle = Oracle(lambda bits: bits.sum(1).double(), n=3)
        >>> oracle(torch.tensor([[0, 1, 1], [0, 1, 1], [1, 0, 0]], dtype=torch.uint8)).tolist()
        [2.0, 2.0, 1.0]
        >>> oracle.calls, oracle.evaluations, oracle.best_cost, oracle.best_bits.tolist()
        (3, 2, 1.0, [1, 0, 0])
    """

    def __init__(self, function: Callable[[Tensor], Tensor], n: int):
        super().__init__(partial(untouched, "the objective", function), keys=lambda rows: [row.tobytes() for row in rows.numpy()])
        self.n = n

    @staticmethod
    def of_table(table: Tensor) -> Oracle:
        """Return an oracle that reads a table ``[2^n]``."""
        return Oracle(lambda bits: table[codes_of(bits)].double(), check_table(table))

    def __call__(self, bits: Tensor) -> Tensor:
        """Return the costs ``[S]`` of networks ``[S, n]``."""
        check_bits(bits, self.n)
        return super().__call__(bits.to("cpu", torch.uint8).contiguous()).to(bits.device)

    @property
    def best_cost(self) -> float:
        """Least cost seen, infinite before the first call."""
        return min(self.known.values(), default=torch.inf)

    @property
    def best_bits(self) -> Tensor:
        """The network ``[n]`` of least cost, the first of several."""
        return torch.frombuffer(bytearray(min(self.known, key=self.known.__getitem__)), dtype=torch.uint8)
