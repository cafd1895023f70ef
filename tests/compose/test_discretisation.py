"""The accuracy of steps, seen by a second evaluation: nothing for Gaussians, falling with the step for others; levels placed by it."""

from __future__ import annotations

import pytest
import torch

from popflow.compose import Rotations, feynman_kac, gaussian_mixture, igso3_mixture, karras, sample
from popflow.compose.discretisation import auto_levels, step_spread
from popflow.core import Streams

F64 = torch.float64
ONE = gaussian_mixture(torch.full((1, 3), 0.4, dtype=F64), 0.7)
TWO = gaussian_mixture(torch.tensor([[-2.0, 0.0, 0.0], [2.0, 0.5, 0.0]], dtype=F64), torch.tensor([0.3, 0.8], dtype=F64))


def points(n: int = 4000) -> torch.Tensor:
    return 2 * torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=F64)


def test_a_gaussian_has_none_at_any_step_and_the_kernel_of_euler_has():
    assert float(step_spread([ONE], points(), 20.0, 0.1, "optimal", Streams(0))) < 1e-9
    assert float(step_spread([ONE], points(), 2.0, 1.0, "euler", Streams(0))) > 0.1


def test_for_small_steps_it_is_the_spread_of_the_residual_itself():
    """Against ``log M - log N - log q'(y')/q(y)`` by the exact densities, whose spread over many draws it estimates."""
    from popflow.compose.backward_kernel import kernel_variances
    from popflow.compose.densities import increments

    assert TWO.log_prob is not None
    y, seen = points(), []
    for sigma, lower in ((1.5, 1.4), (1.5, 1.45)):
        h, c = sigma**2 - lower**2, kernel_variances([TWO], sigma, lower)
        s = TWO.score(y, sigma).unsqueeze(0)
        dy = h * s[0] + (h * c[0]) ** 0.5 * Streams(0).normal("look", y)
        exact = TWO.log_prob(y + dy, lower) - TWO.log_prob(y, sigma) - increments(dy, s, h, c, TWO.home)[:, 0]
        looked = float(step_spread([TWO], y, sigma, lower, "optimal", Streams(0)))
        seen.append(looked)
        assert 0.5 < looked / float(exact.std()) < 2
    assert seen[1] / seen[0] == pytest.approx(0.5, abs=0.1)


def test_it_is_in_the_trace_and_leaves_the_run_as_it_is():
    out = sample(feynman_kac(ONE * TWO), karras(20, 0.05, 10.0), particles=512, rng=Streams(0), dtype=F64)
    seen = out.trace["discretisation"]
    assert seen.shape == (21,)
    assert float(seen[-1]) == 0
    assert float(seen.max()) > 0.01
    rough = sample(feynman_kac(ONE * TWO), karras(8, 0.05, 10.0), particles=512, rng=Streams(0), dtype=F64)
    assert float(rough.trace["discretisation"].max()) > float(seen.max())


def test_levels_placed_by_it_lie_where_the_experts_decide():
    levels = auto_levels([TWO], 60, 0.01, 40.0, like=points(1))
    assert levels[0] == 40
    assert levels[-1] == 0.01
    assert bool((levels.diff() < 0).all())
    ratio = (levels[:-1] / levels[1:]).log()
    middle = (levels[1:] > 0.3) & (levels[1:] < 3)
    assert float(ratio[middle].mean()) < 0.6 * float(ratio[~middle].mean())
    assert torch.equal(levels, auto_levels([TWO], 60, 0.01, 40.0, like=points(1)))
    even = auto_levels([ONE], 10, 0.1, 10.0, like=points(1))
    assert torch.allclose(even.log().diff(), even.log().diff()[0], atol=0.25)
    turn = igso3_mixture(torch.eye(3).unsqueeze(0), 0.3)
    assert isinstance(turn.home, Rotations)
    with pytest.raises(ValueError, match="wanted a flat space"):
        auto_levels([turn], 10, 0.1, 2.0)
    with pytest.raises(ValueError, match="steps=0"):
        auto_levels([ONE], 0, 0.1, 2.0)
