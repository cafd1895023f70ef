"""Hierarchical factors: dense borders around a diagonal; rank-k triangular ones among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from popflow.optim.structures.structure import Factor, Structure


@dataclass(frozen=True)
class Hierarchical(Structure):
    """``[[A, B], [0, [[C, 0], [D, E]]]]``: dense borders ``A (k1 x k1), B``, ``D, E (k2 x k2)`` around a diagonal ``C``.

    About ``(k1 + k2 + 1) n`` numbers. The closest of the cheap structures to a dense factor. ``k1`` first and ``k2`` last coordinates
    talk to all others.

    >>> Hierarchical(2, 1).size(6)
    19
    """

    entries_once: ClassVar[bool] = True
    k1: int
    k2: int

    def __post_init__(self):
        if any(not isinstance(k, int) or isinstance(k, bool) or k < 0 for k in (self.k1, self.k2)):
            raise ValueError(f"Hierarchical(k1={self.k1!r}, k2={self.k2!r}), wanted integers of at least 0: 15 and 15 are usual.")

    def _cut(self, n: int) -> tuple[int, int, int]:
        k1 = min(self.k1, n)
        k2 = min(self.k2, n - k1)
        return k1, n - k1 - k2, k2

    def _parts(self, factor: Factor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        a, b, c, d, e = factor
        return a, b[..., : c.shape[-1]], b[..., c.shape[-1] :], c, d, e

    def size(self, n: int) -> int:
        """``k1 n + k2 (n - k1) + (n - k1 - k2)``."""
        k1, middle, k2 = self._cut(n)
        return k1 * n + k2 * (n - k1) + middle

    def pack(self, matrix: Tensor) -> Factor:
        """The five parts."""
        k1, middle, k2 = self._cut(matrix.shape[-1])
        top, center, bottom = matrix.split([k1, middle, k2], -2)
        a, b = top.split([k1, middle + k2], -1)
        _, d, e = bottom.split([k1, middle, k2], -1)
        return a, b, center[..., k1 : k1 + middle].diagonal(dim1=-2, dim2=-1), d, e

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """Diagonal matrix."""
        k1, middle, k2 = self._cut(diagonal.shape[-1])
        a, c, e = diagonal.split([k1, middle, k2], -1)
        zeros = diagonal.new_zeros
        return torch.diag_embed(a), zeros(len(a), k1, middle + k2), c.clone(), zeros(len(a), k2, middle), torch.diag_embed(e)

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """Diagonals of A, C, E."""
        a, _, c, _, e = factor
        return torch.cat([a.diagonal(dim1=-2, dim2=-1), c, e.diagonal(dim1=-2, dim2=-1)], -1)

    def shift_(self, factor: Factor, n: int, value: float) -> None:
        """Add to the diagonals of A, C, E."""
        factor[0].diagonal(dim1=-2, dim2=-1).add_(value)
        factor[2].add_(value)
        factor[4].diagonal(dim1=-2, dim2=-1).add_(value)

    def _rows(self, factor: Factor) -> tuple[Tensor, Tensor]:
        """The border rows ``G [B, k1 + k2, n]`` and the diagonal ``[B, n]`` with zeros at the borders: ``K = diag + S G`` with selector ``S``."""
        a, b, c, d, e = factor
        k1, k2 = a.shape[-1], e.shape[-1]
        top = torch.cat([a, b], -1)
        rows = top if k2 == 0 else torch.cat([top, torch.cat([e.new_zeros(len(e), k2, k1), d, e], -1)], -2)
        return rows, torch.nn.functional.pad(c, (k1, k2))

    def multiply(self, left: Factor, right: Factor, n: int) -> Factor:
        """Product, block by block."""
        a, b_c, b_e, c, d, e = self._parts(left)
        a2, b2, c2, d2, e2 = right
        column = c2.unsqueeze(-2)
        b = torch.bmm(a, b2)
        to_c, to_e = b.split_with_sizes([c.shape[-1], e.shape[-1]], -1)
        to_c.addcmul_(b_c, column).baddbmm_(b_e, d2)
        to_e.baddbmm_(b_e, e2)
        return torch.bmm(a, a2), b, c * c2, (d * column).baddbmm_(e, d2), torch.bmm(e, e2)

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K``: the diagonal, and the border coordinates times the border rows."""
        border, diagonal = self._rows(factor)
        return (rows * diagonal.unsqueeze(-2)).baddbmm_(self._ends(factor, rows, -1), border)

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K^T``."""
        border, diagonal = self._rows(factor)
        return self._put(factor, rows * diagonal.unsqueeze(-2), torch.bmm(border, rows.mT).mT, -1)

    def _ends(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """The border coordinates of ``x``."""
        k1, n, k2 = factor[0].shape[-1], x.shape[dim], factor[4].shape[-1]
        return x.narrow(dim, 0, k1) if k2 == 0 else torch.cat([x.narrow(dim, 0, k1), x.narrow(dim, n - k2, k2)], dim)

    def _put(self, factor: Factor, x: Tensor, ends: Tensor, dim: int) -> Tensor:
        """Write the border coordinates of ``x``, in place."""
        k1, n, k2 = factor[0].shape[-1], x.shape[dim], factor[4].shape[-1]
        x.narrow(dim, 0, k1).copy_(ends.narrow(dim, 0, k1))
        if k2:
            x.narrow(dim, n - k2, k2).copy_(ends.narrow(dim, k1, k2))
        return x

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Projection of ``K^T X^T X K``: one product of the border columns of ``X K`` with all, and its sums of squares."""
        seen = self.right(factor, rows)
        ends = self._ends(factor, seen, -1)
        return self._projected(torch.bmm(ends.mT, seen), seen.square_().sum(-2))

    def inner(self, factor: Factor, n: int) -> Factor:
        """Projection of ``K^T K``."""
        a, b_c, b_e, c, d, e = self._parts(factor)
        borders = torch.cat([b_c, d, c.unsqueeze(-2)], -2)
        both = torch.baddbmm(d, b_e.mT, b_c, beta=0, alpha=2).baddbmm_(e.mT, d, alpha=2)
        b = torch.baddbmm(factor[1], a.mT, factor[1], beta=0, alpha=2)
        return torch.bmm(a.mT, a), b, borders.square_().sum(-2), both, torch.bmm(e.mT, e).baddbmm_(b_e.mT, b_e)

    def _projected(self, border: Tensor, diagonal: Tensor) -> Factor:
        """The projection from the border rows ``[B, k1 + k2, n]`` of a symmetric matrix and its diagonal ``[B, n]``."""
        k1, middle, k2 = self._cut(diagonal.shape[-1])
        top, bottom = border.split_with_sizes([k1, k2], -2)
        a, b = top.split_with_sizes([k1, middle + k2], -1)
        _, d, e = bottom.split_with_sizes([k1, middle, k2], -1)
        # Tensors of their own: a momentum that is made of them would keep the border rows as well.
        return a.contiguous(), b + b, diagonal.narrow(-1, k1, middle).clone(), d + d, e.contiguous()

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """One product after the other, in one piece of memory."""
        border, diagonal = self._rows(factor)
        if dim == -1:
            seen = (x * diagonal.unsqueeze(-2)).baddbmm_(self._ends(factor, x, -1), border)
            ends = torch.bmm(border, seen.mT).mT
            return self._put(factor, seen.mul_(diagonal.unsqueeze(-2)), ends, -1)
        seen = (x * diagonal.unsqueeze(-1)).baddbmm_(border.mT, self._ends(factor, x, -2))
        ends = torch.bmm(border, seen)
        return self._put(factor, seen.mul_(diagonal.unsqueeze(-1)), ends, -2)

    def project(self, matrix: Tensor) -> Factor:
        """A, E and the diagonal of C as they are; borders twice."""
        k1, middle, _ = self._cut(matrix.shape[-1])
        ends = torch.cat([matrix[:, :k1], matrix[:, k1 + middle :]], 1)
        return self._projected(ends, matrix.diagonal(dim1=-2, dim2=-1))

    def dense(self, factor: Factor, n: int) -> Tensor:
        """The matrix."""
        a, b, c, d, e = factor
        k1, middle, _ = self._cut(n)
        out = a.new_zeros(len(a), n, n)
        out[:, :k1, :k1], out[:, :k1, k1:] = a, b
        out[:, k1 : k1 + middle, k1 : k1 + middle] = torch.diag_embed(c)
        out[:, k1 + middle :, k1 : k1 + middle], out[:, k1 + middle :, k1 + middle :] = d, e
        return out


def rank_triangular(k: int) -> Hierarchical:
    """Rank-``k`` triangular factors ``[[A, B], [0, diag]]``: a hierarchical factor without its lower border.

    >>> rank_triangular(3)
    Hierarchical(k1=3, k2=0)
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(
            f"rank_triangular(k={k!r}), wanted an integer of at least 1: 15 is usual. Fix: Diagonal() is what rank 0 would be."
        )
    return Hierarchical(k, 0)
