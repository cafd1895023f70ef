"""Many diagonal factors of unequal sides as one row of numbers: a refresh is then a few operations for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from popflow.optim.kronecker import Side, within_reach


class Diagonals:
    """The numbers of many pairs of `Diagonal` factors, end to end; the sides that it is made of become views of it.

    Args:
        sides: ``k`` and ``c`` of each batch in turn, all of one dtype (at least float32) on one device.

    Attributes:
        value: All ``k`` and ``c``.
        momentum: Their momenta, or None.
        squares: Their squares.
        segment: The matrix that each number is of, int32.
        metrics: Views of the squares that multiply gradients ``[B, d, p]``: ``k^2 [B, 1, p]``, ``c^2 [B, d, 1]`` of each batch in turn.
    """

    def __init__(self, sides: Sequence[Side]):
        shapes = [tuple(side.value[0].shape) for side in sides]
        counts = [batch * n for batch, n in shapes]
        self.value = torch.cat([side.value[0].reshape(-1) for side in sides])
        parts = [side.momentum[0].reshape(-1) for side in sides if side.momentum is not None]
        self.momentum = torch.cat(parts) if parts else None
        self.views = [part.view(shape) for part, shape in zip(self.value.split(counts), shapes, strict=True)]
        for side, view in zip(sides, self.views, strict=True):
            side.value = (view,)
        if self.momentum is not None:
            for side, part, shape in zip(sides, self.momentum.split(counts), shapes, strict=True):
                side.momentum = (part.view(shape),)
        self.momenta = [side.momentum for side in sides]
        self.squares = self.value.square()
        parts = zip(self.squares.split(counts), shapes, strict=True)
        self.metrics = [part.view(shape).unsqueeze(1 + i % 2) for i, (part, shape) in enumerate(parts)]
        self.sides, self.partner = [], []
        for i, (batch, n) in enumerate(shapes):
            other = batch if i % 2 == 0 else -batch
            self.partner += [len(self.sides) + b + other for b in range(batch)]
            self.sides += [n] * batch
        sizes = torch.tensor(self.sides, device=self.value.device)
        self.segment = torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32, device=sizes.device), sizes)

    def hold(self, sides: Sequence[Side]) -> bool:
        """Whether these sides still are views of these numbers."""
        return len(sides) == len(self.views) and all(
            side.value[0] is view and side.momentum is momentum
            for side, view, momentum in zip(sides, self.views, self.momenta, strict=True)
        )

    def refresh(
        self, heard: Sequence[Tensor], scales: Sequence[float], *, lr_cov: float, damping: float, alpha1: float, adaptive: bool
    ) -> bool:
        """Do what `popflow.optim.kronecker.refresh` does for all pairs, in place.

        Args:
            heard: ``diag U [B, p]``, ``diag G [B, d]`` of each batch in turn, up to ``scales``.
            scales: One number for each matrix, in the same order.
            lr_cov: ``beta``.
            damping: ``lambda``.
            alpha1: Riemannian momentum.
            adaptive: SINGD rather than IKFAC.

        Returns:
            Whether all curvature was within reach; if not, nothing has changed.
        """
        value, count = self.value, len(self.sides)
        step = torch.cat([*(part.reshape(-1) for part in heard), value]).view(2, -1).mul_(value)
        step[0].mul_(value)
        sums, squares = value.new_zeros(2, count).index_add_(1, self.segment, step).tolist()
        traces = [scale * total / n for scale, total, n in zip(scales, sums, self.sides, strict=True)]
        if not all(within_reach(own, traces[j], value.dtype) for own, j in zip(traces, self.partner, strict=True)):
            return False
        weights, ridges = [scale / 2 for scale in scales], [damping / 2] * count
        if adaptive:
            weights = [weight * traces[j] for weight, j in zip(weights, self.partner, strict=True)]
            ridges = [ridge * squares[j] / self.sides[j] for ridge, j in zip(ridges, self.partner, strict=True)]
        step *= value.new_tensor([weights, ridges]).index_select(1, self.segment)
        step = step.sum(0).sub_(0.5)
        if self.momentum is not None:
            step = torch.add(step, self.momentum, alpha=alpha1, out=self.momentum)
        bound = value.new_ones(count).scatter_reduce_(0, self.segment.long(), step.abs(), "amax")
        value.addcmul_(value, step / bound.index_select(0, self.segment), value=-lr_cov)
        torch.mul(value, value, out=self.squares)
        return True
