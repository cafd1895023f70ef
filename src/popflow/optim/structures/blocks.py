"""Factors without one-sided coordinates: dense, diagonal and block-diagonal matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

import torch
from torch import Tensor

from popflow.optim.structures.structure import Factor, Structure, spectral_bound


@dataclass(frozen=True)
class Dense(Structure):
    """Every matrix: ``n^2`` numbers. With both factors dense the optimiser is INGD, or KFAC without inverses.

    >>> Dense().project(torch.tensor([[[2.0, 1.0], [1.0, 3.0]]]))[0].tolist()
    [[[2.0, 1.0], [1.0, 3.0]]]
    """

    entries_once: ClassVar[bool] = True

    def size(self, n: int) -> int:
        """``n^2``."""
        return n * n

    def pack(self, matrix: Tensor) -> Factor:
        """The matrix itself."""
        return (matrix,)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """The matrix itself."""
        return factor[0]

    project = pack

    def shift_(self, factor: Factor, n: int, value: float) -> None:
        """Add to the diagonal."""
        factor[0].diagonal(dim1=-2, dim2=-1).add_(value)

    def left(self, factor: Factor, columns: Tensor) -> Tensor:
        """``K X``."""
        return torch.bmm(factor[0], columns)

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """``K^T X^T X K``; ``X^T X`` first where there are many rows."""
        k = factor[0]
        if rows.shape[-2] > 2 * rows.shape[-1]:
            return (torch.bmm(torch.bmm(k.mT, torch.bmm(rows.mT, rows)), k),)
        seen = torch.bmm(rows, k)
        return (torch.bmm(seen.mT, seen),)

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """By ``K K^T`` where ``X`` has as many rows as ``K``, else one after the other."""
        k = factor[0]
        if x.shape[-3 - dim] >= k.shape[-1]:
            metric = torch.bmm(k, k.mT)
            return torch.bmm(x, metric) if dim == -1 else torch.bmm(metric, x)
        return torch.bmm(torch.bmm(x, k), k.mT) if dim == -1 else torch.bmm(k, torch.bmm(k.mT, x))

    def metric(self, factor: Factor, uses: int) -> Factor | None:
        """``K K^T`` where it is used for as many rows as it has."""
        k = factor[0]
        return (torch.bmm(k, k.mT),) if uses >= k.shape[-1] else None

    def inverse_root(self, gram: Factor, n: int, rows: Tensor, damping: Tensor) -> Factor:
        """From the whole matrix, with off-diagonal entries shrunk by ``N / (N + n)``, since few rows determine them poorly."""
        return (_inverse_root(gram[0], rows, damping),)


@dataclass(frozen=True)
class Diagonal(Structure):
    """Diagonal matrices: ``n`` numbers, elementwise work. About half of AdamW's memory for the whole optimiser.

    >>> Diagonal().project(torch.tensor([[[2.0, 1.0], [1.0, 3.0]]]))[0].tolist()
    [[2.0, 3.0]]
    """

    entries_once: ClassVar[bool] = True

    def size(self, n: int) -> int:
        """``n``."""
        return n

    def pack(self, matrix: Tensor) -> Factor:
        """Diagonal of the matrix."""
        return (matrix.diagonal(dim1=-2, dim2=-1).clone(),)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """Diagonal matrix."""
        return torch.diag_embed(factor[0])

    project = pack

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """The diagonal itself."""
        return (diagonal.clone(),)

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """The diagonal itself."""
        return factor[0]

    def shift_(self, factor: Factor, n: int, value: float) -> None:
        """Add to every entry."""
        factor[0].add_(value)

    def multiply(self, left: Factor, right: Factor, n: int) -> Factor:
        """Elementwise product."""
        return (left[0] * right[0],)

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """Scale columns."""
        return rows * factor[0].unsqueeze(-2)

    right_t = right

    def left(self, factor: Factor, columns: Tensor) -> Tensor:
        """Scale rows."""
        return columns * factor[0].unsqueeze(-1)

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Column sums of squares, times ``k^2``."""
        return (rows.square().sum(-2).mul_(factor[0]).mul_(factor[0]),)

    def inner(self, factor: Factor, n: int) -> Factor:
        """Squares."""
        return (factor[0].square(),)

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """Scale by squares."""
        return x * factor[0].square().unsqueeze(-3 - dim)

    def metric(self, factor: Factor, uses: int) -> Factor | None:
        """Squares."""
        return (factor[0].square(),)

    def bound(self, factor: Factor, n: int) -> Tensor:
        """Largest entry: the norm itself."""
        return factor[0].abs().amax(-1)


