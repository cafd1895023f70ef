"""Wilson intervals against their defining equation and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from popflow.core import wilson
from popflow.core.statistics import Z_95, tail_shape


@pytest.mark.parametrize(("successes", "trials"), [(8, 10), (1, 200), (2.5, 7)])
def test_the_ends_solve_the_score_equation(successes, trials):
    """Each end q is a share from which the observed one is 1.96 standard errors away: ``(p - q)^2 = z^2 q (1 - q) / n``."""
    found = wilson(successes, trials)
    assert found.low < found.value == successes / trials < found.high
    for end in (found.low, found.high):
        assert (found.value - end) ** 2 == pytest.approx(Z_95**2 * end * (1 - end) / trials, rel=1e-9)


def test_no_success_and_nothing_but_successes():
    """Closed form: the upper end for no success is z^2 / (n + z^2), and the interval for n successes is its mirror image."""
    none, all_of_them = wilson(0, 32), wilson(32, 32)
    assert (none.low, none.high) == (0.0, pytest.approx(Z_95**2 / (32 + Z_95**2)))
    assert (all_of_them.low, all_of_them.high) == (pytest.approx(1 - none.high), 1.0)


def test_it_covers_the_true_share_as_often_as_it_says():
    """Binomial of 40 trials: the exact coverage at several shares is 95 % to within 4 % (the interval is discrete)."""
    for p in (0.05, 0.3, 0.5, 0.9):
        mass = [math.comb(40, k) * p**k * (1 - p) ** (40 - k) for k in range(41)]
        covered = sum(m for k, m in enumerate(mass) if wilson(k, 40).low <= p <= wilson(k, 40).high)
        assert covered == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 3), (4, 3), (math.nan, 3)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match=f"successes={successes}, trials={trials}: wanted"):
        wilson(successes, trials)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_shape_of_a_pareto_tail(k: float) -> None:
    """Weights ``u^-k`` of uniform u have a tail of shape k; the fit of 300 of 10 000 scatters by about 0.1."""
    u = torch.rand(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert tail_shape(-k * u.log()) == pytest.approx(k, abs=0.2)
    assert tail_shape(-k * u.log() + 5) == pytest.approx(tail_shape(-k * u.log()))  # scale does not matter


def test_bounded_weights_have_no_tail_and_few_have_none_that_is_known() -> None:
    u = torch.rand(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert tail_shape(u.log()) < 0
    assert math.isnan(tail_shape(torch.zeros(24)))
