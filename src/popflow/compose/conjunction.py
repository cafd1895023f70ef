"""AND: the move in the span of the score differences that gives all experts the density that is wanted of them.

A step ``dy = dy_0 + U^T p`` goes on from ``dy_0`` in the span of the differences of the scores, of which ``U`` is an orthonormal basis. The changes of the experts'
log-densities are quadratic functions of p (`popflow.compose.curvature.log_increments`, or linear ones with Euler's kernels), so for two experts p is the root
nearest to zero of a scalar equation, and the vertex of its parabola where it has none; for more it is found by Newton's method. Experts are compared
through orthonormal contrasts: their order does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.curvature import orthonormal

_NEWTON_STEPS = 12


@dataclass(frozen=True, eq=False)
class Differences:
    """Contrasts of the scores of M experts, and a basis of their span.

    Attributes:
        contrasts: ``E^T``, ``[r, M]`` with orthonormal rows that sum to zero, ``r = M - 1``.
        vectors: ``E^T s``, ``[*batch, n, r, T]`` in float64.
        basis: ``U``, ``[*batch, n, r, T]``, orthonormal in turn; zero where scores differ by no more than rounding.
    """

    contrasts: Tensor
    vectors: Tensor
    basis: Tensor

    @staticmethod
    def of(s: Tensor, digits: float) -> Differences:
        """Contrasts of scores ``[*batch, n, M, T]`` in float64, which are known to a relative accuracy of ``digits``.

        Differences of no more than 64 times that count as rounding: solving for them would throw the particles out.
        """
        contrasts = helmert(s.shape[-2], s)
        vectors = contrasts @ s
        rounding = 64 * digits * s.square().sum(-1).mean(-1, keepdim=True).sqrt()
        return Differences(contrasts, vectors, orthonormal(vectors.unbind(-2), [rounding] * len(contrasts)))

    def shares(self, p: Tensor, reach: float) -> Tensor:
        """Changes of the shares ``[*batch, n, M]`` that move by ``U^T p`` where a unit of ``sum_i delta_i s_i`` moves by ``reach``; they sum to zero."""
        system = (self.vectors @ self.basis.mT).mT  # U V^T, upper triangular
        missing = system.diagonal(dim1=-2, dim2=-1) == 0
        system = system + torch.diag_embed(missing.to(system))
        return (torch.linalg.solve_triangular(system, p.unsqueeze(-1), upper=True).squeeze(-1) / reach) @ self.contrasts


def helmert(count: int, like: Tensor) -> Tensor:
    """Orthonormal contrasts of ``count`` numbers, ``[count - 1, count]``: each row compares the mean of the first k with the next.

    >>> helmert(2, torch.zeros(1, dtype=torch.float64)).tolist()
    [[0.7071067811865475, -0.7071067811865475]]
    """
    rows = []
    for k in range(1, count):
        size = 1 / math.sqrt(k * (k + 1))
        rows.append(torch.cat([like.new_full((k,), size), like.new_full((1,), -k * size), like.new_zeros(count - k - 1)]))
    return torch.stack(rows)


def equalise(of: Differences, value: Tensor, slope: Tensor, bend: Tensor, ridge: float, limit: float) -> Tensor:
    """Solve ``value_i + <slope_i, p> + 1/2 p^T bend_i p`` equal for all experts i; ``p [*batch, n, r]``.

    Args:
        of: From `Differences.of`.
        value: What is missing at ``p = 0``, ``[*batch, n, M]``.
        slope: ``[*batch, n, M, r]``.
        bend: ``[*batch, n, M, r, r]``.
        ridge: Relative ridge: ``|differences|^2 + ridge tr(C C^T)/M |p|^2`` is made small, with the centred scores C.
        limit: Longest p.
    """
    pull = ridge * of.vectors.square().sum((-2, -1)) / value.shape[-1]  # tr(C C^T)/M times the ridge
    value, slope = of.contrasts @ value.unsqueeze(-1), of.contrasts @ slope
    bend = torch.einsum("km,...mij->...kij", of.contrasts, bend)
    if slope.shape[-1] == 1:
        p = _root(bend[..., 0, 0, 0] / 2, slope[..., 0, 0], value[..., 0, 0]).unsqueeze(-1)
        steep = of.vectors[..., 0, :].square().sum(-1)
        return _within(p / (1 + pull / torch.where(steep == 0, 1.0, steep)).unsqueeze(-1), limit)
    return _newton(value.squeeze(-1), slope, bend, pull, limit)


def _root(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Root of ``a p^2 + b p + c`` nearest to zero; the vertex where there is none; 0 for ``a = b = 0``."""
    inside = b * b - 4 * a * c
    below = b + torch.where(b < 0, -1.0, 1.0) * inside.clamp_min(0.0).sqrt()
    above = torch.where(inside < 0, -b, -2 * c)
    below = torch.where(inside < 0, 2 * a, below)
    return torch.where(below == 0, 0.0, above / torch.where(below == 0, 1.0, below))


def _within(p: Tensor, limit: float) -> Tensor:
    """Shorten p to a limit."""
    if limit == math.inf:
        return p
    length = p.norm(dim=-1, keepdim=True)
    return p * (limit / length.clamp_min(limit))


def _newton(value: Tensor, slope: Tensor, bend: Tensor, pull: Tensor, limit: float) -> Tensor:
    """Least squares of r quadratic functions of r unknowns by damped Gauss-Newton (Levenberg-Marquardt), a fixed number of steps."""
    p, r = torch.zeros_like(value), value.shape[-1]
    eye = torch.eye(r, dtype=value.dtype, device=value.device)
    damping, pull = torch.full_like(pull, 1e-12), pull[..., None]

    def at(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turned = (bend @ p[..., None, :, None]).squeeze(-1)  # [*batch, n, r, r]
        off = value + ((slope + turned / 2) @ p.unsqueeze(-1)).squeeze(-1)
        return off, slope + turned, off.square().sum(-1) + (pull * p.square()).sum(-1)

    off, jacobian, size = at(p)
    for _ in range(_NEWTON_STEPS):
        normal = jacobian.mT @ jacobian + pull[..., None] * eye
        scale = normal.diagonal(dim1=-2, dim2=-1).mean(-1)
        system = normal + (damping * scale + torch.finfo(value.dtype).tiny)[..., None, None] * eye
        right = -(jacobian.mT @ off.unsqueeze(-1)).squeeze(-1) - pull * p
        trial = _within(p + torch.linalg.solve_ex(system, right.unsqueeze(-1))[0].squeeze(-1), limit)
        better = at(trial)
        won = better[2] < size
        p = torch.where(won[..., None], trial, p)
        off = torch.where(won[..., None], better[0], off)
        jacobian = torch.where(won[..., None, None], better[1], jacobian)
        size = torch.where(won, better[2], size)
        damping = torch.where(won, damping / 10, (damping * 100).clamp_min(1e-6))
    return p
