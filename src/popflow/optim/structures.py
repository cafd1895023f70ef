"""Structured square factors: sets of matrices closed under product, with the projection that natural gradients on them need.

A factor is a tuple of tensors, each with a leading batch dimension, and means a batch of ``n x n`` matrices ``K``. A structure knows
how to multiply, apply, project and bound such factors without building the matrices. All ops act on the last dimension of *rows*
``X [B, rows, n]``; the other side of a matrix is reached by transposing it.

The projection of a symmetric matrix ``N`` is the natural-gradient coordinate of its linear functional, not the Euclidean nearest
point: coordinates that appear on one side of the diagonal only (triangles, Toeplitz bands, borders) collect ``N_ij + N_ji = 2 N_ij``;
the diagonal and symmetric dense blocks are kept as they are. The trace is always kept.

Sets that are not closed under product (bands, low rank plus diagonal) cannot be structures.

Source: Lin, Dangel, Eschenhagen, Neklyudov, Kristiadi, Turner, Makhzani, "Structured inverse-free natural gradient descent", ICML 2024,
arXiv 2312.05705, section 3.2 and appendix.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Factor = tuple[Tensor, ...]
"""The stored numbers of a batch of structured matrices; every tensor has the batch first."""


@runtime_checkable
class Structure(Protocol):
    """What a set of matrices must offer to serve as a Kronecker factor. Any object with these methods is a structure."""

    def size(self, n: int) -> int:
        """How many numbers one ``n x n`` factor stores."""
        ...

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """Make the factor with this diagonal ``[B, n]`` (its mean where the structure holds a constant diagonal)."""
        ...

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """Return the diagonal ``[B, n]``."""
        ...

    def shift_(self, factor: Factor, value: float) -> None:
        """Add ``value I`` in place."""
        ...

    def multiply(self, left: Factor, right: Factor) -> Factor:
        """Return the matrix product ``L R``."""
        ...

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """Return ``X K`` for rows ``[B, m, n]``."""
        ...

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """Return ``X K^T`` for rows ``[B, m, n]``."""
        ...

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Return the projection of ``K^T X^T X K`` for rows ``[B, m, n]``."""
        ...

    def inner(self, factor: Factor) -> Factor:
        """Return the projection of ``K^T K``."""
        ...

    def metric(self, factor: Factor, uses: int) -> Factor | None:
        """Return ``K K^T`` as a factor where the set has it and ``X (K K^T)`` for ``uses`` rows is less work than ``(X K) K^T``; else None."""
        ...

    def project(self, matrix: Tensor) -> Factor:
        """Return the projection of symmetric matrices ``[B, n, n]``."""
        ...

    def dense(self, factor: Factor, n: int) -> Tensor:
        """Return the matrices ``[B, n, n]``."""
        ...

    def bound(self, factor: Factor) -> Tensor:
        """Return an upper bound ``[B]`` of the spectral norm."""
        ...


def scaled(factor: Factor, by: Tensor) -> Factor:
    """Multiply each matrix of a batch by its number ``by [B]``."""
    return tuple(part * by.reshape(-1, *[1] * (part.ndim - 1)) for part in factor)


def eye(structure: Structure, batch: int, n: int, like: Tensor) -> Factor:
    """Return a batch of identities with the dtype and device of ``like``.

    >>> eye(Diagonal(), 1, 3, torch.zeros(()))
    (tensor([[1., 1., 1.]]),)
    """
    return structure.from_diagonal(like.new_ones(batch, n))


def trace(structure: Structure, factor: Factor, n: int) -> Tensor:
    """Return the traces ``[B]``."""
    return structure.diagonal(factor, n).sum(-1)


