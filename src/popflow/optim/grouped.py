"""Factors of one structure but unequal sides as one tensor, a frame: their refresh is then a few operations for all of them.

Small products take longer to start than to do. A structure takes part (`Framed`) by saying where its factors go in a frame, whose other places
are zeros and stay so, and what the operations on them are there. Frames last for one refresh: nothing more is kept than the factors themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from popflow.optim.kronecker import Side, within_reach
from popflow.optim.structures.structure import Factor, Shapes, Structure

_copy_all = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
LARGEST = 2**18
"""Frames of more numbers are not made: the products of factors then take longer than their start (measured on one CPU thread)."""


@runtime_checkable
class Framed(Structure, Protocol):
    """A structure, hashable, whose factors can share a frame ``[T, ...]`` of ``T`` rows: a matrix each, or a block of one."""

    def frame_shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape of a frame for batches of these shapes."""
        ...

    def framed(self, frame: Tensor, shapes: Shapes) -> list[Factor]:
        """Return the factors as views of a frame; matrices follow each other in order."""
        ...

    def framed_diagonal(self, frame: Tensor) -> tuple[Tensor, ...]:
        """Return the stored diagonals as views ``[T, *]``."""
        ...

    def framed_trace(self, frame: Tensor, sides: Tensor) -> Tensor:
        """Return the traces ``[T]``; ``sides [T]`` are those of the matrices."""
        ...

    def framed_square(self, frame: Tensor, sides: Tensor) -> Tensor:
        """`Structure.square` of each row ``[T]``."""
        ...

    def framed_inner(self, frame: Tensor, sides: Tensor) -> Tensor:
        """`Structure.inner`, with zeros outside of the factors."""
        ...

    def framed_product(self, left: Tensor, right: Tensor) -> Tensor:
        """`Structure.multiply`; what it leaves outside of the factors does not matter."""
        ...

    def framed_bound(self, frame: Tensor, sides: Tensor) -> Tensor:
        """`Structure.bound` of each row ``[T]``."""
        ...


@lru_cache(maxsize=64)
def has_frames(kind: type) -> bool:
    """Whether a kind of structure is `Framed`: looking at every method of it takes a while, so that the answer is kept.

    >>> from popflow.optim.structures.blocks import BlockDiagonal, Dense
    >>> has_frames(BlockDiagonal), has_frames(Dense)
    (True, False)
    """
    return issubclass(kind, Framed)


@dataclass(frozen=True)
class Layout:
    """Where factors are in a frame.

    Attributes:
        shape: Of the frame.
        places: Size, strides and offset of each tensor of each factor.
        ones: `Framed.framed_diagonal` of the identities.
        sides: Sides of the matrices that the rows are of ``[T]``; of a block, its own.
        of: Sides of all matrices.
        member: The matrix that each row is of ``[T]``, or None where they are the same.
    """

    shape: tuple[int, ...]
    places: list[tuple[torch.Size, tuple[int, ...], int]]
    ones: tuple[Tensor, ...]
    sides: Tensor
    of: list[int]
    member: Tensor | None

    def views(self, frame: Tensor) -> list[Tensor]:
        """Return all tensors of all factors as views of a contiguous frame."""
        start = frame.storage_offset()
        return [frame.as_strided(size, stride, start + offset) for size, stride, offset in self.places]


@lru_cache(maxsize=64)
def layout(structure: Framed, shapes: Shapes, dtype: torch.dtype, device: str) -> Layout:
    """Lay out batches of factors.

    >>> from popflow.optim.structures.blocks import BlockDiagonal
    >>> layout(BlockDiagonal(2), ((1, 3), (2, 2)), torch.float32, "cpu").member.tolist()
    [0, 0, 1, 2]
    """
    of = [side for batch, side in shapes for _ in range(batch)]
    frame = torch.zeros(structure.frame_shape(shapes), dtype=dtype, device=device)
    views, first = structure.framed(frame, shapes), 1
    for factor, (batch, side) in zip(views, shapes, strict=True):
        for to, part in zip(factor, structure.from_diagonal(frame.new_ones(batch, side)), strict=True):
            to.copy_(part)
    ones = tuple(part.clone() for part in structure.framed_diagonal(frame))
    for factor, (batch, _) in zip(views, shapes, strict=True):
        for part in factor:
            part.copy_(torch.arange(first, first + batch, device=device).view(-1, *[1] * (part.ndim - 1)).expand(part.shape))
        first += batch
    member = frame.flatten(1).amax(1).long() - 1
    blocks = len(member) > len(of)
    sides = torch.cat(ones, 1).sum(1) if blocks else torch.tensor(of, dtype=dtype, device=device)
    places = [(part.shape, part.stride(), int(part.storage_offset())) for factor in views for part in factor]
    return Layout(tuple(frame.shape), places, ones, sides, of, member if blocks else None)


