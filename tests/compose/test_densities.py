"""Densities tracked by Bayes' rule: exact for Gaussian experts over a giant step, in spaces with fewer degrees of freedom and in products."""

from __future__ import annotations

import math

import torch

from popflow.compose import CentredParticles, Euclidean, ProductSpace, Proportional, gaussian_mixture, scores
from popflow.compose.backward_kernel import kernel_variances
from popflow.compose.densities import increments, log_volume
from popflow.compose.target import Expert

F64 = torch.float64
SIGMA, LOWER = 5.0, 0.3
H = SIGMA**2 - LOWER**2


def test_gaussians_of_any_width_are_tracked_exactly_whatever_the_move():
    experts = [gaussian_mixture(torch.full((1, 3), m, dtype=F64), w) for m, w in ((0.0, 0.2), (1.0, 2.0), (-2.0, 1.0))]
    y, move = torch.randn(2, 2, 16, 3, generator=torch.Generator().manual_seed(0), dtype=F64).unbind(0)
    found = increments(move, scores(experts, y, SIGMA), H, kernel_variances(experts, SIGMA, LOWER), Euclidean((3,)))
    for i, one in enumerate(experts):
        assert one.log_prob is not None
        exact = one.log_prob((y + move).flatten(0, 1), LOWER) - one.log_prob(y.flatten(0, 1), SIGMA)
        assert torch.allclose(found[..., i].flatten(), exact, atol=1e-9)


def test_single_precision_survives_the_first_step_of_a_pipeline():
    """999 to 78 in 16384 dimensions: terms of a million nats, a sum of thousands."""
    rng, high, low = torch.Generator().manual_seed(0), 999.0, 78.0
    expert = gaussian_mixture(torch.zeros(1, 16384, dtype=F64), 1.0)
    y, z = (torch.randn(4, 16384, generator=rng, dtype=F64) for _ in range(2))
    y, h = high * y, high**2 - low**2
    s, c = scores([expert], y, high), kernel_variances([expert], high, low)
    move = h * s[0] + math.sqrt(c[0] * h) * z
    exact = increments(move, s, h, c, Euclidean((16384,)))
    assert exact.abs().min() > 1e4
    assert torch.allclose(increments(move.float(), s.float(), h, c, Euclidean((16384,))).double(), exact, atol=0.05)


def test_particles_without_their_centre_count_their_degrees_of_freedom():
    """``N(0, w^2)`` on the subspace of centred configurations."""
    space = CentredParticles(5, 2)
    expert = Expert(
        lambda y, sigma, cond: sigma * y / (0.5**2 + sigma**2), space.event, space=space, loss=lambda sigma: 0.25 / (0.25 + sigma**2)
    )
    y, move = space.project(torch.randn(2, 16, 5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)).unbind(0)

    def log_prob(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return space.log_reference(x, math.hypot(0.5, sigma))

    found = increments(move, scores([expert], y, SIGMA), H, kernel_variances([expert], SIGMA, LOWER, like=y), space)
    assert torch.allclose(found[:, 0], log_prob(y + move, LOWER) - log_prob(y, SIGMA), atol=1e-9)


def test_factors_of_a_product_have_volumes_of_their_own():
    space = ProductSpace((CentredParticles(3, 2), Euclidean((4,))), (Proportional(0.5), Proportional()))
    c = space.spread([0.3, 0.7], torch.zeros(1, dtype=F64))
    assert math.isclose(float(log_volume(c, space)), 4 * math.log(0.3) + 4 * math.log(0.7))
    assert math.isclose(float(log_volume(0.3, space)), 8 * math.log(0.3))
