"""Couplings: marginals, optimality, the entropic plan of Gaussians in closed form."""

import math

import pytest
import torch

from popflow.core.errors import NonFiniteError
from popflow.core.metrics import wasserstein
from popflow.transport.coupling import between, exact, independent, pairs, sinkhorn


def normal(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("coupling", [independent, exact, lambda x, y: sinkhorn(x, y, 0.5)])
@pytest.mark.parametrize("sizes", [(20, 30), (1, 5), (7, 7)])
def test_plans_have_the_marginals(coupling, sizes):
    x, y = normal(sizes[0], 3, 0), normal(sizes[1], 3, 1).float().double()
    plan = coupling(x, y)
    assert plan.dtype == torch.float64
    torch.testing.assert_close(plan.sum(1), torch.full((sizes[0],), 1 / sizes[0], dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(plan.sum(0), torch.full((sizes[1],), 1 / sizes[1], dtype=torch.float64), rtol=1e-5, atol=0)


def test_the_exact_plan_costs_what_the_distance_says_and_the_entropic_one_nears_it():
    x, y = normal(40, 2, 0), normal(60, 2, 1) + 1
    cost = torch.cdist(x, y).square()
    best = float((exact(x, y) * cost).sum())
    assert best == pytest.approx(float(wasserstein(x, y, order=2)) ** 2)
    entropic = [float((sinkhorn(x, y, epsilon, tolerance=1e-3) * cost).sum()) for epsilon in (2.0, 0.2, 0.02)]
    assert entropic[0] > entropic[1] > entropic[2] > best - 1e-6
    assert entropic[2] < best * 1.02


def test_the_entropic_plan_of_gaussians_has_the_covariance_of_the_bridge():
    # N(0, 1) to N(0, 1) under sigma = 1: C = (sqrt(4 + sigma^4) - sigma^2) / 2 (both variances 1), epsilon = 2 sigma^2.
    grid = torch.linspace(-4.5, 4.5, 120, dtype=torch.float64)
    weight = torch.exp(-grid.square() / 2)
    count = (weight / weight.sum() * 4000).round().long()
    x = torch.repeat_interleave(grid, count)[::4, None]
    plan = sinkhorn(x, x, 2.0)
    covariance = float((plan * (x @ x.T)).sum()) / float(x.var(correction=0))
    assert covariance == pytest.approx((math.sqrt(5) - 1) / 2, abs=0.01)


def test_pairs_follow_the_plan_and_midpoints_lie_between():
    plan = torch.tensor([[0.1, 0.0], [0.2, 0.7]])
    i, j = pairs(plan, 20_000, torch.Generator().manual_seed(0))
    seen = torch.zeros(2, 2).index_put_((i, j), torch.ones(20_000), accumulate=True) / 20_000
    torch.testing.assert_close(seen, plan, atol=0.01, rtol=0)
    at, mass = between(torch.tensor([[0.0], [10.0]]), torch.tensor([[4.0], [20.0]]), plan, 0.25)
    assert at.flatten().tolist() == [1.0, 8.5, 12.5]
    assert mass.tolist() == pytest.approx([0.1, 0.2, 0.7])


def test_bad_input_is_named():
    x = normal(3, 2, 0)
    with pytest.raises(ValueError, match=r"x has shape \(3, 2\) and y \(3, 1\)"):
        exact(x, x[:, :1])
    with pytest.raises(ValueError, match=r"epsilon=0\.0, wanted a number above 0"):
        sinkhorn(x, x, 0.0)
    with pytest.raises(NonFiniteError, match="after 10 iterations"):
        sinkhorn(normal(50, 2, 1), normal(50, 2, 2) * 5, 1e-3, most=10)
