r"""How good a search was: area under the curve of the best so far, volume that a front dominates, diversity.

Source: Gao, Fu, Sun and Coley, "Sample efficiency matters" (NeurIPS 2022) for the area; Zitzler and Thiele (1998) for the hypervolume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from popflow.core.checks import at_least_one
from popflow.evolve.molecules import DataStructs, bit_fingerprint


def top_mean(values: ArrayLike, top: int = 10) -> float:
    """Return the mean of the ``top`` largest values, of all where there are fewer.

    >>> top_mean([1.0, 3.0, 2.0], top=2)
    2.5
    """
    at_least_one(top=top)
    return float(np.sort(_numbers(values))[::-1][:top].mean())


def area(values: ArrayLike, budget: int, top: int = 10, every: int = 100) -> float:
    r"""Return PMO's area under the curve of the mean of the best values against calls, divided by the budget.

    With :math:`m_n` the mean of the ``top`` largest of the first n values, F = ``every``, N values and a budget of B calls,

    .. math:: \frac1B \Big[ \sum_{k} F \frac{m_{kF} + m_{(k-1)F}}2 + (N - k_{last} F) \frac{m_N + m_{k_{last} F}}2 + (B - N) m_N \Big],

    where k runs over kF < N and :math:`m_0 = 0`: the first trapezoid counts half, and a search that stops early keeps its last level.

    Args:
        values: Values in the order of the calls, ``[N]``.
        budget: Calls allowed, B.
        top: How many of the best are averaged.
        every: Calls between two readings of the curve.

    Raises:
        ValueError: without values, with values that are not finite, or with more values than the budget allows.

    Example:
        >>> area([0.5] * 1000, budget=1000)  # a constant c gives c (1 - F / 2B)
        0.475
        >>> area([1.0] * 100, budget=1000)
        0.95
    """
    at_least_one(budget=budget, top=top, every=every)
    numbers = _numbers(values)
    count = len(numbers)
    if count > budget:
        raise ValueError(f"values holds {count} calls, wanted at most budget={budget}: cut it to values[:{budget}].")
    total = before = 0.0
    read = 0
    for index in range(every, count, every):
        now = top_mean(numbers[:index], top)
        total += every * (now + before) / 2
        before, read = now, index
    last = top_mean(numbers, top)
    return (total + (count - read) * (last + before) / 2 + (budget - count) * last) / budget


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that points dominate above a reference point; all objectives, one to three, are maximised. Exact.

    Args:
        points: Objectives ``[n, d]``, d from 1 to 3. Points that are not better than the reference in each objective add nothing.
        reference: The worst corner ``[d]``.

    Raises:
        ValueError: for other shapes, or values that are not finite.

    Example:
        >>> hypervolume([[1.0, 2.0], [2.0, 1.0]], [0.0, 0.0])
        3.0
        >>> hypervolume([[1.0, 1.0, 1.0], [2.0, 1.0, 0.5]], [0.0, 0.0, 0.0])
        1.5
    """
    corner = np.asarray(reference, dtype=np.float64)
    cloud = np.asarray(points, dtype=np.float64)
    if corner.ndim != 1 or not 1 <= len(corner) <= 3:
        raise ValueError(f"reference has shape {corner.shape}, wanted [1], [2] or [3]: one worst value for each objective.")
    if cloud.size == 0:
        return 0.0
    if cloud.ndim != 2 or cloud.shape[1] != len(corner):
        raise ValueError(f"points has shape {cloud.shape}, wanted [n, {len(corner)}] as reference has {len(corner)} objectives.")
    if not (np.isfinite(cloud).all() and np.isfinite(corner).all()):
        raise ValueError("points or reference holds values that are not finite, wanted finite ones: leave failed molecules out.")
    gains = cloud - corner
    return _volume(gains[(gains > 0).all(1)])


def _volume(gains: np.ndarray) -> float:
    """Volume of the union of boxes ``[0, gain]``: slices between the levels of the last objective, from the highest down."""
    if len(gains) == 0:
        return 0.0
    if gains.shape[1] == 1:
        return float(gains.max())
    gains = gains[np.argsort(-gains[:, -1], kind="stable")]
    levels = np.append(gains[:, -1], 0.0)
    if gains.shape[1] == 2:
        return float(np.maximum.accumulate(gains[:, 0]) @ (levels[:-1] - levels[1:]))
    heights = levels[:-1] - levels[1:]
    return float(sum(heights[i] * _volume(gains[: i + 1, :-1]) for i in range(len(gains)) if heights[i] > 0))


def diversity(smiles: Sequence[str]) -> float:
    """Return the mean of 1 - Tanimoto (ECFP4) over all pairs of molecules, 0 for fewer than two.

    >>> diversity(["CCO", "CCO"])
    0.0
    """
    prints = [bit_fingerprint(one) for one in smiles]
    pairs = [DataStructs.BulkTanimotoSimilarity(prints[i], prints[:i]) for i in range(1, len(prints))]
    return float(1.0 - np.mean(np.concatenate(pairs))) if pairs else 0.0


def _numbers(values: ArrayLike) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"values has shape {numbers.shape}, wanted [n] with n at least 1.")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{int((~np.isfinite(numbers)).sum())} of values are not finite, wanted finite ones: leave failed calls out.")
    return numbers
