"""Who becomes a parent, and who survives.

A parent scheme is ``parents(fitness [n], count, rng) -> indices [count]``, drawn with replacement. A survival scheme is
``survive(values [n, k], size) -> indices``, the best first, of ``k`` objectives that are all maximised.

    proportional   p_i = (f_i + 1e-10) / sum_j (f_j + 1e-10)
    rank           p_i ~ 1 / (r_i + kappa n),  r_i = 0 for the best
    tournament     the best of k that are drawn uniformly
    Boltzmann      p_i ~ exp(f_i / T), by a resampler of the core

Sources: Jensen, *A graph-based genetic algorithm* (2019) for `proportional`; Tripp and Hernandez-Lobato, *Genetic algorithms are strong
baselines for molecule generation* (2023) for `rank`; Deb et al., *A fast and elitist multiobjective genetic algorithm: NSGA-II* (2002).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import rankdata

from popflow.core.checks import at_least_one
from popflow.core.resampling import systematic

Parents = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
Survival = Callable[[np.ndarray, int], np.ndarray]
Resampler = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def scalarised(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""Return one score for several objectives in any units: the augmented Chebyshev form of ParEGO, of ranks.

    .. math:: s_i = -\max_k w_k (1 - r_{ik}) - 0.05 \sum_k w_k (1 - r_{ik}),

    where :math:`r_{ik} \in [0, 1]` is the rank of molecule i among all by objective k (ties share their mean rank), so that no monotone change of
    an objective alters it. The score keeps the order of dominance, and but for the small last term each place of a front, a dented one too, is best
    for some weights; a sum would find the bulges alone.

    Args:
        values: Objectives, all to be maximised, ``[n, k]``.
        weights: Positive weights ``[k]``.

    Example:
        >>> scalarised(np.array([[0.1, 500.0], [0.9, 100.0], [0.5, 300.0]]), np.array([0.5, 0.5])).round(3).tolist()
        [-0.525, -0.525, -0.275]

    Source: Knowles, *ParEGO* (2006), whose normalised values are ranks here.
    """
    ranks = (rankdata(values, axis=0) - 1) / max(len(values) - 1, 1)
    missing = weights * (1 - ranks)
    return -missing.max(1) - 0.05 * missing.sum(1)


