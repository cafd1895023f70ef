"""Gram matrices averaged over processes, as `torch.distributed` runs them."""

from __future__ import annotations

from typing import Any

import torch

from popflow.optim.structures.structure import Factor


def distributed() -> bool:
    """Whether there is more than one process."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def average(process_group: Any, h_k: Factor, h_c: Factor, present: list[bool], rows: list[int]) -> tuple[list[bool], list[int]]:
    """Average the Gram matrices of all processes, in place; a layer is present where any process heard it, and rows are counted over all."""
    told = h_k[0].new_tensor([*map(float, present), *map(float, rows)])
    flat = torch.cat([told, *(part.flatten() for part in (*h_k, *h_c))])
    torch.distributed.all_reduce(flat, group=process_group)
    told, at = flat[: len(told)].tolist(), len(told)
    flat /= torch.distributed.get_world_size(process_group)
    for part in (*h_k, *h_c):
        part.copy_(flat[at : at + part.numel()].view_as(part))
        at += part.numel()
    return [flag > 0 for flag in told[: len(present)]], [round(count) for count in told[len(present) :]]
