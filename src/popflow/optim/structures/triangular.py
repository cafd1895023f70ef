"""Triangular factors: lower and upper, packed; each off-diagonal coordinate is one-sided and counts twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from popflow.optim.structures.structure import Factor, Structure


@dataclass(frozen=True)
class LowerTriangular(Structure):
    """Lower triangles, packed row by row: ``n (n + 1) / 2`` numbers; work of a dense factor.

    >>> LowerTriangular().project(torch.tensor([[[2.0, 1.0], [1.0, 3.0]]]))[0].tolist()
    [[2.0, 2.0, 3.0]]
    """

    entries_once: ClassVar[bool] = True

    def size(self, n: int) -> int:
        """``n (n + 1) / 2``."""
        return n * (n + 1) // 2

    def pack(self, matrix: Tensor) -> Factor:
        """The lower triangle, row by row."""
        rows, columns = _lower(matrix.shape[-1], str(matrix.device))
        return (matrix[:, rows, columns],)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """Lower-triangular matrix."""
        rows, columns = _lower(n, str(factor[0].device))
        out = factor[0].new_zeros(len(factor[0]), n, n)
        out[:, rows, columns] = factor[0]
        return out

    def project(self, matrix: Tensor) -> Factor:
        """Diagonal plus twice the strict triangle."""
        return self.pack(2 * matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1)))


@dataclass(frozen=True)
class UpperTriangular(LowerTriangular):
    """Upper triangles: the transposes of `LowerTriangular`, stored the same way."""

    def pack(self, matrix: Tensor) -> Factor:
        """The upper triangle, column by column."""
        return super().pack(matrix.mT)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """Upper-triangular matrix."""
        return super().dense(factor, n).mT


@lru_cache(maxsize=256)
def _lower(n: int, device: str) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(n, n, device=device)
    return rows, columns
