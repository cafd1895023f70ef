"""Triangular factors: lower and upper, packed; each off-diagonal coordinate is one-sided and counts twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from popflow.optim.structures.structure import Factor, by_products, spectral_bound, squares


@dataclass(frozen=True)
class LowerTriangular:
    """Lower triangles, packed row by row: ``n (n + 1) / 2`` numbers; work of a dense factor."""

    def size(self, n: int) -> int:
        """``n (n + 1) / 2``."""
        return n * (n + 1) // 2

    def _pack(self, matrix: Tensor) -> Factor:
        rows, columns = _lower(matrix.shape[-1], str(matrix.device))
        return (matrix[:, rows, columns],)

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """Diagonal matrix."""
        return self._pack(torch.diag_embed(diagonal))

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """Diagonal ``[B, n]``."""
        i = torch.arange(1, n + 1, device=factor[0].device)
        return factor[0][:, i * (i + 1) // 2 - 1]

    def shift_(self, factor: Factor, value: float) -> None:
        """Add to the diagonal."""
        i = torch.arange(1, _side(factor[0]) + 1, device=factor[0].device)
        factor[0][:, i * (i + 1) // 2 - 1] += value

    def multiply(self, left: Factor, right: Factor) -> Factor:
        """Product of triangles."""
        n = _side(left[0])
        return self._pack(self.dense(left, n) @ self.dense(right, n))

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K``."""
        return rows @ self.dense(factor, rows.shape[-1])

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K^T``."""
        return rows @ self.dense(factor, rows.shape[-1]).mT

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Projection of ``K^T X^T X K``."""
        seen = self.right(factor, rows)
        return self.project(seen.mT @ seen)

    def inner(self, factor: Factor) -> Factor:
        """Projection of ``K^T K``."""
        matrix = self.dense(factor, _side(factor[0]))
        return self.project(matrix.mT @ matrix)

    def square(self, factor: Factor, n: int) -> Tensor:
        """Sum of squares."""
        return squares(factor)

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """One product after the other."""
        return by_products(self, factor, x, dim)

    def project(self, matrix: Tensor) -> Factor:
        """Diagonal plus twice the strict triangle."""
        return self._pack(2 * matrix - torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1)))

    def dense(self, factor: Factor, n: int) -> Tensor:
        """Lower-triangular matrix."""
        rows, columns = _lower(n, str(factor[0].device))
        out = factor[0].new_zeros(len(factor[0]), n, n)
        out[:, rows, columns] = factor[0]
        return out

    def bound(self, factor: Factor) -> Tensor:
        """`spectral_bound` of the matrix."""
        return spectral_bound(self.dense(factor, _side(factor[0])))


@dataclass(frozen=True)
class UpperTriangular(LowerTriangular):
    """Upper triangles: the transposes of `LowerTriangular`, stored the same way."""

    def _pack(self, matrix: Tensor) -> Factor:
        return super()._pack(matrix.mT)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """Upper-triangular matrix."""
        return super().dense(factor, n).mT


@lru_cache(maxsize=256)
def _lower(n: int, device: str) -> tuple[Tensor, Tensor]:
    rows, columns = torch.tril_indices(n, n, device=device)
    return rows, columns


def _side(packed: Tensor) -> int:
    return int(((8 * packed.shape[-1] + 1) ** 0.5 - 1) / 2 + 0.5)
