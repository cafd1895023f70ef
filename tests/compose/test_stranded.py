"""AND with survival: weights by the gaps that were left open."""

from __future__ import annotations

import pytest
import torch

from popflow.compose import both, gaussian_mixture, karras, sample
from popflow.core import Streams

F64 = torch.float64
LEVELS = karras(30, 0.1, 10.0)
PAIR = [gaussian_mixture(torch.tensor([[0.0, 0.0]], dtype=F64), 0.3), gaussian_mixture(torch.tensor([[1.0, 0.0]], dtype=F64), 1.5)]
FOUR = [
    gaussian_mixture(torch.tensor([[-1.0], [m]], dtype=F64), torch.tensor([s, 0.4], dtype=F64))
    for m, s in ((2.0, 0.3), (1.0, 0.6), (3.0, 0.9), (0.0, 0.5))
]


def test_particles_that_agree_weigh_alike_and_move_as_without_a_tolerance():
    plain, weighed = (
        sample(both(PAIR, tolerance=t), LEVELS, particles=32, runs=2, rng=Streams(0), dtype=F64).population for t in (None, 1e3)
    )
    assert torch.equal(plain.x, weighed.x)
    assert float(weighed.log_w.abs().max()) < 1e-6


def test_the_weight_is_the_gap_that_opened_on_the_way():
    """Four models of the line agree nowhere; without resampling the weight is ``-|g - .9^k g_0|^2 / 2 t^2``."""
    sampler = both(FOUR, tolerance=40.0, variance="euler", ridge=1e-2)
    out = sample(sampler, LEVELS, particles=16, rng=Streams(1), dtype=F64)
    first = sampler.start(torch.zeros(1, 16, 1, dtype=F64), 10.0)
    assert float(out.trace["ess"].min()) > 8

    def gap(log_q: torch.Tensor) -> torch.Tensor:
        return log_q - log_q.mean(-1, keepdim=True)

    pop = out.population
    left = pop.aux["gap_at_start"]
    assert torch.allclose(first.aux["gap_at_start"], gap(first.aux["log_q"]))
    assert torch.allclose(pop.log_w, -(gap(pop.aux["log_q"]) - left).square().sum(-1) / (2 * 40.0**2))
    assert float(pop.log_w.abs().max()) > 1e-6


def test_particles_with_smaller_gaps_survive():
    """Equal-weight draws lie nearer to agreement than particles that do not compete."""

    def size(tolerance: float | None) -> float:
        pop = sample(both(FOUR, tolerance=tolerance), LEVELS, particles=128, rng=Streams(2), dtype=F64).population
        log_q = pop.aux["log_q"]
        return float(pop.mean(lambda x: (log_q - log_q.mean(-1, keepdim=True)).square().sum(-1).sqrt()))

    assert size(0.2) < size(None)


def test_a_tolerance_is_positive():
    with pytest.raises(ValueError, match=r"tolerance=0.0, wanted nats above 0"):
        both(PAIR, tolerance=0.0)
