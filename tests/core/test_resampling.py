"""Resampling schemes: unbiased offspring, exact special cases, independence of populations."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import chi2
from torch import Tensor

from popflow.core import multinomial, residual, stratified, systematic

Scheme = Callable[[Tensor, torch.Generator], Tensor]
SCHEMES = [systematic, stratified, multinomial, residual]
LOW_VARIANCE = [systematic, stratified, residual]
WEIGHTS = torch.tensor([0.02, 0.31, 0.0, 0.11, 0.25, 0.005, 0.205, 0.1], dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts_of(idx: Tensor, n: int) -> Tensor:
    return torch.nn.functional.one_hot(idx, n).sum(-2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_offspring_counts_are_unbiased(scheme: Scheme) -> None:
    repetitions, n = 2000, len(WEIGHTS)
    counts = counts_of(scheme(WEIGHTS.expand(repetitions, n), seeded(11)), n).double()
    deviation, variance = counts.mean(0) - n * WEIGHTS, counts.var(0)
    random = variance > 1e-12
    assert (deviation[~random].abs() < 1e-9).all()
    # Each count is tested by itself (they are tied by their sum), at a family-wise level of 1e-3.
    statistic = deviation[random].square() * repetitions / variance[random]
    p = chi2.sf(statistic.numpy(), df=1) * int(random.sum())
    assert p.min() > 1e-3


def test_multinomial_counts_pass_pearsons_chi_square() -> None:
    repetitions, n = 2000, len(WEIGHTS)
    total = counts_of(multinomial(WEIGHTS.expand(repetitions, n), seeded(5)), n).sum(0).double()
    expected = repetitions * n * WEIGHTS
    kept = expected > 0
    statistic = ((total - expected).square() / expected)[kept].sum().item()
    assert total[~kept].sum() == 0
    assert chi2.sf(statistic, df=int(kept.sum()) - 1) > 1e-3


def test_variance_of_the_counts_is_ordered() -> None:
    counts = [
        counts_of(scheme(WEIGHTS.expand(4000, 8), seeded(3)), 8).double().var(0).sum() for scheme in (multinomial, residual, systematic)
    ]
    assert counts[0] > counts[1] > counts[2]
    assert counts[0].item() == pytest.approx((8 * WEIGHTS * (1 - WEIGHTS)).sum().item(), rel=0.05)


weight_lists = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=1, max_size=40).filter(lambda w: sum(w) > 0)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(weight_lists, st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=60, deadline=None)
def test_indices_are_valid_and_never_point_at_a_particle_without_weight(
    scheme: Scheme, values: list[float], seed: int, dtype: torch.dtype
) -> None:
    weights = torch.tensor(values, dtype=torch.float64)
    weights = (weights / weights.sum()).to(dtype)
    idx = scheme(weights, seeded(seed))
    assert idx.dtype == torch.long
    assert idx.shape == weights.shape
    assert (weights[idx] > 0).all()
    if scheme is not multinomial:
        assert (idx.diff() >= 0).all()


@given(weight_lists, st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_counts_stay_near_their_expectation(values: list[float], seed: int) -> None:
    weights = torch.tensor(values, dtype=torch.float64)
    weights = weights / weights.sum()
    n = len(values)
    expected = n * weights
    floor, ceiling = torch.floor(expected - 1e-9), torch.ceil(expected + 1e-9)
    by_systematic = counts_of(systematic(weights, seeded(seed)), n)
    assert ((by_systematic >= floor) & (by_systematic <= ceiling)).all()
    assert (counts_of(residual(weights, seeded(seed)), n) >= floor).all()
    assert ((counts_of(stratified(weights, seeded(seed)), n) - expected).abs() < 2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 10, 1000, 10**6])
@pytest.mark.parametrize("scheme", LOW_VARIANCE)
def test_uniform_weights_give_the_identity(scheme: Scheme, n: int, dtype: torch.dtype) -> None:
    weights = torch.zeros(n, dtype=dtype).softmax(-1)
    for seed in range(3):
        assert torch.equal(scheme(weights, seeded(seed)), torch.arange(n))


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("n", [1, 3, 1000, 10**6])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_ends_of_the_unit_interval(scheme: Scheme, n: int, u: float) -> None:
    weights = torch.arange(1, n + 1, dtype=torch.float64)
    weights[(n + 1) // 2 :] = 0  # without weight at the end, where u near 1 points
    weights = weights / weights.sum()

    def constant(*shape: int | torch.Size, **kwargs: object) -> Tensor:
        return torch.zeros(n, dtype=torch.float64).new_full(torch.Size(shape[0] if isinstance(shape[0], torch.Size) else shape), u)

    with patch("torch.rand", constant):
        idx = scheme(weights, seeded())
    assert idx.shape == (n,)
    assert (weights[idx] > 0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("winner", [0, 3, 6])
def test_one_particle_with_all_the_weight_takes_all(scheme: Scheme, winner: int) -> None:
    weights = torch.zeros(7)
    weights[winner] = 1
    assert scheme(weights, seeded()).tolist() == [winner] * 7


@pytest.mark.parametrize("scheme", SCHEMES)
def test_populations_of_a_batch_are_independent(scheme: Scheme) -> None:
    weights = torch.rand(2, 3, 50, generator=seeded(4), dtype=torch.float64)
    weights = weights / weights.sum(-1, keepdim=True)
    changed = weights.clone()
    changed[1, 2] = changed[1, 2].flip(-1)
    a, b = scheme(weights, seeded(9)), scheme(changed, seeded(9))
    assert a.shape == weights.shape
    same = (a == b).all(-1)
    assert same.flatten()[:5].all()
    assert not same[1, 2]
    # The same weights in every population: other random numbers in each, so other ancestors.
    rows = scheme(weights[0, 0].expand(2, 3, 50), seeded(9)).reshape(6, 50)
    assert len({tuple(row.tolist()) for row in rows}) == 6


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_generator_state_gives_the_same_ancestors(scheme: Scheme) -> None:
    assert torch.equal(scheme(WEIGHTS, seeded(1)), scheme(WEIGHTS, seeded(1)))
    assert not torch.equal(scheme(WEIGHTS.repeat(20) / 20, seeded(1)), scheme(WEIGHTS.repeat(20) / 20, seeded(2)))


def test_systematic_weights_of_a_million_keep_their_means() -> None:
    n = 10**6
    log_w = torch.linspace(-3, 0, n, dtype=torch.float64)
    weights = log_w.softmax(-1)
    idx = systematic(weights, seeded())
    wanted = (weights * log_w).sum().item()
    assert log_w[idx].mean().item() == pytest.approx(wanted, abs=1e-5)
