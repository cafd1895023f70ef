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

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Factor = tuple[Tensor, ...]
"""The stored numbers of a batch of structured matrices; every tensor has the batch first."""
Shapes = tuple[tuple[int, int], ...]
"""Number of matrices and their side, of each of several batches."""


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

    def square(self, factor: Factor, n: int) -> Tensor:
        """Return the traces of ``K^T K`` ``[B]``: sums of squares of all entries."""
        ...

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """Return ``X K K^T`` (``dim=-1``) or ``K K^T X`` (``dim=-2``) for ``X [B, d, p]``, in the cheapest order of products."""
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


def eye(structure: Structure, batch: int, n: int, like: Tensor) -> Factor:
    """Return a batch of identities with the dtype and device of ``like``.

    >>> from popflow.optim.structures.blocks import Diagonal
    >>> eye(Diagonal(), 1, 3, torch.zeros(()))
    (tensor([[1., 1., 1.]]),)
    """
    return structure.from_diagonal(like.new_ones(batch, n))


def trace(structure: Structure, factor: Factor, n: int) -> Tensor:
    """Return the traces ``[B]``."""
    return structure.diagonal(factor, n).sum(-1)


def spectral_bound(matrix: Tensor) -> Tensor:
    """Upper bound of the spectral norm of ``[..., n, n]``: ``|M - t I|_F + |t|`` with the mean ``t`` of the diagonal, or ``|M|_F`` if that is less.

    ``|M - t I|_F^2 = |M|_F^2 - n t^2``, so that one pass over memory gives both, and a rotation of the coordinates changes neither; what the
    difference may lose to rounding is added.
    """
    square = torch.linalg.vector_norm(matrix, dim=(-2, -1)).square()
    return bound_by(square, matrix.diagonal(dim1=-2, dim2=-1).sum(-1), matrix.shape[-1])


def bound_by(square: Tensor, trace: Tensor, n: int | Tensor) -> Tensor:
    """`spectral_bound` from the sum of squares and the trace of ``n x n`` matrices.

    >>> bound_by(torch.tensor(13.0), torch.tensor(5.0), 2)  # of a diagonal matrix of 2 and 3: 2.5 and 0.5 sqrt 2
    tensor(3.2072)
    """
    mean = trace / n
    rest = torch.addcmul(square, mean, trace, value=-1).clamp_(min=0).add_(square, alpha=64 * torch.finfo(square.dtype).eps)
    return torch.minimum(square.sqrt(), rest.sqrt_().add_(mean.abs()))


def squares(factor: Factor) -> Tensor:
    """Sum of squares of the stored numbers ``[B]``: `Structure.square` of a structure that stores each entry once.

    >>> squares((torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])))
    tensor([14.])
    """
    if len(factor) == 1:
        return torch.linalg.vector_norm(factor[0].flatten(1), dim=1).square()
    return torch.cat([part.flatten(1) for part in factor], 1).square().sum(1)


def by_products(structure: Structure, factor: Factor, x: Tensor, dim: int) -> Tensor:
    """`Structure.precondition` by one product with ``K`` and one with its transpose."""
    if dim == -2:
        return by_products(structure, factor, x.mT, -1).mT
    return structure.right_t(factor, structure.right(factor, x))
