"""Backward kernels with the curvature of each expert at each particle: second order in the step, for one Jacobian-vector product a direction.

The covariance of a backward kernel (`popflow.compose.backward_kernel`) is exactly ``h (I + h H)`` with ``H`` the Jacobian of the expert's score at the particle. It
is taken to be ``K`` in the span of a few orthonormal directions ``U`` and one number across it,

    K  =  I + h U H U^T,      c  =  c_e / (1 + b_e),      log det  =  log det K  +  (d - r) mean_k [log c_k - b_k / 2]

    c_k  =  1 + h r_k^T H r_k,      b_k  =  h^2 (|P H r_k|^2 - (r_k^T H r_k)^2) / c_k^2,      P  =  I - U^T U

where e is the direction that the particle moves in across the span, which carries the residual, and the ``r_k`` are e and random directions across. ``b`` is the
second order of the inverse and of the logarithm of ``I + h H`` in a direction that is no eigenvector: the product ``H r`` that is there anyway knows it. It is taken
for 1 at most. No variance may be smaller than that of a point, ``a = (sigma'/sigma)^2``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Fields = Callable[[Tensor], Tensor]
"""Scores of all experts, ``[rows, *event] -> [M, rows, *tangent]``, of independent rows."""


@dataclass(frozen=True, eq=False)
class Curved:
    """Variances of the backward kernels of M experts over ``h``, at each particle.

    Attributes:
        along: ``K``, ``[*batch, n, M, r, r]``, in the span of the directions.
        across: ``c``, ``[*batch, n, M]``.
        log_volume: Logarithm of the determinant of the whole, ``[*batch, n, M]``.
    """

    along: Tensor
    across: Tensor
    log_volume: Tensor

    def log_increments(self, frame: Tensor, displacement: Tensor, s: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor]:
        """Changes of the log-densities as a quadratic function of a further move ``p`` in the frame: value, slope, bend.

        ``log M_i(y + dy + U^T p | y) - log N(y; y + dy + U^T p, h)  =  value_i + <slope_i, p> + 1/2 p^T bend_i p``.

        Args:
            frame: ``U``, ``[*batch, n, r, T]``, that of the variances.
            displacement: ``dy``, ``[*batch, n, T]`` in float64.
            s: Scores, ``[*batch, n, M, T]`` in float64.
            h: Length of the step.

        Returns:
            ``[*batch, n, M]``, ``[*batch, n, M, r]``, ``[*batch, n, M, r, r]``.
        """
        off = displacement.unsqueeze(-2) - h * s
        inside = off @ frame.mT
        precision = torch.linalg.inv_ex(self.along)[0] if frame.shape[-2] > 1 else 1 / self.along
        pull = (precision @ inside.unsqueeze(-1)).squeeze(-1)
        square = (pull * inside).sum(-1) + (off.square().sum(-1) - inside.square().sum(-1)) / self.across
        value = (displacement.square().sum(-1, keepdim=True) - square) / (2 * h) - self.log_volume / 2
        slope = (displacement.unsqueeze(-2) @ frame.mT - pull) / h
        return value, slope, ((frame @ frame.mT).unsqueeze(-3) - precision) / h


def orthonormal(vectors: Sequence[Tensor], least: Sequence[Tensor | float]) -> Tensor:
    """Make vectors ``[..., T]`` orthonormal in turn (Gram-Schmidt, twice), ``[..., r, T]``; what is left of one no longer than ``least`` becomes zero.

    >>> orthonormal([torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])], [1e-6, 1e-6]).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    basis: list[Tensor] = []
    for vector, small in zip(vectors, least, strict=True):
        for _ in range(2):
            for one in basis:
                vector = vector - (vector * one).sum(-1, keepdim=True) * one
        length = vector.norm(dim=-1, keepdim=True)
        kept = length > small
        basis.append(torch.where(kept, vector / torch.where(kept, length, 1.0), 0.0))
    return torch.stack(basis, -2)