def spectral_bound(matrix: Tensor) -> Tensor:
    """Upper bound of the spectral norm of ``[..., n, n]``: ``min(|M|_F, sqrt(|M|_1 |M|_inf))``."""
    if matrix.shape[-1] == 0:
        return matrix.new_zeros(matrix.shape[:-2])
    rows, columns = (torch.linalg.vector_norm(matrix, 1, dim=dim).amax(-1) for dim in (-1, -2))
    return torch.minimum((rows * columns).sqrt(), torch.linalg.vector_norm(matrix, dim=(-2, -1)))


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
        """``K^T X^T X K``."""
        seen = rows @ factor[0]
        return (seen.mT @ seen,)

    def inner(self, factor: Factor) -> Factor:
        """``K^T K``."""
        return (factor[0].mT @ factor[0],)

    def metric(self, factor: Factor, uses: int) -> Factor | None:
        """``K K^T``, from as many uses as it has rows."""
        return (factor[0] @ factor[0].mT,) if uses >= factor[0].shape[-1] else None

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

    def metric(self, factor: Factor, uses: int) -> Factor | None:
        """Squares."""
        return (factor[0].square(),)

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
        """Blockwise ``K^T X^T X K``."""
        whole, rest = self._split(rows)
        whole, rest = whole.transpose(-2, -3) @ factor[0], rest @ factor[1]
        return whole.mT @ whole, rest.mT @ rest

    def inner(self, factor: Factor) -> Factor:
        """Blockwise ``K^T K``."""
        return tuple(part.mT @ part for part in factor)

    def metric(self, factor: Factor, uses: int) -> Factor | None:
        """Blockwise ``K K^T``, from as many uses as a block has rows."""
        return tuple(part @ part.mT for part in factor) if uses >= self.block else None

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

    def metric(self, factor: Factor, uses: int) -> Factor | None:
        """None: ``K K^T`` is not triangular."""
        return None

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
        """``min(|K|_F, sqrt(|K|_1 |K|_inf))``."""
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

    def metric(self, factor: Factor, uses: int) -> Factor | None:
        """None: ``K K^T`` is not triangular."""
        return None

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
        """Frobenius norm, or ``sqrt(|K|_1 |K|_inf)`` where that is less."""
        a, b, c, d, e = (part.abs() for part in factor)
        middle = c.shape[-1]
        rows = torch.cat([a.sum(-1) + b.sum(-1), c, d.sum(-1) + e.sum(-1)], -1)
        columns = torch.cat([a.sum(-2), b[..., :middle].sum(-2) + c + d.sum(-2), b[..., middle:].sum(-2) + e.sum(-2)], -1)
        frobenius = torch.stack([part.flatten(1).square().sum(-1) for part in (a, b, c, d, e)]).sum(0).sqrt()
        return torch.minimum((rows.amax(-1) * columns.amax(-1)).sqrt(), frobenius)


def rank_triangular(k: int) -> Hierarchical:
    """Rank-``k`` triangular factors ``[[A, B], [0, diag]]``: a hierarchical factor without its lower border.

    >>> rank_triangular(3)
    Hierarchical(k1=3, k2=0)
    """
    return Hierarchical(k, 0)