def proportional(shift: bool = False) -> Parents:
    """Return draws in proportion to fitness, ``p_i = (f_i + 1e-10) / sum``, as in Graph-GA and MOLLEO.

    Args:
        shift: Subtract the least fitness where one is negative. The worst is then hardly ever drawn, and the others by their distance from it.

    Raises:
        ValueError: (the scheme) when a fitness is negative and ``shift`` is off: it would be a negative probability.

    Example:
        >>> proportional()(np.array([0.0, 1.0]), 4, np.random.default_rng(0)).tolist()
        [1, 1, 1, 1]
        >>> proportional()(np.array([-7.0, -9.0]), 4, np.random.default_rng(0))
        Traceback (most recent call last):
        ValueError: fitness holds -9, and proportional selection wants values >= 0. Fix: choose rank selection, or shift=True.
    """

    def parents(fitness: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        fitness = _fitness(fitness)
        least = fitness.min()
        if least < 0 and not shift:
            raise ValueError(
                f"fitness holds {least:g}, and proportional selection wants values >= 0. Fix: choose rank selection, or shift=True."
            )
        return _draw(fitness - min(least, 0.0) + 1e-10, count, rng)

    return parents


def rank(kappa: float = 0.02) -> Parents:
    """Return draws by place, ``p_i ~ 1 / (r_i + kappa n)``: no monotone change of the objective alters them.

    Args:
        kappa: Small values prefer the best; large ones draw uniformly.

    Example:
        >>> rank(0.01)(np.array([-3.0, 5.0, 1.0]), 5, np.random.default_rng(0)).tolist()
        [1, 1, 1, 1, 1]
    """
    if not 0 < kappa < float("inf"):
        raise ValueError(f"kappa={kappa!r}, wanted a finite number above 0.")

    def parents(fitness: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        fitness = _fitness(fitness)
        places = np.empty(len(fitness))
        places[np.argsort(-fitness, kind="stable")] = np.arange(len(fitness))
        return _draw(1 / (places + kappa * len(fitness)), count, rng)

    return parents


def tournament(size: int = 2) -> Parents:
    """Return the best of ``size`` molecules that are drawn uniformly with replacement.

    >>> tournament(50)(np.array([0.0, 2.0, 1.0]), 3, np.random.default_rng(0)).tolist()
    [1, 1, 1]
    """
    at_least_one(size=size)

    def parents(fitness: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        fitness = _fitness(fitness)
        drawn = rng.integers(len(fitness), size=(count, size))
        return drawn[np.arange(count), fitness[drawn].argmax(1)]

    return parents


def boltzmann(temperature: float, resampler: Resampler = systematic) -> Parents:
    """Return draws from ``p_i ~ exp(f_i / T)`` by a resampler of `popflow.core.resampling`.

    A resampler gives as many as it was given, with unbiased counts; other numbers are taken from several of its rounds, shuffled.

    Args:
        temperature: In units of the fitness.
        resampler: ``(weights, generator) -> indices``.

    Example:
        >>> sorted(boltzmann(1e9)(np.array([0.0, 5.0, 9.0]), 3, np.random.default_rng(0)).tolist())
        [0, 1, 2]
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature!r}, wanted a finite number above 0.")

    def parents(fitness: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        weights = torch.from_numpy(_fitness(fitness) / temperature).softmax(0)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        rounds = [resampler(weights, generator).numpy() for _ in range(-(-count // len(weights)))]
        return rng.permutation(np.concatenate(rounds))[:count]

    return parents


def truncation(values: np.ndarray, size: int) -> np.ndarray:
    """Return the ``size`` with the largest sum of objectives, the best first; of equals the older one.

    >>> truncation(np.array([[1.0], [3.0], [2.0]]), 2).tolist()
    [1, 2]
    """
    return np.argsort(-_values(values).sum(1), kind="stable")[:size]


def front(values: np.ndarray, size: int | None = None) -> np.ndarray:
    """Return what nothing dominates, whatever its number, by falling sum: the survival of MOLLEO's Pareto mode.

    Args:
        values: ``[n, k]`` objectives, all maximised. A row dominates another when it is nowhere less and somewhere more.
        size: Not used: the front has the size that it has.

    Example:
        >>> front(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.5], [0.6, 0.6]])).tolist()
        [3, 0, 1]
    """
    values = _values(values)
    first = np.flatnonzero(fronts(values) == 0)
    return first[np.argsort(-values[first].sum(1), kind="stable")]


def nsga2(values: np.ndarray, size: int) -> np.ndarray:
    """Return ``size`` rows by front, within a front by crowding distance, as NSGA-II does.

    >>> nsga2(np.array([[0.0, 1.0], [0.45, 0.5], [0.5, 0.45], [1.0, 0.0], [0.1, 0.1]]), 3).tolist()
    [0, 3, 1]
    """
    values = _values(values)
    order, level = [], fronts(values)
    for number in range(int(level.max()) + 1):
        members = np.flatnonzero(level == number)
        order += members[np.argsort(-crowding(values[members]), kind="stable")].tolist()
        if len(order) >= size:
            break
    return np.asarray(order[:size], dtype=int)


def fronts(values: np.ndarray) -> np.ndarray:
    """Return the number of the front of each row ``[n]``: 0 where nothing dominates it, 1 once front 0 is gone, and so on.

    >>> fronts(np.array([[1.0, 1.0], [0.0, 0.0], [0.5, 0.9], [1.0, 1.0]])).tolist()
    [0, 2, 1, 0]
    """
    values = _values(values)
    dominates = np.ones((len(values), len(values)), dtype=bool)
    above = np.zeros_like(dominates)
    for column in values.T:
        dominates &= column[:, None] >= column
        above |= column[:, None] > column
    dominates &= above
    found, level = np.full(len(values), -1), 0
    while (found < 0).any():
        left = found < 0
        found[left & ~(dominates & left[:, None]).any(0)] = level
        level += 1
    return found


def crowding(values: np.ndarray) -> np.ndarray:
    """Return the crowding distance ``[n]`` of the rows of one front: the sum over objectives of the gap between both neighbours, in units of
    the range; infinite at the ends.

    >>> crowding(np.array([[0.0, 1.0], [0.25, 0.5], [1.0, 0.0]])).tolist()
    [inf, 2.0, inf]
    """
    values = _values(values)
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        distance[order[[0, -1]]] = np.inf
        width = column[order[-1]] - column[order[0]]
        if width > 0 and len(order) > 2:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / width
    return distance


def _draw(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(len(weights), size=count, p=weights / weights.sum())


def _fitness(fitness: np.ndarray) -> np.ndarray:
    fitness = np.asarray(fitness, dtype=float)
    if fitness.ndim != 1 or not len(fitness) or not np.isfinite(fitness).all():
        raise ValueError(f"fitness of shape {fitness.shape} must be one finite number for each of at least one molecule.")
    return fitness


def _values(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values of shape {values.shape} must be finite numbers [n, k], one row for each of at least one molecule.")
    return values
