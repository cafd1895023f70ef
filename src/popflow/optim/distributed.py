"""Curvature averaged over the processes of `torch.distributed`."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from popflow.optim.layer_batch import Curvature


def distributed() -> bool:
    """Whether there is more than one process."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def average(process_group: Any, curvature: Curvature) -> Curvature:
    """Average over all processes, in one message; a layer is present where any process recorded it, and rows are counted over all."""
    present, rows, count = curvature.present, curvature.rows, torch.distributed.get_world_size(process_group)
    parts = [
        part * part.new_tensor(scales).view(-1, *[1] * (part.ndim - 1))
        for h, scales in ((curvature.h_k, curvature.scale_k), (curvature.h_c, curvature.scale_c))
        for part in h
    ]
    counts = parts[0].new_tensor([*map(float, present), *map(float, rows)])
    message = torch.cat([counts, *(part.flatten() for part in parts)])
    # gloo's thread lets go of the message only with the interpreter's lock: at the end of a program there is none, and it would abort
    held = sys.getrefcount(message)
    torch.distributed.all_reduce(message, group=process_group)
    end = time.monotonic() + 1
    while message.device.type == "cpu" and sys.getrefcount(message) > held and time.monotonic() < end:
        time.sleep(0)
    numbers, *sums = message.split([len(counts), *(part.numel() for part in parts)])
    means = [(total / count).view(part.shape) for total, part in zip(sums, parts, strict=True)]
    flags, totals = numbers.split([len(present), len(rows)])
    ones, first = [1.0] * len(rows), len(curvature.h_k)
    return Curvature(tuple(means[:first]), tuple(means[first:]), ones, ones, [*map(round, totals.tolist())], (flags > 0).tolist())