def fits(sides: Sequence[Side]) -> bool:
    """Whether these sides can be refreshed together: one structure that offers it, at least float32, and a small frame."""
    structure: Any = sides[0].structure
    if not has_frames(type(structure)) or any(side.structure != structure for side in sides):
        return False
    if len({(side.value[0].dtype, side.value[0].device) for side in sides}) > 1 or sides[0].value[0].dtype not in (
        torch.float32,
        torch.float64,
    ):
        return False
    return math.prod(structure.frame_shape(_shapes(sides))) <= LARGEST


def _shapes(sides: Sequence[Side]) -> Shapes:
    return tuple((side.value[0].shape[0], side.n) for side in sides)


def refresh_together(
    sides: Sequence[Side], heard: Sequence[Factor], scales: Sequence[float], *, lr_cov: float, damping: float, alpha1: float, adaptive: bool
) -> bool:
    """Do what `popflow.optim.kronecker.refresh` does for many pairs of one structure, in place.

    Args:
        sides: ``k`` and ``c`` of each batch in turn; see `fits`.
        heard: ``P(K^T U K)`` and ``P(C^T G C)`` of each batch in turn, up to ``scales``.
        scales: One number for each matrix, in the same order.
        lr_cov: ``beta``.
        damping: ``lambda``.
        alpha1: Riemannian momentum.
        adaptive: SINGD rather than IKFAC.

    Returns:
        Whether all curvature was within reach; if not, nothing has changed.
    """
    structure: Any = sides[0].structure
    shapes, first = _shapes(sides), sides[0].value[0]
    at, momenta = layout(structure, shapes, first.dtype, str(first.device)), [part for side in sides for part in side.momentum or ()]
    values, told = [part for side in sides for part in side.value], [part for factor in heard for part in factor]
    frames = first.new_zeros(3 if momenta else 2, *at.shape)
    k, h, *old = frames.unbind(0)
    places = at.views(k)
    _copy_all(places + at.views(h), values + told)
    count = len(at.of)
    sums = torch.stack([structure.framed_trace(h, at.sides), structure.framed_square(k, at.sides)])
    if at.member is not None:
        sums = sums.new_zeros(2, count).index_add_(1, at.member, sums)
    traces, squares = sums.tolist()
    traces = [scale * trace / n for scale, trace, n in zip(scales, traces, at.of, strict=True)]
    partner = _partners(shapes)
    if not all(within_reach(own, traces[j], k.dtype) for own, j in zip(traces, partner, strict=True)):
        return False
    weights, ridges = [scale / 2 for scale in scales], [damping / 2] * count
    if adaptive:
        weights = [weight * traces[j] for weight, j in zip(weights, partner, strict=True)]
        ridges = [ridge * squares[j] / at.of[j] for ridge, j in zip(ridges, partner, strict=True)]
    numbers = k.new_tensor([weights, ridges])
    numbers = numbers if at.member is None else numbers.index_select(1, at.member)
    by_weight, by_ridge = numbers.view(2, -1, *[1] * (k.ndim - 1)).unbind(0)
    step = structure.framed_inner(k, at.sides).mul_(by_ridge).addcmul_(h, by_weight)
    if old:
        _copy_all(at.views(old[0]), momenta)
        step.add_(old[0], alpha=alpha1)
    for part, one in zip(structure.framed_diagonal(step), at.ones, strict=True):
        part.sub_(one, alpha=0.5)
    bound = structure.framed_bound(step, at.sides)
    if at.member is not None:
        bound = bound.new_ones(count).scatter_reduce_(0, at.member, bound, "amax").index_select(0, at.member)
    beta = (lr_cov / bound.clamp_(min=1.0)).view(-1, *[1] * (k.ndim - 1))
    k.addcmul_(structure.framed_product(k, step), beta, value=-1)
    _copy_all(values + momenta, places + (at.views(step) if old else []))
    return True


@lru_cache(maxsize=64)
def _partners(shapes: Shapes) -> list[int]:
    """The other matrix of the pair of each."""
    partner, first = [], 0
    for i, (batch, _) in enumerate(shapes):
        other = first + (batch if i % 2 == 0 else -batch)
        partner += range(other, other + batch)
        first += batch
    return partner
