"""Which of many children are worth a call: a Gaussian process on what was scored so far chooses a small batch.

    k(x, y) = s^2 sum_b min(x_b, y_b) / sum_b max(x_b, y_b)        MinMax (Tanimoto) kernel of Morgan counts x, y
    z       = Phi^-1((rank - 1/2) / n)                              rank-normal targets
    mu, v   = posterior of f | z = f + noise                        noise / s^2 on a grid and s^2 in closed form, by likelihood
    batch   = greedy argmax of mu + beta sqrt(v), v conditioned on what was chosen before

The variance of a Gaussian process does not depend on the values that it will see, so within a batch it shrinks exactly, and twins are not
both chosen. Rank-normal targets make the process blind to monotone changes of the objective: heavy tails and plateaus of raw scores break
the fit of the noise.

Sources: Ralaivola et al., *Graph kernels for chemical informatics* (2005) for the kernel; Tripp et al., *A fresh look at de novo molecular
design benchmarks* (2021) for the process as an optimiser; Desautels et al., *Parallelizing exploration-exploitation tradeoffs with
Gaussian process bandit optimization* (2014) for the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, eigh, solve_triangular
from scipy.sparse import csr_matrix, vstack
from scipy.special import ndtri
from scipy.stats import rankdata

from popflow.core.checks import at_least_one

Counts = Callable[[Sequence[str]], np.ndarray]
LEVELS = 256
RATIOS = tuple(10.0 ** np.arange(-4, 1.01, 0.25))
"""Noise variances over kernel variances among which the likelihood chooses."""


def unary(counts: np.ndarray) -> csr_matrix:
    """Return counts ``[n, bits]`` in unary, one column for each bit and level, so that products are sums of minima.

    ``sum_b min(x_b, y_b) = sum_b sum_l [x_b >= l] [y_b >= l]`` for whole numbers: a sparse product, exact, and linear in what occurs.

    Raises:
        ValueError: when a count is negative, not whole, or above 255.

    Example:
        >>> rows = unary(np.array([[3, 0], [1, 2]]))
        >>> (rows @ rows.T).toarray().tolist()
        [[3.0, 1.0], [1.0, 3.0]]
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or (counts < 0).any() or (counts != np.floor(counts)).any() or (counts >= LEVELS).any():
        raise ValueError(f"counts of shape {counts.shape} must be whole numbers [n, bits] from 0 to {LEVELS - 1}.")
    row, bit = counts.nonzero()
    times = counts[row, bit].astype(np.int64)
    ends = times.cumsum()
    level = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - times, times)
    columns = np.repeat(bit, times) * LEVELS + level
    shape = (len(counts), counts.shape[1] * LEVELS)
    return csr_matrix((np.ones(len(columns)), (np.repeat(row, times), columns)), shape=shape)


