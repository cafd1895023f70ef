"""Every kind of target on Gaussian experts, where mean, variance and log Z are known at every noise level.

With ``q_i = N(m_i, c_i^2)`` the target at noise sigma is Gaussian with precision ``L = sum beta_i / v_i``, ``v_i = c_i^2 + sigma^2``, and mean
``sum beta_i m_i / v_i / L``; a reward ``-(y - a)^2 / (2 b^2)`` of strength gamma acts like one more factor.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from popflow.compose import Expert, Target, cfg, feynman_kac, gaussian_mixture, karras, sample, tilt
from popflow.core import Streams
from popflow.core.checks import put_off

MOMENTS = {"a": (0.7, 0.8), "b": (-1.0, 1.2), "c": (0.6, 0.6)}
A, B, C = (gaussian_mixture(torch.tensor([[m]]), c, name=name) for name, (m, c) in MOMENTS.items())
BLIND = replace(A, log_prob=None)
CENTRE, WIDTH = 1.5, 0.7


def bowl(y: Tensor) -> Tensor:
    return -(y[:, 0] - CENTRE).square() / (2 * WIDTH**2)


def ramp(sigma: float) -> float:
    return 1 + 2 / (1 + sigma**2)


# name -> target, noise scale, kernel steps, whether log Z has a small variance
CASES: dict[str, tuple[Expert | Target, float, int, bool]] = {
    "power 1/2": (A**0.5, 2**0.5, 0, True),
    "power 2": (A**2, 2**0.5, 0, False),
    "power 3": (A**3, 2**0.5, 0, False),
    "power 3 by a ramp, exact densities": (A**ramp, 2**0.5, 0, False),
    "power 3 by a ramp, tracked densities": (BLIND**ramp, 1.0, 0, False),
    "product": (A * B, 1.0, 0, False),
    "quotient": (A * C / B, 1.0, 0, True),
    "geometric mean": (A**0.5 * B**0.5, 1.0, 0, True),
    "guidance": (cfg(B, C, 2.0), 1.0, 0, True),
    "guidance with a kernel": (cfg(B, C, 2.0), 1.0, 2, True),
    "reward": (tilt(A, bowl), 1.0, 0, True),
    "reward, with a kernel": (tilt(A, bowl), 1.0, 2, True),
    "reward without gradient": (tilt(A, bowl, gradient=False), 1.0, 0, True),
    "reward without gradient, with a kernel": (tilt(A, bowl, gradient=False), 1.0, 2, True),
    "reward on a product": (tilt(A * C, bowl, 0.5), 1.0, 0, False),
}


def truth(target: Target, sigma: float) -> tuple[float, float, float]:
    """Mean, variance and log Z."""
    precision = pull = constant = 0.0
    for expert, beta in zip(target.experts, target.exponents(sigma), strict=True):
        mean, std = MOMENTS[expert.name]
        v = std**2 + sigma**2
        precision, pull = precision + beta / v, pull + beta * mean / v
        constant -= beta * (mean**2 / v + math.log(2 * math.pi * v)) / 2
    for reward in target.rewards:
        gamma = reward.gamma(sigma)
        precision, pull = precision + gamma / WIDTH**2, pull + gamma * CENTRE / WIDTH**2
        constant -= gamma * CENTRE**2 / (2 * WIDTH**2)
    return pull / precision, 1 / precision, constant + math.log(2 * math.pi / precision) / 2 + pull**2 / (2 * precision)


def standard_errors(value: Tensor, wanted: float) -> tuple[float, float]:
    """Distance of the mean over runs from the truth in standard errors, and the standard error."""
    error = float(value.std() / math.sqrt(len(value)))
    return abs(float(value.mean()) - wanted) / error, error


def run(case: str, sigma: float, *, correct: bool = True) -> tuple[Target, tuple[float, float], tuple[float, float], Tensor]:
    target, zeta, kernel_steps, _ = CASES[case]
    mean, variance, _ = truth(Target.of(target), sigma)
    sampler = feynman_kac(target, zeta=zeta, correct=correct, kernel_steps=kernel_steps)
    out = sample(sampler, karras(400, sigma, 10.0), particles=256, runs=16, rng=Streams(2), dtype=torch.float64).population
    second = out.mean(lambda x: (x - mean).square())[:, 0]
    return Target.of(target), standard_errors(out.mean()[:, 0], mean), standard_errors(second, variance), out.log_normalizer()


@pytest.mark.parametrize(("case", "sigma"), [*((c, 0.01) for c in CASES), *((c, 1.0) for c in ("power 3", "reward"))])
def test_moments_and_normaliser(case: str, sigma: float):
    target, (z_mean, error_mean), (z_variance, error_variance), log_z = run(case, sigma)
    _, variance, true_log_z = truth(target, sigma)
    assert z_mean < 3
    assert z_variance < 3
    assert error_mean < 0.1 * math.sqrt(variance)
    assert error_variance < 0.1 * variance
    if CASES[case][3]:
        assert abs(float(log_z.mean()) - true_log_z) < 0.05


@pytest.mark.parametrize("case", ["power 1/2", "power 3", "product", "guidance", "reward"])
def test_without_weights_the_same_targets_are_missed(case: str):
    """The bars above can fail: the naive sampler, with the same noise, is outside them."""
    _, (z_mean, _), (z_variance, _), _ = run(case, 0.01, correct=False)
    assert max(z_mean, z_variance) > 5


def half_line(y: Tensor) -> Tensor:
    return torch.where(y[:, 0] > 0, 0.0, -math.inf)


def test_a_hard_constraint_at_the_last_level_gives_the_truncated_normal():
    """Reward 0 on the right half line and -inf on the left: ``E[y] = c sqrt(2/pi)`` for a centred Gaussian."""
    last = 0.01
    target = tilt(gaussian_mixture(torch.zeros(1, 1), 0.8), half_line, lambda sigma: float(sigma < last + 1e-9), gradient=False)
    out = sample(feynman_kac(target), karras(300, last, 10.0), particles=1024, runs=8, rng=Streams(0)).population
    assert bool((out.x[out.log_w > -math.inf] > 0).all())
    assert 400 < float(out.ess().mean()) < 624
    z, error = standard_errors(out.mean()[:, 0], 0.8 * math.sqrt(2 / math.pi))
    assert z < 3
    assert error < 0.01


@pytest.mark.parametrize("later", [False, True])
def test_a_hard_constraint_before_the_last_level_is_refused(later):
    """At once, or after the loop where checks are put off, as on an accelerator."""
    target = tilt(A, half_line, gradient=False, name="right half")
    refused = pytest.raises(ValueError, match=r"rewards \['right half'\] are -inf for \d+ particles at sigma=20, before the last level")
    with refused, put_off(later):
        sample(feynman_kac(target), karras(10, 0.01, 20.0), particles=64, rng=Streams(0))
