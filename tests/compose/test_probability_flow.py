"""Steps without noise: exact for a point at any step length, second-order-free otherwise, and noise above the level as before."""

from __future__ import annotations

import math

import pytest
import torch

from popflow.compose import Expert, both, either, feynman_kac, gaussian_mixture, karras, sample
from popflow.compose.probability_flow import flow_below
from popflow.core import Streams

GRID = torch.cat([karras(20, 0.05, 10.0), torch.zeros(1, dtype=torch.float64)])
POINT = Expert(lambda y, sigma, cond: (y - 2.0) / sigma, (3,))
WIDE = gaussian_mixture(torch.zeros(1, 3), 1.0)


def test_a_point_is_met_along_the_straight_line_at_every_level():
    seen = []
    sample(flow_below(feynman_kac(POINT, correct=False)), GRID, particles=4, rng=Streams(0), record=[seen.append], dtype=torch.float64)
    direction = (seen[0].pop.x - 2) / 10
    for state in seen:
        assert torch.allclose(state.pop.x, 2 + math.sqrt(state.t) * direction, atol=1e-12)


def test_euler_steps_of_the_flow_of_a_gaussian_converge_at_first_order():
    """``dy/dsigma = sigma y / (1 + sigma^2)`` has the solution ``y sqrt(1 + sigma^2)`` up to a constant."""
    errors = []
    for steps in (50, 100, 200):
        seen = []
        levels = torch.linspace(3.0, 0.1, steps + 1, dtype=torch.float64)
        sample(flow_below(feynman_kac(WIDE, correct=False)), levels, particles=4, rng=Streams(0), record=[seen.append], dtype=torch.float64)
        exact = seen[0].pop.x * math.sqrt(1.01 / 10)
        errors.append(float((seen[-1].pop.x - exact).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.2)


def test_above_the_level_nothing_changes_and_below_no_noise_is_drawn():
    plain, ended = [], []
    sampler = feynman_kac(WIDE**2.0, zeta=1.4)
    sample(sampler, GRID, particles=8, rng=Streams(0), record=[plain.append])
    sample(flow_below(sampler, 1.0), GRID, particles=8, rng=Streams(0), record=[ended.append])
    above = sum(math.sqrt(state.t) > 1.0 for state in plain)
    for k in range(above + 1):
        assert torch.equal(plain[k].pop.x, ended[k].pop.x)
    assert not torch.equal(plain[-1].pop.x, ended[-1].pop.x)
    assert torch.equal(ended[above].pop.log_w, ended[-1].pop.log_w)
    other = sample(flow_below(sampler, 0.0), GRID, particles=8, rng=Streams(0))
    assert torch.equal(other.x, plain[-1].pop.x)


@pytest.mark.parametrize("make", [both, either])
def test_shares_of_a_superposition_stay_as_they_are_below(make):
    a, b = (gaussian_mixture(torch.full((1, 3), m), 1.0) for m in (-1.0, 1.0))
    seen = []
    sample(flow_below(make([a, b]), 1.0), GRID, particles=8, rng=Streams(0), record=[seen.append])
    below = [state for state in seen if math.sqrt(state.t) <= 1.0]
    assert all(torch.equal(state.pop.aux["kappa"], below[0].pop.aux["kappa"]) for state in below)
    assert all(torch.equal(state.pop.aux["log_q"], below[0].pop.aux["log_q"]) for state in below)


def test_a_level_that_is_no_level_is_refused():
    with pytest.raises(ValueError, match=r"sigma=-1, wanted a noise level >= 0"):
        flow_below(feynman_kac(WIDE), -1)
