"""Denoising losses of pipelines, which say how wide a step of any length is (`popflow.compose.backward_kernel`)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from popflow.compose.backward_kernel import LossTable, measure_alone
from popflow.compose.target import Expert

_HIGHEST, _LOWEST, _PARTICLES = 8.0, 0.25, 2


class MeasuredLoss:
    """Loss of a network, measured once, on samples of its own, when a step first asks for it: ``loss(sigma)``.

    Latents and pixels have a variance near one, so the loss is ``L ~ 1/sigma^2`` above sigma = 8, where the levels of pipelines differ most; it is measured
    below, at levels a factor of two apart: 24 rows of the network. All prompts share it. It depends on the pipeline alone, not on the run.

    Args:
        expert: Makes the expert that is measured, without a prompt.
    """

    def __init__(self, expert: Callable[[], Expert]):
        self.expert = expert
        self.table: LossTable | None = None

    def __call__(self, sigma: float) -> float:
        """Return ``L(sigma)``."""
        if self.table is None:
            expert = self.expert()
            like = torch.empty(0, device=getattr(expert, "device", "cpu"))
            self.table = measure_alone(expert, _HIGHEST, _LOWEST, particles=_PARTICLES, like=like)
        return self.table(sigma)
