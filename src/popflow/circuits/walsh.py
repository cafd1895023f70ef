r"""Walsh analysis: the cost as a sum over products of spins, and its truncation to pairs.

    C(sigma) = sum_S c_S prod_{p in S} Z_p,   Z_p = (-1)^sigma_p,   c_S = 2^-n sum_sigma (-1)^{sum_{p in S} sigma_p} C(sigma)

The weight of order m is ``W_m = sum_{|S|=m} c_S^2``. Terms of order one and two are what quantum annealers and QAOA accept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.circuits.cost import check_table


def walsh(table: Tensor) -> Tensor:
    """Return the coefficients ``c_S [2^n]``, the set S coded as a network whose 1 bits are its members; ``n 2^n`` operations.

    >>> walsh(torch.tensor([0.0, 1.0, 1.0, 2.0])).tolist()
    [1.0, -0.5, -0.5, 0.0]
    """
    n, out = check_table(table), table
    for k in range(n):
        halves = out.reshape(2**k, 2, -1)
        out = torch.stack((halves[:, 0] + halves[:, 1], halves[:, 0] - halves[:, 1]), 1).flatten()
    return out / 2**n


def orders(n: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the number of members of every coded set, ``[2^n]``."""
    codes = torch.arange(2**n, device=device)
    return sum((codes >> k) & 1 for k in range(n))  # type: ignore[return-value]


def walsh_weights(table: Tensor) -> Tensor:
    """Return the share of the variance at each order, ``[n + 1]``; 0 for order 0, the mean, and for every order of a constant cost.

    >>> walsh_weights(torch.tensor([0.0, 1.0, 1.0, 2.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    n, squares = check_table(table), walsh(table).square()
    by_order = squares.new_zeros(n + 1).index_add(0, orders(n, table.device), squares)
    by_order[0] = 0
    total = by_order.sum()
    return by_order / total if float(total) > 0 else by_order


@dataclass(frozen=True, slots=True)
class Quadratic:
    """The terms of order 0, 1 and 2: ``C2 = constant + sum_p field_p Z_p + sum_{p<q} coupling_pq Z_p Z_q``.

    Attributes:
        constant: Mean cost.
        field: ``[n]``, parameter 0 first.
        coupling: ``[n, n]``, upper triangle.
        residual: Share of the variance left out.
        table: ``[2^n]`` the truncated cost.
    """

    constant: float
    field: Tensor
    coupling: Tensor
    residual: float
    table: Tensor

    def qubo(self) -> tuple[Tensor, float]:
        """Return ``(Q [n, n] upper triangular, offset)`` with ``C2 = offset + sum_{p<=q} Q_pq sigma_p sigma_q`` for bits 0 and 1."""
        row = self.coupling + self.coupling.T
        q = 4 * self.coupling - 2 * torch.diag(self.field + row.sum(1))
        return q, self.constant + float(self.field.sum() + self.coupling.sum())


def quadratic(table: Tensor) -> Quadratic:
    """Truncate a cost to pairs: the quadratic with the least mean squared error over all networks.

    >>> found = quadratic(torch.tensor([0.0, 1.0, 1.0, 4.0], dtype=torch.float64))
    >>> found.constant, found.field.tolist(), found.coupling.tolist(), found.residual
    (1.5, [-1.0, -1.0], [[0.0, 0.5], [0.0, 0.0]], 0.0)
    """
    n, c = check_table(table), walsh(table)
    kept = torch.where(orders(n, table.device) <= 2, c, 0)
    place = [1 << (n - 1 - p) for p in range(n)]
    field = torch.stack([c[i] for i in place])
    coupling = torch.zeros(n, n, dtype=c.dtype, device=c.device)
    for p in range(n):
        for q in range(p + 1, n):
            coupling[p, q] = c[place[p] | place[q]]
    left, total = (c - kept).square().sum(), c[1:].square().sum()
    residual = float(left / total) if float(total) > 0 else 0.0
    return Quadratic(float(c[0]), field, coupling, residual, walsh(kept) * 2**n)
