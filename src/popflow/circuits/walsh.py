r"""Walsh analysis: the cost as a sum over products of spins.

    C(sigma) = sum_S c_S prod_{p in S} Z_p,   Z_p = (-1)^sigma_p,   c_S = 2^-n sum_sigma (-1)^{sum_{p in S} sigma_p} C(sigma)

The weight of order m is ``W_m = sum_{|S|=m} c_S^2``. Quantum annealers and QAOA accept costs of order one and two.
"""

from __future__ import annotations

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


def walsh_weights(table: Tensor) -> Tensor:
    """Return the share of the variance at each order, ``[n + 1]``; 0 for order 0, the mean, and for every order of a constant cost.

    >>> walsh_weights(torch.tensor([0.0, 1.0, 1.0, 2.0])).tolist()
    [0.0, 1.0, 0.0]
    """
    n, squares = check_table(table), walsh(table).square()
    codes = torch.arange(2**n, device=table.device)
    order = sum(((codes >> k) & 1 for k in range(n)), torch.zeros_like(codes))
    by_order = squares.new_zeros(n + 1).index_add(0, order, squares)
    by_order[0] = 0
    total = by_order.sum()
    return by_order / total if float(total) > 0 else by_order


def qubo(table: Tensor) -> tuple[Tensor, float, float]:
    """Truncate a cost to pairs of bits, for annealers and QAOA: the best quadratic in the mean square over all networks.

    Returns:
        ``(Q, offset, residual)`` with ``cost ~ offset + sum_{p<=q} Q_pq sigma_p sigma_q`` for bits ``sigma`` in {0, 1}, parameter 0 first; Q is
        ``[n, n]``, upper triangular. ``residual`` is the share of the variance that pairs leave out.

    >>> matrix, offset, residual = qubo(torch.tensor([0.0, 1.0, 1.0, 4.0], dtype=torch.float64))
    >>> matrix.tolist(), offset, residual
    ([[1.0, 2.0], [0.0, 1.0]], 0.0, 0.0)
    """
    n, c = check_table(table), walsh(table)
    place = 2 ** torch.arange(n - 1, -1, -1, device=table.device)
    field, coupling = c[place], c[place[:, None] | place].triu(1)
    matrix = 4 * coupling - 2 * torch.diag(field + (coupling + coupling.T).sum(1))
    offset = float(c[0] + field.sum() + coupling.sum())
    return matrix, offset, float(walsh_weights(table)[3:].sum())
