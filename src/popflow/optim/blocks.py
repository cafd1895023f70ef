"""Factors without one-sided coordinates: dense, diagonal and block-diagonal matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.optim.structures import Factor, spectral_bound, squares


@dataclass(frozen=True)
class Dense:
    """Every matrix: ``n^2`` numbers. With both factors dense the optimiser is INGD, or KFAC without inverses.

    >>> Dense().project(torch.tensor([[[2.0, 1.0], [1.0, 3.0]]]))[0].tolist()
    [[[2.0, 1.0], [1.0, 3.0]]]
    """

    def size(self, n: int) -> int:
        """``n^2``."""
        return n * n

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """Diagonal matrix."""
        return (torch.diag_embed(diagonal),)

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """Diagonal ``[B, n]``."""
        return factor[0].diagonal(dim1=-2, dim2=-1)

    def shift_(self, factor: Factor, value: float) -> None:
        """Add to the diagonal."""
        factor[0].diagonal(dim1=-2, dim2=-1).add_(value)

    def multiply(self, left: Factor, right: Factor) -> Factor:
        """Matrix product."""
        return (left[0] @ right[0],)

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K``."""
        return rows @ factor[0]

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K^T``."""
        return rows @ factor[0].mT

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """``K^T X^T X K``; ``X^T X`` first where the rows are many."""
        if rows.shape[-2] > 2 * rows.shape[-1]:
            return (factor[0].mT @ (rows.mT @ rows) @ factor[0],)
        seen = rows @ factor[0]
        return (seen.mT @ seen,)

    def inner(self, factor: Factor) -> Factor:
        """``K^T K``."""
        return (factor[0].mT @ factor[0],)

    def square(self, factor: Factor, n: int) -> Tensor:
        """Sum of squares."""
        return squares(factor)

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """By ``K K^T`` where ``X`` has as many rows as ``K``, else one after the other."""
        k = factor[0]
        if x.shape[-3 - dim] >= k.shape[-1]:
            return x @ (k @ k.mT) if dim == -1 else k @ k.mT @ x
        return x @ k @ k.mT if dim == -1 else k @ (k.mT @ x)

    def project(self, matrix: Tensor) -> Factor:
        """The matrix itself."""
        return (matrix,)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """The matrix itself."""
        return factor[0]

    def bound(self, factor: Factor) -> Tensor:
        """``min(|K|_F, sqrt(|K|_1 |K|_inf))``."""
        return spectral_bound(factor[0])


@dataclass(frozen=True)
class Diagonal:
    """Diagonal matrices: ``n`` numbers, elementwise work. About half of AdamW's memory for the whole optimiser.

    >>> Diagonal().project(torch.tensor([[[2.0, 1.0], [1.0, 3.0]]]))[0].tolist()
    [[2.0, 3.0]]
    """

    def size(self, n: int) -> int:
        """``n``."""
        return n

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """The diagonal itself."""
        return (diagonal.clone(),)

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """The diagonal itself."""
        return factor[0]

    def shift_(self, factor: Factor, value: float) -> None:
        """Add to every entry."""
        factor[0].add_(value)

    def multiply(self, left: Factor, right: Factor) -> Factor:
        """Elementwise product."""
        return (left[0] * right[0],)

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """Scale columns."""
        return rows * factor[0].unsqueeze(-2)

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """Scale columns."""
        return rows * factor[0].unsqueeze(-2)

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Column sums of squares, times ``k^2``."""
        return (rows.square().sum(-2).mul_(factor[0]).mul_(factor[0]),)

    def inner(self, factor: Factor) -> Factor:
        """Squares."""
        return (factor[0].square(),)

    def square(self, factor: Factor, n: int) -> Tensor:
        """Sum of squares."""
        return squares(factor)

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """Scale by squares."""
        return x * factor[0].square().unsqueeze(-3 - dim)

    def project(self, matrix: Tensor) -> Factor:
        """Diagonal of the matrix."""
        return (matrix.diagonal(dim1=-2, dim2=-1).clone(),)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """Diagonal matrix."""
        return torch.diag_embed(factor[0])

    def bound(self, factor: Factor) -> Tensor:
        """Largest entry: the norm itself."""
        return factor[0].abs().amax(-1)


