"""Structured square factors: sets of matrices closed under product, with the projection that natural gradients on them need.

A factor is a tuple of tensors, each with a leading batch dimension, and means a batch of ``n x n`` matrices ``K``. Methods take the side ``n``
of the matrices where a factor alone may not tell it. Products act on the last dimension of *rows* ``X [B, rows, n]``.

The projection of a symmetric matrix ``N`` is the natural-gradient coordinate of its linear functional, not the nearest matrix of the set:
coordinates that appear on one side of the diagonal only (triangles, Toeplitz bands, borders) collect ``N_ij + N_ji = 2 N_ij``;
the diagonal and symmetric dense blocks are kept as they are. The trace is always kept.

Sets that are not closed under product (bands, low rank plus diagonal) cannot be structures.

Source: Lin, Dangel, Eschenhagen, Neklyudov, Kristiadi, Turner, Makhzani, "Structured inverse-free natural gradient descent", ICML 2024,
arXiv 2312.05705, section 3.2 and appendix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

Factor = tuple[Tensor, ...]
"""The stored numbers of a batch of structured matrices; every tensor has the batch first."""


class Structure(ABC):
    """A set of matrices that can serve as a Kronecker factor.

    A structure of your own defines three methods: `pack`, `dense` and `project`. The others have defaults that build the matrices; override
    them where the structure allows less work. What a factor stores must be linear in its matrix.

    >>> class Scalar(Structure):
    ...     def pack(self, matrix):
    ...         return (matrix[:, 0, :1],)
    ...     def dense(self, factor, n):
    ...         return factor[0].unsqueeze(-1) * torch.eye(n)
    ...     def project(self, matrix):
    ...         return (matrix.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True),)
    >>> Scalar().size(5), Scalar().multiply((torch.tensor([[2.0]]),), (torch.tensor([[3.0]]),), 5)
    (1, (tensor([[6.]]),))
    """

    entries_once: ClassVar[bool] = False
    """Whether a factor stores every entry of its matrix that is not zero exactly once."""

    @abstractmethod
    def pack(self, matrix: Tensor) -> Factor:
        """Return the stored numbers of matrices ``[B, n, n]`` that belong to the set."""

    @abstractmethod
    def dense(self, factor: Factor, n: int) -> Tensor:
        """Return the matrices ``[B, n, n]``."""

    @abstractmethod
    def project(self, matrix: Tensor) -> Factor:
        """Return the projection of symmetric matrices ``[B, n, n]``."""

    def size(self, n: int) -> int:
        """How many numbers one ``n x n`` factor stores."""
        return sum(part.numel() for part in self.from_diagonal(torch.ones(1, n)))

    def from_diagonal(self, diagonal: Tensor) -> Factor:
        """Make the factor with this diagonal ``[B, n]`` (its mean where the structure holds a constant diagonal)."""
        return self.project(torch.diag_embed(diagonal))

    def diagonal(self, factor: Factor, n: int) -> Tensor:
        """Return the diagonal ``[B, n]``."""
        return self.dense(factor, n).diagonal(dim1=-2, dim2=-1)

    def shift_(self, factor: Factor, n: int, value: float) -> None:
        """Add ``value I`` in place."""
        for part, one in zip(factor, self.from_diagonal(factor[0].new_ones(1, n)), strict=True):
            part.add_(one, alpha=value)

    def multiply(self, left: Factor, right: Factor, n: int) -> Factor:
        """Return the matrix product ``L R``."""
        return self.pack(torch.bmm(self.dense(left, n), self.dense(right, n)))

    def right(self, factor: Factor, rows: Tensor) -> Tensor:
        """Return ``X K`` for rows ``[B, m, n]``."""
        return torch.bmm(rows, self.dense(factor, rows.shape[-1]))

    def right_t(self, factor: Factor, rows: Tensor) -> Tensor:
        """Return ``X K^T`` for rows ``[B, m, n]``."""
        return torch.bmm(rows, self.dense(factor, rows.shape[-1]).mT)

    def left(self, factor: Factor, columns: Tensor) -> Tensor:
        """Return ``K X`` for columns ``[B, n, m]``."""
        return self.right_t(factor, columns.mT).mT

    def gram(self, factor: Factor, rows: Tensor) -> Factor:
        """Return the projection of ``K^T X^T X K`` for rows ``[B, m, n]``."""
        seen = self.right(factor, rows)
        return self.project(torch.bmm(seen.mT, seen))

    def inner(self, factor: Factor, n: int) -> Factor:
        """Return the projection of ``K^T K``."""
        matrix = self.dense(factor, n)
        return self.project(torch.bmm(matrix.mT, matrix))

    def square(self, factor: Factor, n: int) -> Tensor:
        """Return the traces of ``K^T K`` ``[B]``: sums of squares of all entries."""
        return squares(factor if self.entries_once else (self.dense(factor, n),))

    def precondition(self, factor: Factor, x: Tensor, dim: int) -> Tensor:
        """Return ``X K K^T`` (``dim=-1``) or ``K K^T X`` (``dim=-2``) for ``X [B, d, p]``."""
        if dim == -2:
            return self.precondition(factor, x.mT, -1).mT
        return self.right_t(factor, self.right(factor, x))

    def metric(self, factor: Factor, uses: int) -> Factor | None:
        """Return ``K K^T`` where that is a factor of the structure, and worth its memory for products with so many rows; None where not."""
        return None

    def inverse_root(self, gram: Factor, n: int, rows: Tensor, damping: Tensor) -> Factor:
        """Return ``K`` with ``K K^T = (U + damping I)^{-1}`` for the projected Gram matrix of ``rows [B]`` rows; by default of its diagonal alone."""
        return self.from_diagonal((self.diagonal(gram, n) + damping.unsqueeze(-1)).rsqrt())

    def bound(self, factor: Factor, n: int) -> Tensor:
        """Return an upper bound ``[B]`` of the spectral norm."""
        return spectral_bound(self.square(factor, n), self.diagonal(factor, n).sum(-1), n)


def spectral_bound(square: Tensor, trace: Tensor, n: int | Tensor) -> Tensor:
    """Upper bound of the spectral norm of ``n x n`` matrices from the sums of squares of their entries and their traces.

    ``|M - t I|_F + |t|`` with the mean ``t`` of the diagonal, or ``|M|_F`` if that is less. Since ``|M - t I|_F^2 = |M|_F^2 - n t^2``, one pass over
    memory gives both, and a rotation of the coordinates changes neither; what the difference may lose to rounding is added.

    >>> spectral_bound(torch.tensor(13.0), torch.tensor(5.0), 2)  # of a diagonal matrix of 2 and 3: 2.5 and 0.5 sqrt 2
    tensor(3.2072)
    """
    mean = trace / n
    rest = torch.addcmul(square, mean, trace, value=-1).clamp_(min=0).add_(square, alpha=64 * torch.finfo(square.dtype).eps)
    return torch.minimum(square.sqrt(), rest.sqrt_().add_(mean.abs()))


def squares(factor: Factor) -> Tensor:
    """Sum of squares of the stored numbers ``[B]``: of the matrices, where each entry is stored once.

    >>> squares((torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])))
    tensor([14.])
    """
    if len(factor) == 1:
        return torch.linalg.vector_norm(factor[0].flatten(1), dim=1).square()
    return torch.cat([part.flatten(1) for part in factor], 1).square().sum(1)
