"""Hierarchical factors: dense borders around a diagonal; rank-k triangular ones among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.optim.structures import Factor, bound_by, by_products, squares


@dataclass(frozen=True)
class Hierarchical:
    """``[[A, B], [0, [[C, 0], [D, E]]]]``: dense borders ``A (k1 x k1), B``, ``D, E (k2 x k2)`` around a diagonal ``C``.

    About ``(k1 + k2 + 1) n`` numbers. The closest of the cheap structures to a dense factor. ``k1`` first and ``k2`` last coordinates
    talk to all others.

    >>> Hierarchical(2, 1).size(6)
    19
    """

    k1: int
    k2: int

    def __post_init__(self):
        if self.k1 < 0 or self.k2 < 0:
            raise ValueError(f"Hierarchical(k1={self.k1}, k2={self.k2}), wanted both at least 0: 15 and 15 are usual.")

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

    def shift_(self, factor: Factor, value: float) -> None:
        """Add to the diagonals of A, C, E."""
        factor[0].diagonal(dim1=-2, dim2=-1).add_(value)
        factor[2].add_(value)
        factor[4].diagonal(dim1=-2, dim2=-1).add_(value)

    def multiply(self, left: Factor, right: Factor) -> Factor:
        """Product, block by block."""
        a, b_c, b_e, c, d, e = self._parts(left)
        a2, b_c2, b_e2, c2, d2, e2 = self._parts(right)
        column = c2.unsqueeze(-2)
        b = torch.cat([a @ b_c2 + b_c * column + b_e @ d2, a @ b_e2 + b_e @ e2], -1)
        return a @ a2, b, c * c2, d * column + e @ d2, e @ e2

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K``."""
        a, b, c, d, e = factor
        x_a, x_c, x_e = rows.split([a.shape[-1], c.shape[-1], e.shape[-1]], -1)
        tail = torch.cat([x_c * c.unsqueeze(-2) + x_e @ d, x_e @ e], -1)
        return torch.cat([x_a @ a, torch.baddbmm(tail, x_a, b)], -1)

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K^T``."""
        a, b, c, d, e = factor
        x_a, x_r = rows.split([a.shape[-1], b.shape[-1]], -1)
        x_c, x_e = x_r.split([c.shape[-1], e.shape[-1]], -1)
        return torch.cat([x_a @ a.mT + x_r @ b.mT, x_c * c.unsqueeze(-2), x_c @ d.mT + x_e @ e.mT], -1)

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Projection of ``K^T X^T X K``."""
        k1, middle, k2 = self._cut(rows.shape[-1])
        x_a, x_r = self.right(factor, rows).split([k1, middle + k2], -1)
        x_c, x_e = x_r.split([middle, k2], -1)
        return x_a.mT @ x_a, 2 * (x_a.mT @ x_r), x_c.square().sum(-2), 2 * (x_e.mT @ x_c), x_e.mT @ x_e

    def inner(self, factor: Factor) -> Factor:
        """Projection of ``K^T K``."""
        a, b, c, d, e = factor
        _, b_c, b_e, _, _, _ = self._parts(factor)
        middle = c.square() + b_c.square().sum(-2) + d.square().sum(-2)
        return a.mT @ a, 2 * (a.mT @ b), middle, 2 * (b_e.mT @ b_c + e.mT @ d), e.mT @ e + b_e.mT @ b_e

    def square(self, factor: Factor, n: int) -> Tensor:
        """Sum of squares."""
        return squares(factor)

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """One product after the other."""
        return by_products(self, factor, x, dim)

    def project(self, matrix: Tensor) -> Factor:
        """A, E and the diagonal of C as they are; borders twice."""
        k1, middle, _ = self._cut(matrix.shape[-1])
        c, e = slice(k1, k1 + middle), slice(k1 + middle, None)
        diagonal = matrix[:, c, c].diagonal(dim1=-2, dim2=-1).clone()
        return matrix[:, :k1, :k1].clone(), 2 * matrix[:, :k1, k1:], diagonal, 2 * matrix[:, e, c], matrix[:, e, e].clone()

    def dense(self, factor: Factor, n: int) -> Tensor:
        """The matrix."""
        a, b, c, d, e = factor
        k1, middle, _ = self._cut(n)
        out = a.new_zeros(len(a), n, n)
        out[:, :k1, :k1], out[:, :k1, k1:] = a, b
        out[:, k1 : k1 + middle, k1 : k1 + middle] = torch.diag_embed(c)
        out[:, k1 + middle :, k1 : k1 + middle], out[:, k1 + middle :, k1 + middle :] = d, e
        return out

    def bound(self, factor: Factor) -> Tensor:
        """`spectral_bound` of the matrix, from its parts."""
        a, _, c, _, e = factor
        n = a.shape[-1] + c.shape[-1] + e.shape[-1]
        diagonal = sum((part.diagonal(dim1=-2, dim2=-1).sum(-1) for part in (a, e)), c.sum(-1))
        return bound_by(squares(factor).sqrt(), diagonal / n, n)


def rank_triangular(k: int) -> Hierarchical:
    """Rank-``k`` triangular factors ``[[A, B], [0, diag]]``: a hierarchical factor without its lower border.

    >>> rank_triangular(3)
    Hierarchical(k1=3, k2=0)
    """
    return Hierarchical(k, 0)