@dataclass(frozen=True)
class BlockDiagonal:
    """Dense blocks of ``block`` coordinates and one smaller block for the remainder: about ``n block`` numbers.

    >>> BlockDiagonal(30).size(64)
    1816
    """

    block: int

    def __post_init__(self):
        if self.block < 1:
            raise ValueError(f"BlockDiagonal(block={self.block}), wanted at least 1: 1 is diagonal, 30 to 128 are usual.")

    def size(self, n: int) -> int:
        """Whole blocks and the remainder."""
        count, rest = divmod(n, self.block)
        return count * self.block**2 + rest**2

    def _split(self, value: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
        whole = value.shape[dim] // self.block * self.block
        return value.narrow(dim, 0, whole).unflatten(dim, (-1 if whole else 0, self.block)), value.narrow(
            dim, whole, value.shape[dim] - whole
        )

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """Diagonal blocks."""
        return tuple(torch.diag_embed(part) for part in self._split(diagonal))

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """Diagonals of the blocks, one after another."""
        return torch.cat([factor[0].diagonal(dim1=-2, dim2=-1).flatten(1), factor[1].diagonal(dim1=-2, dim2=-1)], -1)

    def shift_(self, factor: Factor, value: float) -> None:
        """Add to the diagonals of the blocks."""
        for part in factor:
            part.diagonal(dim1=-2, dim2=-1).add_(value)

    def multiply(self, left: Factor, right: Factor) -> Factor:
        """Blockwise product."""
        return tuple(a @ b for a, b in zip(left, right, strict=True))

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """Blockwise ``X K``."""
        whole, rest = self._split(rows)
        return torch.cat([(whole.transpose(-2, -3) @ factor[0]).transpose(-2, -3).flatten(-2), rest @ factor[1]], -1)

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """Blockwise ``X K^T``."""
        return self.right(tuple(part.mT for part in factor), rows)

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Blockwise ``K^T X^T X K``; ``X^T X`` first where the rows are many."""
        whole, rest = self._split(rows)
        return tuple(Dense().gram((k,), x)[0] for k, x in zip(factor, (whole.transpose(-2, -3), rest), strict=True))

    def inner(self, factor: Factor) -> Factor:
        """Blockwise ``K^T K``."""
        return tuple(part.mT @ part for part in factor)

    def square(self, factor: Factor, n: int) -> Tensor:
        """Sum of squares."""
        return squares(factor)

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """Blockwise, as `Dense`."""
        parts = self._split(x, dim)
        if dim == -2:
            done = [Dense().precondition((k,), part, dim) for k, part in zip(factor, parts, strict=True)]
            return torch.cat([done[0].flatten(1, 2), done[1]], 1)
        out = torch.empty_like(x)
        whole, rest = self._split(out)
        whole.copy_(Dense().precondition((factor[0],), parts[0].transpose(-2, -3), dim).transpose(-2, -3))
        rest.copy_(Dense().precondition((factor[1],), parts[1], dim))
        return out

    def project(self, matrix: Tensor) -> Factor:
        """Diagonal blocks."""
        n, b = matrix.shape[-1], self.block
        whole = n // b * b
        blocks = [matrix[:, i : i + b, i : i + b] for i in range(0, whole, b)]
        return torch.stack(blocks, 1) if blocks else matrix.new_zeros(len(matrix), 0, b, b), matrix[:, whole:, whole:].clone()

    def dense(self, factor: Factor, n: int) -> Tensor:
        """Block-diagonal matrix."""
        whole, rest = factor
        out = whole.new_zeros(len(whole), n, n)
        b = self.block
        for i in range(whole.shape[1]):
            out[:, i * b : (i + 1) * b, i * b : (i + 1) * b] = whole[:, i]
        out[:, n - rest.shape[-1] :, n - rest.shape[-1] :] = rest
        return out

    def bound(self, factor: Factor) -> Tensor:
        """Largest bound of a block."""
        parts = [spectral_bound(factor[0]), spectral_bound(factor[1]).unsqueeze(-1)]
        return torch.cat(parts, -1).amax(-1)
