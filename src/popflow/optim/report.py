"""What an optimiser does to each parameter: by which structures, with how many numbers of state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from popflow.optim.structures.structure import Structure

if TYPE_CHECKING:
    from popflow.optim.singd import SINGD


@dataclass(frozen=True)
class Preconditioned:
    """One line of `SINGD.report`: which parameters, by what, with how many numbers of state."""

    name: str
    parameters: int
    inputs: Structure | None
    outputs: Structure | None
    state: int

    def __str__(self) -> str:
        how = "AdamW" if self.inputs is None else f"{self.inputs} x {self.outputs}"
        return f"{self.name}: {self.parameters} parameters, {how}, {self.state / max(self.parameters, 1):.2f} numbers of state each"


def lines_of(optimizer: SINGD) -> list[Preconditioned]:
    """One line per layer and per parameter of the fallback."""
    lines = []
    for bucket in optimizer.buckets:
        batch = sum(layer.blocks for layer in bucket.layers)
        for layer in bucket.layers:
            count, state = layer.blocks * layer.d * layer.inputs, bucket.size() * layer.blocks // batch
            lines.append(Preconditioned(layer.name, count, bucket.k.structure, bucket.c.structure, state))
    for adamw in filter(None, optimizer.adamw):
        lines += [Preconditioned(optimizer.names[p], p.numel(), None, None, 2 * p.numel()) for p in adamw.param_groups[0]["params"]]
    return lines