@dataclass(frozen=True)
class LowerToeplitz:
    """``K_ij = c_{i-j}`` for ``i >= j``: ``n`` numbers, products by FFT in ``n log n``. For layers whose coordinates have an order.

    The coordinates ``c`` are polynomials modulo ``z^n``, so the set is closed under product.

    >>> LowerToeplitz().dense((torch.tensor([[1.0, 2.0, 3.0]]),), 3)[0].tolist()
    [[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 2.0, 1.0]]
    """

    def size(self, n: int) -> int:
        """``n``."""
        return n

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """Mean of the diagonal, times the identity."""
        out = torch.zeros_like(diagonal)
        out[:, 0] = diagonal.mean(-1)
        return (out,)

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """The constant diagonal."""
        return factor[0][:, :1].expand(-1, n)

    def shift_(self, factor: Factor, value: float) -> None:
        """Add to the coefficient of lag 0."""
        factor[0][:, 0] += value

    def multiply(self, left: Factor, right: Factor) -> Factor:
        """Product of the polynomials modulo ``z^n``."""
        return (convolve(left[0], right[0]),)

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K``: correlation with the coefficients."""
        n = rows.shape[-1]
        return rows @ self.dense(factor, n) if n <= DENSE_BELOW else correlate(rows, factor[0].unsqueeze(-2))

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K^T``: convolution with the coefficients."""
        n = rows.shape[-1]
        return rows @ self.dense(factor, n).mT if n <= DENSE_BELOW else convolve(rows, factor[0].unsqueeze(-2))

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Projection of ``K^T X^T X K``: summed autocorrelation of the rows of ``X K``, per lag."""
        return (_lag_means(autocorrelation(self.right(factor, rows))),)

    def inner(self, factor: Factor) -> Factor:
        """Projection of ``K^T K``: ``sum_s c_s c_{s+l} (n - s - l)``, per lag."""
        c = factor[0]
        left = torch.arange(c.shape[-1], 0, -1, device=c.device, dtype=c.dtype)
        return (_lag_means(correlate(c * left, c)),)

    def metric(self, factor: Factor, uses: int) -> Factor | None:
        """None: ``K K^T`` is not triangular."""
        return None

    def project(self, matrix: Tensor) -> Factor:
        """Mean of the diagonal; twice the mean of each lower diagonal."""
        n = matrix.shape[-1]
        return (_lag_means(torch.stack([matrix.diagonal(-lag, -2, -1).sum(-1) for lag in range(n)], -1)),)

    def dense(self, factor: Factor, n: int) -> Tensor:
        """The matrix."""
        return _hankel(torch.cat([factor[0].flip(-1), torch.zeros_like(factor[0])], -1), n).flip(-2)

    def bound(self, factor: Factor) -> Tensor:
        """``sum |c|``, which bounds row and column sums."""
        return factor[0].abs().sum(-1)


@dataclass(frozen=True)
class UpperToeplitz(LowerToeplitz):
    """``K_ij = c_{j-i}`` for ``j >= i``: the transposes of `LowerToeplitz`.

    >>> UpperToeplitz().dense((torch.tensor([[1.0, 2.0, 3.0]]),), 3)[0].tolist()
    [[1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]]
    """

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K``: convolution with the coefficients."""
        n = rows.shape[-1]
        return rows @ self.dense(factor, n) if n <= DENSE_BELOW else convolve(rows, factor[0].unsqueeze(-2))

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """``X K^T``: correlation with the coefficients."""
        n = rows.shape[-1]
        return rows @ self.dense(factor, n).mT if n <= DENSE_BELOW else correlate(rows, factor[0].unsqueeze(-2))

    def dense(self, factor: Factor, n: int) -> Tensor:
        """The matrix."""
        return super().dense(factor, n).mT


def _hankel(values: Tensor, n: int) -> Tensor:
    values = values.contiguous()
    return values.as_strided((len(values), n, n), (values.shape[-1], 1, 1))


def _lag_means(sums: Tensor) -> Tensor:
    n = sums.shape[-1]
    means = sums * (2 / torch.arange(n, 0, -1, device=sums.device, dtype=sums.dtype))
    means[..., 0] /= 2
    return means


DENSE_BELOW = 128
"""Up to this side a Toeplitz product is one matrix product; beyond, FFTs take less time (measured on one CPU thread)."""


@lru_cache(maxsize=1024)
def fast_length(n: int) -> int:
    """Smallest even ``2^a 3^b 5^c >= n``: FFTs of that length are fast.

    >>> fast_length(513), fast_length(512)
    (540, 512)
    """
    length = max(n + n % 2, 2)
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2


def _spectrum(x: Tensor, length: int) -> Tensor:
    return torch.fft.rfft(x if x.dtype in (torch.float32, torch.float64) else x.float(), n=length)


def convolve(x: Tensor, c: Tensor) -> Tensor:
    """First ``n`` terms of ``sum_j x_j c_{i-j}`` along the last dimension.

    The FFT has length ``2n - 2`` or more: of the ``2n - 1`` terms at most the last one wraps, onto term 0, where it is taken off.

    >>> convolve(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 3.0, 5.0])).round().tolist()
    [1.0, 5.0, 11.0]
    """
    n = x.shape[-1]
    length = fast_length(2 * n - 2)
    out = torch.fft.irfft(_spectrum(x, length) * _spectrum(c, length), n=length)[..., :n]
    if length == 2 * n - 2:
        out[..., 0] -= x[..., -1] * c[..., -1]
    return out.to(x.dtype)


