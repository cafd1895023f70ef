"""Rates and committors of weighted trajectories against quadrature, with trajectories of the reference and of another process."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from popflow.core.errors import NonFiniteError
from popflow.paths.exact import committor_by_quadrature, mean_first_passage_by_quadrature
from popflow.paths.process import Overdamped
from popflow.paths.rates import committor, rate

NOISE, DT = 1.0, 0.005
KT = NOISE**2 / 2
SHIFT = 0.5826 * NOISE * math.sqrt(DT)
"""How far outwards a border moves that is looked at every DT (Broadie, Glasserman and Kou, Math. Finance 7 (1997) 325)."""


def well(x: Tensor) -> Tensor:
    """Two wells at -1 and 1, 4 kT deep."""
    return 2 * (x[..., 0].square() - 1).square()


def left(x: Tensor) -> Tensor:
    return x[:, 0] < -1


def right(x: Tensor) -> Tensor:
    return x[:, 0] > 1


def trajectories(start: Tensor, steps: int, push: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Euler-Maruyama of the double well with a constant push, ``[n, steps + 1, 1]``, and their log-weights towards no push."""
    rng, x, log_w, frames = torch.Generator().manual_seed(seed), start, torch.zeros(len(start)).double(), [start]
    for _ in range(steps):
        eps = torch.randn(x.shape, dtype=x.dtype, generator=rng)
        force = -8 * x * (x.square() - 1)
        x = x + DT * (force + push) + NOISE * math.sqrt(DT) * eps
        log_w = log_w - (push / NOISE * math.sqrt(DT) * eps + push**2 / (2 * NOISE**2) * DT)[:, 0]
        frames.append(x)
    return torch.stack(frames, 1), log_w


def in_the_left_well(n: int, seed: int = 1) -> Tensor:
    """Equilibrium of the left well below the border of A."""
    x = torch.linspace(-2.5, -1, 4001, dtype=torch.float64)
    density = torch.exp(-well(x[:, None]) / KT)
    return x[torch.multinomial(density, n, replacement=True, generator=torch.Generator().manual_seed(seed))][:, None]


@pytest.mark.parametrize("push", [0.0, 0.5])
def test_the_rate_is_the_inverse_of_the_mean_first_passage(push: float) -> None:
    steps, n = 400, 6000
    x, log_w = trajectories(in_the_left_well(n), steps, push)
    times = DT * torch.arange(steps + 1, dtype=torch.float64)
    exact = 1 / mean_first_passage_by_quadrature(Overdamped(well, noise=NOISE), -1.0, 1.0 + SHIFT, -3.0)
    value, error = rate(x, log_w, times, left, right, since=1.0)
    assert error < 0.15 * exact
    assert abs(value - exact) < 3 * error
    early, _ = rate(x, log_w, times, left, right)
    assert early < value  # starts need time to reach the barrier
    if push:
        plain, spread = rate(x, torch.zeros(n), times, left, right, since=1.0)
        assert plain > exact + 5 * spread  # without weights it is the rate of the other process


@pytest.mark.parametrize("push", [0.0, 0.5])
def test_the_committor_is_that_of_quadrature(push: float) -> None:
    n, edges = 4000, torch.linspace(-0.6, 0.6, 7, dtype=torch.float64)
    start = 2 * torch.rand(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 1
    x, log_w = trajectories(start, 500, push)
    q, error, decided = committor(x, log_w, left, right, lambda x: x[:, 0], edges)
    fine = torch.linspace(-0.6, 0.6, 601, dtype=torch.float64)
    every = committor_by_quadrature(well, KT, -1 - SHIFT, 1 + SHIFT, fine)
    exact = torch.stack([every[100 * k : 100 * k + 101].mean() for k in range(6)])
    assert float(decided.min()) > 0.9
    assert float(error.max()) < 0.08
    assert bool(((q - exact).abs() < 3.5 * error + 0.01).all())  # 0.01: cells are wide, and not visited evenly
    if push:
        plain, spread, _ = committor(x, torch.zeros(n), left, right, lambda x: x[:, 0], edges)
        assert float(((plain - exact) / spread).mean()) > 4


def test_weights_and_frames_count_as_they_are() -> None:
    x = torch.tensor([[-2.0, 0.0, 2.0, 2.0], [-2.0, 0.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)[..., None]
    log_w = torch.tensor([0.25, 0.75, 5.0]).log()
    q, _, decided = committor(x, log_w, left, right, lambda x: x[:, 0], torch.tensor([-0.5, 0.5]))
    assert float(q) == pytest.approx(0.25)  # the second path meets A first, and its last frame nothing
    assert float(decided) == pytest.approx(1.0 / (0.25 + 2 * 0.75 + 4 * 5))
    value, error = rate(x, log_w, torch.tensor([0.0, 0.5, 2.0, 3.0]), left, right)
    assert value == pytest.approx(0.25 / (2 * 3 - 0.25 * 1))  # the third path does not begin in A
    assert error > 0


def test_what_was_not_seen_is_not_known() -> None:
    x = torch.full((4, 3, 1), -2.0)
    assert rate(x, torch.zeros(4), torch.arange(3.0), left, right) == (0.0, math.inf)
    q, error, _ = committor(x, torch.zeros(4), left, right, lambda x: x[:, 0], torch.tensor([-0.5, 0.5]))
    assert bool(q.isnan().all())
    assert bool(error.isnan().all())


def test_bad_input_is_refused() -> None:
    x, log_w, times = torch.zeros(4, 3, 1), torch.zeros(4), torch.arange(3.0)
    with pytest.raises(ValueError, match="one weight for each trajectory"):
        rate(x, log_w[:2], times, left, right)
    with pytest.raises(ValueError, match=r"since=2\.0, wanted a time from 0\.0 to before 2\.0"):
        rate(x, log_w, times, left, right, since=2.0)
    with pytest.raises(ValueError, match="no trajectory begins in A"):
        rate(x, log_w, times, left, right)
    with pytest.raises(NonFiniteError, match="log_w has 1 of 4"):
        rate(x - 2, torch.tensor([0.0, 0.0, math.inf, 0.0]), times, left, right)
    with pytest.raises(ValueError, match="the indicator of a state"):
        committor(x, log_w, lambda x: x < 0, right, lambda x: x[:, 0], torch.tensor([0.0, 1.0]))
