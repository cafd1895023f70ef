"""Schedules: round trips against the definitions, grids, the DDPM table, and what is said of bad input."""

from __future__ import annotations

import math

import pytest
import torch

from popflow.compose import (
    DDPM,
    EDM,
    VE,
    VP,
    RectifiedFlow,
    alphas_cumprod,
    geometric,
    karras,
    levels_of,
    linear,
    linear_betas,
    scaled_linear_betas,
)
from popflow.compose.schedule import Grid, Schedule, check_levels

TABLE = DDPM(alphas_cumprod(scaled_linear_betas()))
SCHEDULES = [VP(), VP(0.2, 12.0), VE(), EDM(), RectifiedFlow(), RectifiedFlow(scale=1000.0), TABLE]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_time_and_sigma_are_inverse_for_floats_and_tensors(schedule: Schedule):
    sigmas = torch.tensor([0.03, 0.2, 1.0, 5.0, 14.0], dtype=torch.float64)
    assert torch.allclose(schedule.sigma(schedule.time(sigmas)), sigmas, rtol=1e-10)
    for sigma, time in zip(sigmas.tolist(), schedule.time(sigmas).tolist(), strict=True):
        assert schedule.time(sigma) == pytest.approx(time, rel=1e-12)
        assert schedule.sigma(time) == pytest.approx(sigma, rel=1e-10)
        assert isinstance(schedule.sigma(time), float)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_time_grows_with_noise(schedule: Schedule):
    assert bool((schedule.time(torch.linspace(0.03, 14.0, 200, dtype=torch.float64)).diff() > 0).all())


@pytest.mark.parametrize("sigma", [0.02, 0.7, 9.0])
def test_alpha_follows_the_definition_of_each_process(sigma: float):
    for schedule in (VP(), TABLE):
        alpha = schedule.alpha(sigma)
        assert alpha**2 + (alpha * sigma) ** 2 == pytest.approx(1, abs=1e-14)
    flow = RectifiedFlow(scale=1000.0)
    assert flow.alpha(sigma) + flow.alpha(sigma) * sigma == pytest.approx(1, abs=1e-14)
    assert flow.alpha(sigma) == pytest.approx(1 - flow.time(sigma) / 1000, abs=1e-14)
    assert VE().alpha(sigma) == EDM().alpha(sigma) == 1


def test_vp_matches_its_stochastic_equation():
    """``d log alpha / dt = -beta(t)/2`` with ``beta(t) = b0 + t (b1 - b0)``."""
    vp, t, h = VP(), 0.37, 1e-5
    slope = (math.log(vp.alpha(vp.sigma(t + h))) - math.log(vp.alpha(vp.sigma(t - h)))) / (2 * h)
    assert slope == pytest.approx(-(0.1 + t * 19.9) / 2, rel=1e-7)


def test_ddpm_table_gives_its_entries_back():
    table = alphas_cumprod(linear_betas(1000))
    ddpm = DDPM(table)
    positions = torch.tensor([0, 1, 250, 998, 999], dtype=torch.float64)
    expected = ((1 - table) / table).sqrt()[positions.long()]
    assert torch.allclose(ddpm.sigma(positions), expected, rtol=1e-12)
    assert torch.allclose(ddpm.alpha(expected), table[positions.long()].sqrt(), rtol=1e-12)
    assert torch.allclose(ddpm.time(expected), positions, atol=1e-8)


def test_ddpm_interpolates_log_sigma_and_stops_at_the_ends():
    low, high = TABLE.sigma(100.0), TABLE.sigma(101.0)
    assert TABLE.sigma(100.25) == pytest.approx(low**0.75 * high**0.25, rel=1e-12)
    assert TABLE.time(1e-4) == 0
    assert TABLE.time(1e4) == 999
    assert TABLE.time(torch.tensor(2.0)).dtype == torch.float32


@pytest.mark.parametrize("table", [torch.tensor([0.5]), torch.tensor([0.5, 0.6]), torch.tensor([1.0, 0.5]), torch.full((2, 2), 0.5)])
def test_ddpm_refuses_what_is_no_table(table: torch.Tensor):
    with pytest.raises(ValueError, match=r"alphas_cumprod of shape .* strictly decreasing .*cumprod\(1 - betas\)"):
        DDPM(table)


@pytest.mark.parametrize("grid", [karras, linear, geometric])
def test_grids_decrease_between_exact_ends(grid: Grid):
    levels = grid(50, 0.013, 17.3)
    assert levels.shape == (51,)
    assert levels.dtype == torch.float64
    assert (levels[0].item(), levels[-1].item()) == (17.3, 0.013)
    assert torch.equal(check_levels(levels), levels)


def test_grids_have_their_spacing():
    root = karras(50, 0.01, 20.0) ** (1 / 7)
    assert torch.allclose(root.diff(), root.diff()[0].expand(50), rtol=1e-9)
    log = geometric(50, 0.01, 20.0).log()
    assert torch.allclose(log.diff(), log.diff()[0].expand(50), rtol=1e-9)
    times = VP().time(levels_of(VP(), 20, 1.0, 1e-3))
    assert torch.allclose(times, torch.linspace(1, 1e-3, 21, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("grid", [karras, linear, geometric])
@pytest.mark.parametrize("arguments", [(0, 0.1, 1.0), (5, 1.0, 1.0), (5, 2.0, 1.0), (5, 0.0, 1.0), (5, -1.0, 1.0), (5, 0.1, math.inf)])
def test_grids_refuse_impossible_ends(grid: Grid, arguments: tuple[int, float, float]):
    with pytest.raises(ValueError, match="wanted"):
        grid(*arguments)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([1.0], "at least two levels"),
        ([[2.0, 1.0]], "at least two levels"),
        ([3.0, 1.0, 2.0], r"sigmas\[1\]=1 is followed by 2"),
        ([3.0, 1.0, 1.0], r"sigmas\[1\]=1 is followed by 1"),
        ([0.1, 1.0, 3.0], "strictly decreasing"),
        ([1.0, 0.5, -0.1], "only the last may be 0"),
        ([1.0, 0.0, -1.0], "only the last may be 0"),
        ([2.0, math.nan], "not finite"),
        ([1e200, 1.0], "square is not finite"),
    ],
)
def test_levels_are_checked(levels: list, message: str):
    with pytest.raises(ValueError, match=message):
        check_levels(torch.tensor(levels, dtype=torch.float64))


def test_the_pure_noise_end_of_a_flow_is_named():
    assert RectifiedFlow().sigma(1.0) == math.inf
    with pytest.raises(ValueError, match=r"pure-noise end \(t = 1\) is sigma = inf, start a little below it"):
        check_levels(levels_of(RectifiedFlow(), 10, 1.0, 0.0))
    assert check_levels(levels_of(RectifiedFlow(), 10, 0.999, 0.0))[-1] == 0
