"""How an optimiser treats each parameter: which structures, and how many numbers of state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from popflow.optim.preconditioner import Preconditioner
from popflow.optim.structures.structure import Structure


@dataclass(frozen=True)
class Preconditioned:
    """One line of `SINGD.report`: which parameters, which structures, and how many numbers of state."""

    name: str
    parameters: int
    inputs: Structure | None
    outputs: Structure | None
    state: int

    def __str__(self) -> str:
        how = "AdamW" if self.inputs is None else f"{self.inputs} x {self.outputs}"
        return f"{self.name}: {self.parameters} parameters, {how}, {self.state / max(self.parameters, 1):.2f} numbers of state each"


def lines_of(preconditioner: Preconditioner, fallback: Iterable[torch.optim.AdamW | None]) -> list[Preconditioned]:
    """One line per layer and per parameter of the fallback."""
    lines = []
    for batch in preconditioner.batches:
        members = sum(layer.blocks for layer in batch.layers)
        for layer in batch.layers:
            count, state = layer.blocks * layer.d * layer.inputs, batch.size() * layer.blocks // members
            lines.append(Preconditioned(layer.name, count, batch.k.structure, batch.c.structure, state))
    for adamw in filter(None, fallback):
        parameters = adamw.param_groups[0]["params"]
        lines += [Preconditioned(preconditioner.names[p], p.numel(), None, None, 2 * p.numel()) for p in parameters]
    return lines