def correlate(x: Tensor, c: Tensor) -> Tensor:
    """``sum_{i >= j} x_i c_{i-j}`` along the last dimension.

    >>> correlate(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 5.0])).round().tolist()
    [27.0, 14.0, 4.0]
    """
    n = x.shape[-1]
    length = fast_length(2 * n - 2)
    out = torch.fft.irfft(_spectrum(x, length) * _spectrum(c, length).conj(), n=length)[..., :n]
    if length == 2 * n - 2:
        out[..., n - 1] -= x[..., 0] * c[..., -1]
    return out.to(x.dtype)


def autocorrelation(rows: Tensor) -> Tensor:
    """``sum_r sum_i x_ri x_r(i+l)`` for every lag ``l < n``; rows ``[..., m, n]`` to ``[..., n]``.

    >>> autocorrelation(torch.tensor([[1.0, 2.0, 4.0]])).round().tolist()
    [21.0, 10.0, 4.0]
    """
    n = rows.shape[-1]
    length = fast_length(2 * n - 2)
    spectrum = torch.view_as_real(_spectrum(rows, length)).flatten(-2)
    power = spectrum.square().sum(-2).unflatten(-1, (-1, 2)).sum(-1)
    out = torch.fft.irfft(power, n=length)[..., :n]
    if length == 2 * n - 2:
        out[..., n - 1] /= 2
    return out.to(rows.dtype)


@dataclass(frozen=True)
class Auto:
    """Choose the richest structures within a budget of memory.

    Attributes:
        max_state_ratio: State of the whole optimiser relative to AdamW's two numbers per parameter: 1.0 is AdamW's memory, 0.55 about half.
            Every layer starts diagonal; the cheapest upgrades (blocks of 32, hierarchical (32, 32), dense) are taken while they fit.
    """

    max_state_ratio: float = 1.0

    def __post_init__(self):
        if not self.max_state_ratio > 0:
            raise ValueError(f"max_state_ratio={self.max_state_ratio!r}, wanted above 0: 1.0 is AdamW's memory.")

    def choose(
        self, shapes: list[tuple[int, int, int]], kept: int, *, momentum: bool, factor_momentum: bool
    ) -> list[tuple[Structure, Structure]]:
        """Return (inputs, outputs) structures for layers ``(blocks, d, inputs)``; ``kept`` numbers are stored for other parameters.

        Raises:
            ValueError: when even diagonal factors exceed the budget; the message says the least ratio that does not.

        Example:
            >>> Auto(1.0).choose([(1, 64, 9)], 0, momentum=True, factor_momentum=True)
            [(Dense(), Diagonal())]
        """
        copies = 2 if factor_momentum else 1
        count = sum(b * d * p for b, d, p in shapes) + kept // 2
        factors = [(b, n) for b, d, p in shapes for n in (p, d)]
        ladders = [sorted(_ladder(n), key=lambda structure, n=n: structure.size(n)) for _, n in factors]
        at = [0] * len(factors)
        used = kept + sum(b * ladder[0].size(n) * copies for (b, n), ladder in zip(factors, ladders, strict=True))
        used += sum(b * d * p for b, d, p in shapes) if momentum else 0
        budget = 2 * self.max_state_ratio * count
        if used > budget:
            raise ValueError(
                f"max_state_ratio={self.max_state_ratio}: diagonal factors alone need {used / (2 * count):.3f}. Fix: ask for at least that."
            )
        while True:
            offers = []
            for i, ((b, n), ladder) in enumerate(zip(factors, ladders, strict=True)):
                if at[i] + 1 < len(ladder):
                    offers.append((b * copies * (ladder[at[i] + 1].size(n) - ladder[at[i]].size(n)), i))
            if not offers or used + min(offers)[0] > budget:
                break
            cost, i = min(offers)
            used, at[i] = used + cost, at[i] + 1
        chosen = [ladder[k] for ladder, k in zip(ladders, at, strict=True)]
        return list(zip(chosen[::2], chosen[1::2], strict=True))


def _ladder(n: int) -> list[Structure]:
    richer: list[Structure] = [BlockDiagonal(32), Hierarchical(32, 32)]
    return [Diagonal(), *(one for one in richer if n < one.size(n) < n * n), Dense()]
