"""Exponential moving averages of parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def ema_weight(step: int, decay: float) -> float:
    """Weight of the newest parameters after ``step`` steps: ``1 - min(decay, step / (step + 9))``.

    The early average forgets fast, so that it does not remember the first, random parameters: at step 1 it weighs the new ones 0.9.

    >>> ema_weight(1, 0.999), round(ema_weight(100_000, 0.999), 6)
    (0.9, 0.001)
    """
    return 1 - min(decay, step / (step + 9))


def ema_update(ema: Mapping[str, Tensor], params: Mapping[str, Tensor], weight: Tensor | float) -> None:
    """Move the average in place: ``ema += weight (params - ema)``.

    >>> ema = {"a": torch.zeros(1)}
    >>> ema_update(ema, {"a": torch.ones(1)}, 0.25)
    >>> ema["a"].item()
    0.25
    """
    with torch.no_grad():
        for name, average in ema.items():
            average.lerp_(params[name], weight)
