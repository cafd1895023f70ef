"""The kernel, the likelihood, the posterior and the shrinking variance equal what dense linear algebra gives."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from popflow.evolve.preranking import RATIOS, PreRanking, Surrogate, likelihood_fit, minmax, rank_normal, unary

TABLE = {f"m{i}": row for i, row in enumerate(np.random.default_rng(0).poisson(0.7, (60, 24)))}


def counts(molecules: list[str]) -> np.ndarray:
    return np.array([TABLE[one] for one in molecules])


def dense(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(x[:, None], y).sum(-1) / np.maximum(x[:, None], y).sum(-1)


@pytest.fixture
def scored() -> tuple[list[str], np.ndarray]:
    known = list(TABLE)[:40]
    return known, counts(known) @ np.random.default_rng(1).normal(size=24)


def test_minmax_is_exact_and_positive_definite() -> None:
    x = counts(list(TABLE))
    kernel = minmax(unary(x), unary(x))
    assert np.abs(kernel - dense(x, x)).max() < 1e-15
    assert np.linalg.eigvalsh(kernel).min() > 0
    with pytest.raises(ValueError, match="whole numbers"):
        unary(np.array([[0.5]]))


def test_rank_normal_targets_are_blind_to_monotone_changes() -> None:
    scores = np.random.default_rng(2).normal(size=30)
    assert np.array_equal(rank_normal(scores), rank_normal(np.exp(5 * scores)))
    tied = rank_normal(np.array([0.0, 0.0, 1.0, 0.0]))
    assert tied[0] == tied[1] == tied[3] < tied[2]


def test_the_fit_maximises_the_likelihood(scored: tuple[list[str], np.ndarray]) -> None:
    x, z = counts(scored[0]), rank_normal(scored[1])
    kernel = dense(x, x)
    ratio, scale = likelihood_fit(kernel, z)

    def likelihood(ratio: float, scale: float) -> float:
        return multivariate_normal(cov=scale * (kernel + ratio * np.eye(40))).logpdf(z)

    best = likelihood(ratio, scale)
    assert all(likelihood(other, scale * factor) <= best + 1e-9 for other in RATIOS for factor in (0.5, 0.9, 1.0, 1.1, 2.0))


def test_the_posterior_and_the_batch_equal_dense_conditioning(scored: tuple[list[str], np.ndarray]) -> None:
    known, scores = scored
    surrogate = Surrogate(counts)
    surrogate.update(known[:25], scores[:25])
    surrogate.update(known, scores)  # the kernel grew by blocks
    candidates = list(TABLE)[40:]
    posterior = surrogate.posterior(candidates)
    x, y, s, r = counts(known), counts(candidates), surrogate.scale, surrogate.ratio
    solve = np.linalg.inv(s * (dense(x, x) + (r + 1e-8) * np.eye(40)))
    cross = s * dense(x, y)
    covariance = s * dense(y, y) - cross.T @ solve @ cross
    assert np.allclose(posterior.mean, cross.T @ solve @ rank_normal(scores))
    assert np.allclose(posterior.variance, covariance.diagonal())

    chosen: list[int] = []
    for _ in range(6):
        bound = posterior.mean + 2.0 * np.sqrt(np.maximum(variance_after(covariance, chosen, posterior.noise), 0))
        bound[chosen] = -np.inf
        chosen.append(int(bound.argmax()))
    assert posterior.batch(6, beta=2.0) == chosen
    assert len(set(posterior.batch(99))) == 20, "a batch larger than the candidates is all of them"


def variance_after(covariance: np.ndarray, chosen: list[int], noise: float) -> np.ndarray:
    """Posterior variances once the chosen candidates are observed with noise."""
    if not chosen:
        return covariance.diagonal().copy()
    cross = covariance[:, chosen]
    return covariance.diagonal() - (cross @ np.linalg.inv(covariance[np.ix_(chosen, chosen)] + noise * np.eye(len(chosen))) * cross).sum(1)


def test_posteriors_are_joined_and_cut(scored: tuple[list[str], np.ndarray]) -> None:
    known, scores = scored
    surrogate, others = Surrogate(counts), list(TABLE)[40:]
    surrogate.update(known, scores)
    whole = surrogate.posterior(others)
    parts = surrogate.posterior(others[:7]).joined(surrogate.posterior(others[7:]))
    assert np.allclose(parts.mean, whole.mean, atol=1e-12)
    assert np.allclose(parts.variance, whole.variance, atol=1e-12)
    assert parts.since(7).batch(4) == surrogate.posterior(others[7:]).batch(4)


def test_twins_are_not_both_chosen() -> None:
    TABLE["twin"] = TABLE["other twin"] = np.eye(24, dtype=int)[0] * 3
    TABLE["third"] = np.eye(24, dtype=int)[5] * 2
    surrogate = Surrogate(counts, ratio=1e-4)
    surrogate.update(["m0", "m1", "m2"], np.array([0.0, 1.0, 2.0]))
    surrogate.ratio = 1e-4
    posterior = surrogate.posterior(["twin", "other twin", "third"])
    posterior.mean[:] = [0.2, 0.2, 0.0]
    posterior.noise = 1e-4 * posterior.scale
    assert set(posterior.batch(2, beta=3.0)) != {0, 1}


def test_what_does_not_fit_is_named(scored: tuple[list[str], np.ndarray]) -> None:
    known, scores = scored
    surrogate = Surrogate(counts)
    with pytest.raises(ValueError, match="no data"):
        surrogate.posterior(known)
    with pytest.raises(ValueError, match="at least two"):
        surrogate.update(known[:1], scores[:1])
    surrogate.update(known, scores)
    with pytest.raises(ValueError, match="do not begin with"):
        surrogate.update(known[::-1], scores)
    with pytest.raises(ValueError, match="beta="):
        PreRanking(beta=-1)