def curved(
    fields: Fields, point: Tensor, frame: Tensor, towards: Tensor, others: Sequence[Tensor], h: float, floor: float, dim: int
) -> Curved:
    """Variances along a frame and across it, by one Jacobian-vector product for each direction.

    Args:
        fields: The scores as functions of the points or of a displacement.
        point: Where to differentiate them, ``[rows, *tangent]``, with as many rows as there are particles.
        frame: Orthonormal directions ``[*batch, n, r, T]`` in float64 with T numbers in a tangent vector; rows of zeros are none.
        towards: Direction of the move across the frame, ``[*batch, n, T]``, of any length.
        others: Random directions, alike; no more than there is room for across the frame are used.
        h: Length of the step on the clock ``sigma^2``.
        floor: ``a``, the smallest variance.
        dim: Degrees of freedom.

    Example:
        >>> from popflow.compose import gaussian_mixture
        >>> q, y = gaussian_mixture(torch.zeros(1, 3), 1.0), torch.ones(1, 3)
        >>> frame, towards = torch.eye(1, 3, dtype=torch.float64).unsqueeze(0), torch.ones(1, 3, dtype=torch.float64)
        >>> found = curved(lambda y: q.score(y, 2.0).unsqueeze(0), y, frame, towards, [], 3.0, 0.25, 3)
        >>> [round(float(c[0, 0]), 4) for c in (found.along[..., 0, 0], found.across, found.log_volume.exp())]  # 1 - 3/5, and its cube
        [0.4, 0.4, 0.064]
    """
    r, shape = frame.shape[-2], towards.shape[:-1]
    room = [*frame.unbind(-2), *([towards, *others][: max(dim - r, 0)])]
    basis = orthonormal(room, [0.5] * r + [1e-6 * towards.norm(dim=-1, keepdim=True)] * (len(room) - r))
    products = []
    with torch.no_grad():
        for one in basis.unbind(-2):
            direction = one.reshape(point.shape).to(point.dtype)
            slope = torch.func.jvp(fields, (point,), (direction,))[1]
            products.append(slope.reshape(len(slope), *shape, -1).movedim(0, -2).double())  # [*batch, n, M, T]
    stacked = torch.stack(products, -2)  # [*batch, n, M, directions, T]
    block = stacked[..., :r, :] @ frame.mT.unsqueeze(-3)
    along = torch.eye(r, dtype=block.dtype, device=block.device) + h / 2 * (block + block.mT)
    along, volume = _floored(along, floor)
    slopes, inside = stacked[..., r:, :], stacked[..., r:, :] @ frame.mT.unsqueeze(-3)
    straight = (slopes * basis[..., None, r:, :]).sum(-1)  # e^T H e, [*batch, n, M, across]
    turned = slopes.square().sum(-1) - inside.square().sum(-1) - straight.square()  # |P H e|^2 - (e^T H e)^2
    each = (1 + h * straight).clamp_min(floor)
    if not each.shape[-1]:
        return Curved(along, torch.ones_like(volume), volume)
    bent = (h**2 * turned.clamp_min(0.0) / each.square()).clamp_max(1.0)
    rank = frame.square().sum((-2, -1)).round().unsqueeze(-1)
    return Curved(along, each[..., 0] / (1 + bent[..., 0]), volume + (dim - rank) * (each.log() - bent / 2).mean(-1))


def _floored(matrix: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Raise the eigenvalues of symmetric matrices to a floor; with them the logarithms of the determinants."""
    if matrix.shape[-1] == 0:
        return matrix, matrix.new_zeros(matrix.shape[:-2])
    if matrix.shape[-1] == 1:
        value = matrix.clamp_min(floor)
        return value, value[..., 0, 0].log()
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(floor)
    return (vectors * values.unsqueeze(-2)) @ vectors.mT, values.log().sum(-1)


def linear_and_bend(precision: Tensor, frame: Tensor, displacement: Tensor, s: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """Slope and bend of `Curved.log_increments` for kernels of the same variance everywhere, ``1 / c`` given as ``[M, 1]`` or ``[M, T]``."""
    slope = (displacement.unsqueeze(-2) * (1 - precision) + h * precision * s) @ frame.mT / h
    return slope, (frame.unsqueeze(-3) * (1 - precision).unsqueeze(-2)) @ frame.mT.unsqueeze(-3) / h