def minmax(x: csr_matrix, y: csr_matrix) -> np.ndarray:
    """Return the MinMax kernel ``[n, m]`` of counts in `unary`; two rows without any counts are alike.

    >>> rows = unary(np.array([[3, 0], [1, 2], [0, 0]]))
    >>> minmax(rows, rows).round(2).tolist()
    [[1.0, 0.2, 0.0], [0.2, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    least = np.asarray((x @ y.T).todense())
    most = np.asarray(x.sum(1)) + np.asarray(y.sum(1)).T - least
    return np.where(most > 0, least / np.maximum(most, 1), 1.0)


def rank_normal(scores: np.ndarray) -> np.ndarray:
    """Return normal scores of the ranks, ``Phi^-1((rank - 1/2) / n)``; equal scores share the mean of their ranks.

    >>> rank_normal(np.array([5.0, 1e9, -3.0])).round(3).tolist()
    [0.0, 0.967, -0.967]
    """
    return ndtri((rankdata(scores) - 0.5) / len(scores))


def likelihood_fit(kernel: np.ndarray, z: np.ndarray, ratios: Sequence[float] = RATIOS) -> tuple[float, float]:
    """Return noise ratio ``r`` on a grid and variance ``s^2`` that maximise the likelihood of ``z ~ N(0, s^2 (K + r I))``.

    One eigendecomposition serves the whole grid, and for each ``r`` the best variance is ``s^2 = z^T (K + r I)^-1 z / n``.

    Returns:
        ``(r, s^2)``.
    """
    lengths, vectors = eigh(kernel)
    squares = (vectors.T @ z) ** 2
    best = (-np.inf, ratios[0], 1.0)
    for ratio in ratios:
        d = np.maximum(lengths, 0.0) + ratio
        variance = max(float((squares / d).mean()), 1e-12)
        best = max(best, (-len(z) * np.log(variance) - float(np.log(d).sum()), ratio, variance))
    return best[1], best[2]


@dataclass(slots=True)
class Posterior:
    """The process after its data: means, variances and a greedy batch of candidates.

    Attributes:
        rows: Candidates in `unary`.
        mean: ``[m]`` posterior means.
        variance: ``[m]`` posterior variances of the function, without noise.
        solved: ``[n, m]`` covariance of data and candidates, solved by the Cholesky factor of the data.
        noise: Variance of the noise.
        scale: Variance of the function.
    """

    rows: csr_matrix
    mean: np.ndarray
    variance: np.ndarray
    solved: np.ndarray
    noise: float
    scale: float

    def upper(self, beta: float) -> np.ndarray:
        """Return the upper confidence bounds ``mu + beta sqrt(v)``, ``[m]``."""
        return self.mean + beta * np.sqrt(np.maximum(self.variance, 0.0))

    def joined(self, more: Posterior) -> Posterior:
        """Return the posterior at these candidates, then at those of ``more``, of the same process."""
        rows = csr_matrix(vstack([self.rows, more.rows]))
        mean, variance = np.concatenate([self.mean, more.mean]), np.concatenate([self.variance, more.variance])
        return Posterior(rows, mean, variance, np.hstack([self.solved, more.solved]), self.noise, self.scale)

    def since(self, first: int) -> Posterior:
        """Return the posterior without the first candidates."""
        return Posterior(self.rows[first:], self.mean[first:], self.variance[first:], self.solved[:, first:], self.noise, self.scale)

    def batch(self, size: int, beta: float = 1.0) -> list[int]:
        """Return a greedy batch: the largest bound first, then the largest once the variance knows of the ones before.

        Only the columns of the posterior covariance that are needed are computed, as in a pivoted Cholesky factorisation.
        """
        variance, free = self.variance.copy(), np.ones(len(self.mean), dtype=bool)
        factors = np.empty((min(size, len(self.mean)), len(self.mean)))
        chosen: list[int] = []
        for number in range(len(factors)):
            bound = np.where(free, self.mean + beta * np.sqrt(np.maximum(variance, 0.0)), -np.inf)
            j = int(bound.argmax())
            column = self.scale * minmax(self.rows[[j]], self.rows)[0] - self.solved[:, j] @ self.solved
            column -= factors[:number, j] @ factors[:number]
            factors[number] = column / np.sqrt(max(variance[j], 0.0) + self.noise)
            variance = variance - factors[number] ** 2
            free[j] = False
            chosen.append(j)
        return chosen


@dataclass(slots=True)
class Surrogate:
    """A Gaussian process with the MinMax kernel on what was scored so far; the kernel of the data grows by the new rows alone.

    Args:
        counts: ``molecules -> [n, bits]`` whole numbers; by default Morgan counts of radius 2, folded to 2048.
        refit: Noise and variance are fitted again once this many updates have passed.

    Attributes:
        ratio: Noise variance over kernel variance.
        scale: Kernel variance.

    Example:
        >>> letters = lambda words: np.array([[word.count(c) for c in "abc"] for word in words])
        >>> surrogate = Surrogate(letters)
        >>> surrogate.update(["aaa", "aab", "abb", "bbb", "bbc", "ccc"], np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]))
        >>> bool(surrogate.posterior(["aaaa"]).mean[0] > surrogate.posterior(["cccc"]).mean[0])
        True
    """

    counts: Counts | None = None
    refit: int = 5
    ratio: float = 0.1
    scale: float = 1.0
    updates: int = 0
    _known: list[str] = field(default_factory=list)
    _rows: csr_matrix | None = None
    _kernel: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    _factor: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    _solved: np.ndarray = field(default_factory=lambda: np.empty(0))

    def update(self, molecules: Sequence[str], scores: np.ndarray) -> None:
        """Condition on all that was scored; ``molecules`` begins with those of the update before.

        Raises:
            ValueError: when there are fewer than two molecules, other ones than before, or a score that is NaN.
        """
        scores = np.asarray(scores, dtype=float)
        if len(molecules) < 2 or len(molecules) != len(scores) or np.isnan(scores).any():
            raise ValueError(f"{len(molecules)} molecules and {len(scores)} scores, wanted one number each for at least two.")
        if list(molecules[: len(self._known)]) != self._known:
            raise ValueError(
                "molecules do not begin with those of the last update, wanted the same ones, in the same order, then new ones."
            )
        self._grow(list(molecules[len(self._known) :]))
        z = rank_normal(scores)
        if self.updates % self.refit == 0:
            self.ratio, self.scale = likelihood_fit(self._kernel, z)
        self.updates += 1
        self._factor = cho_factor(self.scale * (self._kernel + (self.ratio + 1e-8) * np.eye(len(z))), lower=True)[0]
        self._solved = solve_triangular(self._factor, z, lower=True)

    def posterior(self, molecules: Sequence[str]) -> Posterior:
        """Return the posterior at candidates.

        Raises:
            ValueError: before the first update.
        """
        if self._rows is None:
            raise ValueError("the process has no data. Fix: call update first.")
        rows = self._unary(molecules)
        solved = solve_triangular(self._factor, self.scale * minmax(self._rows, rows), lower=True)
        variance = self.scale - (solved**2).sum(0)
        return Posterior(rows, solved.T @ self._solved, variance, solved, self.scale * self.ratio, self.scale)

    def _grow(self, molecules: list[str]) -> None:
        if not molecules:
            return
        new = self._unary(molecules)
        if self._rows is None:
            self._rows, self._kernel = new, minmax(new, new)
        else:
            cross = minmax(self._rows, new)
            self._kernel = np.block([[self._kernel, cross], [cross.T, minmax(new, new)]])
            self._rows = csr_matrix(vstack([self._rows, new]))
        self._known += molecules

    def _unary(self, molecules: Sequence[str]) -> csr_matrix:
        if self.counts is None:
            from popflow.evolve.molecules import count_fingerprints

            return unary(count_fingerprints(molecules))
        return unary(self.counts(molecules))


@dataclass(frozen=True, slots=True)
class PreRanking:
    """How children are chosen before they are scored.

    Attributes:
        children: Children made, among which the batch is chosen.
        beta: Weight of the standard deviation.
        refit: Generations between fits of noise and variance.
        inner: Generations on the bound alone before the batch is chosen, each from the best by bound so far: 0 ranks the children of scored
            parents, a few make it Bayesian optimisation with a genetic algorithm inside (GP-BO).
        screen: Molecules offered to the process beside the first children, such as a larger pool.
    """

    children: int = 200
    beta: float = 1.0
    refit: int = 5
    inner: int = 0
    screen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least_one(children=self.children, refit=self.refit)
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta={self.beta!r}, wanted a finite number >= 0.")
        if self.inner < 0:
            raise ValueError(f"inner={self.inner!r}, wanted a count >= 0.")
