r"""Several objectives: weights, fronts and the volume that they dominate. All objectives are minimised.

One population with the weights ``w`` samples ``p(x) exp(-beta sum_k w_k h_k(x))``. For a front, populations with weights spread over the simplex are sampled
together; what none of the rows dominates is the front. A weighted sum finds the convex part of a front; rows in between come from the spread of each
population.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from math import comb

import torch
from torch import Tensor


def simplex_weights(objectives: int, count: int) -> Tensor:
    """Return at least ``count`` weights spread evenly over the simplex, ``[weights, objectives]`` (Das and Dennis, 1998).

    >>> simplex_weights(2, 3).tolist()
    [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    if objectives < 1 or count < 1:
        raise ValueError(f"objectives={objectives}, count={count}, wanted at least one of each.")
    parts = 1
    while comb(parts + objectives - 1, objectives - 1) < count:
        parts += 1
    rows = []
    for bars in combinations(range(parts + objectives - 1), objectives - 1):
        edges = (-1, *bars, parts + objectives - 1)
        rows.append([(b - a - 1) / parts for a, b in pairwise(edges)])
    return torch.tensor(rows, dtype=torch.float64)


def front(values: Tensor) -> Tensor:
    """Return which rows of values ``[n, objectives]`` no other row dominates, as a mask ``[n]``; rows with NaN are not among them.

    >>> front(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])).tolist()
    [True, True, False, True]
    """
    alive = values.isfinite().all(1)
    order = torch.where(alive, values.nan_to_num(0).sum(1), torch.inf).argsort(stable=True)[: int(alive.sum())]
    kept = values.new_empty((0, values.shape[1]))
    mask = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    for i in order.tolist():  # sums ascend: no later row dominates an earlier one
        one = values[i]
        if not bool(((kept <= one).all(1) & (kept < one).any(1)).any()):
            kept = torch.cat([kept, one[None]])
            mask[i] = True
    return mask


def hypervolume(values: Tensor, reference: Tensor) -> float:
    """Return the volume between a reference point ``[objectives]`` and what values ``[n, objectives]`` dominate.

    By slices of the last objective: exact, for two or three objectives and up to a few thousand rows.

    >>> hypervolume(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([2.0, 2.0]))
    3.0
    """
    inside = values[(values < reference).all(1)].double()
    if not len(inside):
        return 0.0
    inside = inside[front(inside)]
    if inside.shape[1] == 1:
        return float(reference[0] - inside.min())
    order = inside[:, -1].argsort()
    inside, edges = inside[order], torch.cat([inside[order, -1], reference[-1:].double()])
    total = 0.0
    for k in range(len(inside)):
        depth = float(edges[k + 1] - edges[k])
        if depth > 0:
            total += depth * hypervolume(inside[: k + 1, :-1], reference[:-1])
    return total