@dataclass(frozen=True)
class BlockDiagonal(Structure):
    """Dense blocks of ``block`` coordinates and one smaller block for the remainder: about ``n block`` numbers.

    >>> BlockDiagonal(30).size(64)
    1816
    """

    entries_once: ClassVar[bool] = True
    block: int

    def __post_init__(self):
        if not isinstance(self.block, int) or self.block < 1:
            raise ValueError(f"BlockDiagonal(block={self.block}), wanted an integer of at least 1: 1 is diagonal, 30 to 128 are usual.")

    def size(self, n: int) -> int:
        """Whole blocks and the remainder."""
        count, rest = divmod(n, self.block)
        return count * self.block**2 + rest**2

    def _cut(self, n: int) -> int:
        """How many coordinates are in whole blocks."""
        return n // self.block * self.block

    def pack(self, matrix: Tensor) -> Factor:
        """Diagonal blocks."""
        n, b = matrix.shape[-1], self.block
        cut = self._cut(n)
        blocks = [matrix[:, i : i + b, i : i + b] for i in range(0, cut, b)]
        return torch.stack(blocks, 1) if blocks else matrix.new_zeros(len(matrix), 0, b, b), matrix[:, cut:, cut:].clone()

    def dense(self, factor: Factor, n: int) -> Tensor:
        """Block-diagonal matrix."""
        (whole, rest), b, cut = factor, self.block, self._cut(n)
        out = whole.new_zeros(len(whole), n, n)
        for i in range(whole.shape[1]):
            out[:, i * b : (i + 1) * b, i * b : (i + 1) * b] = whole[:, i]
        out[:, cut:, cut:] = rest
        return out

    project = pack

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """Diagonal blocks."""
        n = diagonal.shape[-1]
        whole, rest = diagonal.split_with_sizes([self._cut(n), n - self._cut(n)], -1)
        return torch.diag_embed(whole.unflatten(-1, (n // self.block, self.block))), torch.diag_embed(rest)

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """Diagonals of the blocks, one after another."""
        parts = [part.diagonal(dim1=-2, dim2=-1).flatten(1) for part in factor if part.numel()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def shift_(self, factor: Factor, n: int, value: float) -> None:
        """Add to the diagonals of the blocks."""
        for part in factor:
            if part.numel():
                part.diagonal(dim1=-2, dim2=-1).add_(value)

    def multiply(self, left: Factor, right: Factor, n: int) -> Factor:
        """Blockwise product."""
        return torch.bmm(left[0].flatten(0, 1), right[0].flatten(0, 1)).view(left[0].shape), torch.bmm(left[1], right[1])

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """Blockwise ``X K``."""
        return self._blockwise(Dense().right, factor, rows, -1)

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """Blockwise ``X K^T``."""
        return self._blockwise(Dense().right_t, factor, rows, -1)

    def _columns(self, x: Tensor) -> Tensor:
        """Columns of ``x [B, m, n]`` that belong to whole blocks, ``[B, blocks, m, block]``."""
        return x.unfold(-1, self.block, self.block).transpose(1, 2)

    def _blockwise(self, act: Callable[[Factor, Tensor], Tensor], factor: Factor, x: Tensor, dim: int) -> Tensor:
        """Let every block act on its columns (``dim=-1``) or rows (``dim=-2``) of ``x``."""
        (whole, rest), n = factor, x.shape[dim]
        cut = self._cut(n)
        if dim == -2:
            parts = []
            if cut:
                seen = act((whole.flatten(0, 1),), x.narrow(1, 0, cut).reshape(-1, self.block, x.shape[2]))
                parts.append(seen.view(len(x), cut, -1))
            if cut < n:
                parts.append(act((rest,), x.narrow(1, cut, n - cut)))
            return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        out = torch.empty_like(x)
        if cut:
            seen = act((whole.flatten(0, 1),), self._columns(x).flatten(0, 1))
            self._columns(out).copy_(seen.view(*whole.shape[:2], *seen.shape[1:]))
        if cut < n:
            out.narrow(2, cut, n - cut).copy_(act((rest,), x.narrow(2, cut, n - cut)))
        return out

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Blockwise ``K^T X^T X K``, as `Dense`."""
        whole, rest = factor
        cut, n = self._cut(rows.shape[-1]), rows.shape[-1]
        if cut:
            whole = Dense().gram((whole.flatten(0, 1),), self._columns(rows).flatten(0, 1))[0].view(whole.shape)
        if cut < n:
            rest = Dense().gram((rest,), rows.narrow(-1, cut, n - cut))[0]
        return whole, rest

    def inner(self, factor: Factor, n: int) -> Factor:
        """Blockwise ``K^T K``."""
        return self.multiply(tuple(part.mT for part in factor), factor, n)

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """Blockwise, as `Dense`."""
        return self._blockwise(partial(Dense().precondition, dim=dim), factor, x, dim)

    def inverse_root(self, gram: Factor, n: int, rows: Tensor, damping: Tensor) -> Factor:
        """Of each block, as `Dense`."""
        whole, rest = gram
        return _inverse_root(whole, rows.unsqueeze(-1), damping.unsqueeze(-1)), _inverse_root(rest, rows, damping)

    def bound(self, factor: Factor, n: int) -> Tensor:
        """Largest bound of a block."""
        parts = [part if part.ndim == 4 else part.unsqueeze(1) for part in factor if part.numel()]
        norms = torch.cat([torch.linalg.vector_norm(part, dim=(-2, -1)) for part in parts], -1)
        traces = torch.cat([part.diagonal(dim1=-2, dim2=-1).sum(-1) for part in parts], -1)
        return spectral_bound(norms.square(), traces, _sides(self.block, n, norms.dtype, str(norms.device))).amax(-1)


@lru_cache(maxsize=256)
def _sides(block: int, n: int, dtype: torch.dtype, device: str) -> Tensor:
    """Sides of the blocks of a matrix."""
    count, rest = divmod(n, block)
    return torch.tensor([block] * count + [rest] * (rest > 0), dtype=dtype, device=device)


def _inverse_root(gram: Tensor, rows: Tensor, damping: Tensor) -> Tensor:
    """``K`` with ``K K^T = (gram + damping)^{-1}`` for ``gram [..., n, n]`` by Cholesky; of the diagonal where that does not factorise."""
    n = gram.shape[-1]
    if gram.numel() == 0:
        return gram
    diagonal, rows, damping = gram.diagonal(dim1=-2, dim2=-1), rows.unsqueeze(-1), damping.unsqueeze(-1)
    damped = gram * (rows / (rows + n)).unsqueeze(-1) + torch.diag_embed(diagonal * (n / (rows + n)) + damping)
    lower, failed = torch.linalg.cholesky_ex(damped)
    eye = torch.eye(n, dtype=gram.dtype, device=gram.device).expand(gram.shape)
    root = torch.linalg.solve_triangular(lower, eye, upper=False).mT
    sound = (failed == 0) & root.isfinite().flatten(-2).all(-1)
    return torch.where(sound[..., None, None], root, torch.diag_embed((diagonal + damping).rsqrt()))
