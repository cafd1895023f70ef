"""Rotations: the exponential, the heat kernel against its series and its equation, and samplers on SO(3) against quadrature."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from popflow.compose import Expert, Rotations, Target, average, both, either, feynman_kac, flow_below, igso3_mixture, linear, sample, tilt
from popflow.compose.feynman_kac import weighing
from popflow.compose.rewards import reward_gradient
from popflow.compose.spaces.igso3 import igso3, igso3_draws
from popflow.compose.spaces.so3 import exp, from_quaternion, hat, nearest, vee
from popflow.core import Population, Streams

F64 = torch.float64


def uniform(n: int, seed: int, count: int | None = None) -> Tensor:
    shape = (n, 4) if count is None else (n, count, 4)
    return from_quaternion(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64))


CENTRES = uniform(6, 0)
Q1 = igso3_mixture(CENTRES[:3], 0.35, torch.tensor([0.5, 0.3, 0.2]), name="q1")
Q2 = igso3_mixture(CENTRES[3:], 0.35, torch.tensor([0.2, 0.3, 0.5]), name="q2")


def density(expert: Expert, r: Tensor, sigma: float) -> Tensor:
    assert expert.log_prob is not None
    return expert.log_prob(r, sigma)


def slope_of(f, r: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences along the body frame, ``[rows, 3]``."""
    shifts = step * torch.eye(3, dtype=F64)
    return torch.stack([(f(r @ exp(e)) - f(r @ exp(-e))) / (2 * step) for e in shifts], -1)


# the exponential


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_exponential_is_that_of_the_skew_matrix_also_near_zero_and_pi(dtype: torch.dtype):
    axis = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=F64), dim=1)
    sizes = torch.tensor([0.0, 1e-9, 1e-4, 0.00999, 0.01001, 0.1, 1.0, 3.0, math.pi - 1e-5, math.pi, 5.0], dtype=F64)
    v = (sizes[:, None, None] * axis).to(dtype)
    r = exp(v)
    assert torch.allclose(r.double(), torch.linalg.matrix_exp(hat(v.double())), atol=10 * torch.finfo(dtype).eps)
    assert torch.allclose(r.mT @ r, torch.eye(3, dtype=dtype), atol=10 * torch.finfo(dtype).eps)


def test_exponential_is_differentiable_at_zero():
    v, direction = torch.zeros(3, dtype=F64), torch.tensor([0.3, -0.2, 0.7], dtype=F64)
    value, slope = torch.func.jvp(exp, (v,), (direction,))
    assert torch.equal(value, torch.eye(3, dtype=F64))
    assert torch.allclose(slope, hat(direction))
    assert torch.allclose(vee(hat(direction)), 2 * direction)


def test_nearest_repairs_and_does_not_mirror():
    r = uniform(20, 1)
    spoilt = r + 0.05 * torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    fixed = nearest(spoilt)
    assert Rotations().check(fixed) is fixed
    assert (fixed - r).abs().max() < 0.15
    assert bool((torch.linalg.det(nearest(-torch.eye(3, dtype=F64))) > 0).all())


# the heat kernel


@pytest.mark.parametrize("variance", [0.09, 0.49, 0.51, 0.99, 1.0, 6.25, 100.0])
def test_the_kernel_is_its_series_its_derivative_and_normalised(variance: float):
    omega = torch.linspace(0, math.pi, 2001, dtype=F64)
    log_f, _ = igso3(omega.cos(), variance)
    assert float(torch.trapezoid(log_f.exp() * (1 - omega.cos()) / math.pi, omega)) == pytest.approx(1, abs=1e-5)
    omega = omega[1:-1].clone().requires_grad_()
    l = torch.arange(120, dtype=F64)[:, None]
    series = ((2 * l + 1) * (-l * (l + 1) * variance / 2).exp() * ((l + 0.5) * omega).sin() / (omega / 2).sin()).sum(0)
    log_f, slope = igso3(omega.cos(), variance)
    good = series > 1e-6 * series.max()
    assert ((log_f.exp() / series - 1).abs()[good] < 1e-8).all()
    (by_autograd,) = torch.autograd.grad(log_f.sum(), omega)
    assert torch.allclose(slope * omega.sin(), by_autograd, atol=1e-8, rtol=1e-7)


def test_the_kernel_of_small_variance_is_gaussian_and_keeps_its_tail():
    omega, t = torch.tensor([0.01, 0.5, 2.0, 3.0], dtype=F64), 0.0025
    flat = math.log(2 * math.sqrt(2 * math.pi)) - 1.5 * math.log(t) - omega.square() / (2 * t)
    assert torch.allclose(igso3(omega.cos(), t)[0], flat + (omega / 2 / (omega / 2).sin()).log(), atol=1e-3, rtol=1e-9)
    half, whole = igso3(omega.float().cos(), 0.1), igso3(omega.cos(), 0.1)
    assert torch.allclose(half[0].double(), whole[0], atol=1e-4)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.2, 2.5])
def test_draws_have_the_mean_trace_of_brownian_motion(sigma: float):
    r = igso3_draws(torch.eye(3, dtype=F64).expand(50_000, 3, 3), sigma, Streams(0))
    trace = r.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(float(trace.mean()) - 3 * math.exp(-(sigma**2))) < 4 * float(trace.std()) / math.sqrt(50_000)


def test_scores_are_the_body_frame_slopes_of_the_density():
    for std, sigma in ((0.35, 0.2), (0.35, 1.5), (0.1, 0.0001)):
        q = igso3_mixture(CENTRES, std)
        r = torch.cat([uniform(20, 3), CENTRES, igso3_draws(CENTRES, 0.1, Streams(0))])
        assert torch.allclose(q.score(r, sigma), slope_of(lambda x: density(q, x, sigma), r), atol=1e-5, rtol=1e-5)  # noqa: B023
    pair = igso3_mixture(uniform(4, 4, 2), 0.4)
    r = uniform(10, 5, 2)
    one = slope_of(lambda x: density(pair, torch.stack([x, r[:, 1]], 1), 0.3), r[:, 0])
    assert torch.allclose(pair.score(r, 0.3)[:, 0], one, atol=1e-6)


def test_the_density_solves_the_heat_equation():
    """``d log q / dt = (lap log q + |grad log q|^2) / 2``."""
    r, t, h = uniform(50, 6), 0.5, 1e-5
    log_q = [density(Q1, r, math.sqrt(t + s)) for s in (-h, h)]
    s = Q1.score(r, math.sqrt(t))
    laplacian = slope_of(lambda x: Q1.score(x, math.sqrt(t)), r).diagonal(dim1=1, dim2=2).sum(1)
    assert torch.allclose((log_q[1] - log_q[0]) / (2 * h), (laplacian + s.square().sum(1)) / 2, rtol=1e-5, atol=1e-5)


# samplers


@pytest.mark.parametrize("beta", [(1.0, 1.0), (2.0, 0.0), (-1.0, 2.0)])
def test_growth_on_rotations_has_no_curvature_term(beta: tuple[float, float]):
    """``d log p/dtau + div u + <u, grad log p>``, ``u = S/2``, with the Laplacian by differences."""
    sigma, h, r = 0.6, 1e-4, uniform(100, 7)
    target = Q1 ** beta[0] * Q2 ** beta[1]

    def log_p(x: Tensor, v: float) -> Tensor:
        return beta[0] * density(Q1, x, math.sqrt(v)) + beta[1] * density(Q2, x, math.sqrt(v))

    def combined(x: Tensor) -> Tensor:
        return beta[0] * Q1.score(x, sigma) + beta[1] * Q2.score(x, sigma)

    step = 1e-7
    weighed = weighing(target, 1.0, "optimal", (0.0, math.inf))(Population.of(r), sigma**2, sigma**2 - step, Streams(0))
    div = slope_of(combined, r).diagonal(dim1=1, dim2=2).sum(1)
    by_v = (log_p(r, sigma**2 + h) - log_p(r, sigma**2 - h)) / (2 * h)
    exact = -by_v + div / 2 + combined(r).square().sum(1) / 2
    assert float((weighed.log_w / step - exact).abs().max() / exact.abs().max()) < 1e-5
    assert float(div.abs().max() / 2 / exact.abs().max()) > 0.4  # what cancels is as large


def truth(target: Target, f, sigma: float) -> tuple[float, float]:
    """Mean of ``f`` and log Z of a target by quadrature over uniform rotations."""
    r = uniform(100_000, 8)
    log_p = sum(b * density(e, r, sigma) for b, e in zip(target.exponents(sigma), target.experts, strict=True))
    assert isinstance(log_p, Tensor)
    return float((log_p.softmax(0) * f(r)).sum()), float(log_p.logsumexp(0)) - math.log(len(r))


def feature(r: Tensor) -> Tensor:
    """How much a rotation resembles the first centre."""
    return (r * CENTRES[0]).sum((-2, -1))


def test_a_product_of_rotations_is_sampled_with_its_log_z():
    """Total variation on the cells of 48 anchors and log Z against quadrature over uniform rotations."""
    r, anchors, last = uniform(100_000, 3), uniform(48, 2), 0.01
    log_p = 0.7 * density(Q1, r, last) + 0.6 * density(Q2, r, last)

    def cells(x: Tensor, weights: Tensor) -> Tensor:
        return weights.new_zeros(48).index_add(0, (x.flatten(1) @ anchors.flatten(1).T).argmax(1), weights)

    pop = sample(feynman_kac(Q1**0.7 * Q2**0.6), linear(300, last, 2.5), particles=3000, rng=Streams(0), dtype=F64).population
    assert (cells(pop.x[0], pop.weights()[0]) - cells(r, log_p.softmax(0))).abs().sum() / 2 < 0.05
    assert abs(float(pop.log_normalizer()) - float(log_p.logsumexp(0)) + math.log(len(r))) < 0.1
    assert (pop.x.mT @ pop.x - torch.eye(3, dtype=F64)).abs().max() < 1e-10


def test_a_short_start_is_weighed_by_the_known_density():
    """At sigma = 0.8 rotations are far from uniform: the weights of the start make up for it, and log Z of a density is 0."""
    mean, _ = truth(Target.of(Q1), feature, 0.05)
    known = sample(feynman_kac(Q1), linear(60, 0.05, 0.8), particles=4096, rng=Streams(0), dtype=F64).population
    blind = sample(feynman_kac(replace(Q1, log_prob=None)), linear(60, 0.05, 0.8), particles=4096, rng=Streams(0), dtype=F64).population
    assert abs(float(known.mean(feature)) - mean) < 0.1
    assert abs(float(known.log_normalizer())) < 0.1
    assert abs(float(blind.mean(feature)) - mean) > 0.2
    assert torch.equal(blind.log_w, torch.zeros_like(blind.log_w))


def test_a_start_at_the_identity_has_its_density():
    space = Rotations(uniform=False)
    r = space.start(torch.empty(1, 20_000, 3, 3, dtype=F64), 1.5, 1.0, Streams(0))
    assert float(r.diagonal(dim1=-2, dim2=-1).sum(-1).mean()) == pytest.approx(3 * math.exp(-2.25), abs=0.03)
    flat = uniform(100_000, 9)
    assert float(space.log_start(flat, 1.5, 1.0).exp().mean()) == pytest.approx(1, abs=0.02)
    turned = igso3_mixture(CENTRES[:1], 0.3, uniform=False)
    pop = feynman_kac(replace(turned, log_prob=None) ** 2.0).start(r, 1.5)
    assert torch.allclose(pop.log_w, space.log_reference(r, 1.5), atol=1e-12)  # r^2 / r


@pytest.mark.parametrize(
    "sampler", [average([Q1, Q2]), feynman_kac(Q1**0.5 * Q2**0.5, correct=False, track=True)], ids=["average", "track"]
)
def test_tracked_densities_on_rotations_converge_to_the_exact_ones(sampler):
    rms = []
    for steps in (60, 240):
        pop = sample(sampler, linear(steps, 0.1, 2.5), particles=128, rng=Streams(0), dtype=F64).population
        exact = torch.stack([density(e, pop.x[0], 0.1) for e in (Q1, Q2)], -1)
        rms.append(float((pop.aux["log_q"][0] - exact).square().mean().sqrt()))
    assert rms[1] < 0.6
    assert 1.5 < rms[0] / rms[1] < 2.7  # root of 4: 2


def test_without_noise_the_divergence_in_the_frame_gives_the_density():
    """One step of the ODE: the tracked change is that of the exact density up to the square of the step."""
    sampler, r, rms = either([Q1, Q2], deterministic=True, probes=None), uniform(32, 11).unsqueeze(0), []
    known = torch.stack([density(e, r[0], 0.5) for e in (Q1, Q2)], -1).unsqueeze(0)
    for lower in (0.46, 0.48):
        pop = sampler.step(Population.of(r, batch=1, log_q=known), 0.5**2, lower**2, Streams(0))
        exact = torch.stack([density(e, pop.x[0], lower) for e in (Q1, Q2)], -1)
        rms.append(float((pop.aux["log_q"][0] - exact).square().mean().sqrt()))
        assert rms[-1] < 0.2 * float((exact - known[0]).square().mean().sqrt())
    assert 3 < rms[0] / rms[1] < 5  # second order in one step


def test_and_keeps_the_tracked_densities_equal():
    pop = sample(both([Q1, Q2]), linear(60, 0.1, 2.5), particles=64, rng=Streams(0), dtype=F64).population
    assert pop.aux["log_q"].diff(dim=-1).abs().max() < 0.02


def test_rewards_push_along_the_body_frame():
    r = uniform(20, 10)
    reward = tilt(Q1, feature, 3.0).rewards[0]
    assert torch.allclose(reward_gradient(reward, r, Rotations()), slope_of(feature, r), atol=1e-8)


def test_the_last_step_lands_on_thin_data():
    thin = igso3_mixture(CENTRES[:2], 1e-3)
    grid = torch.cat([linear(100, 0.05, 2.5), torch.zeros(1, dtype=F64)])
    out = sample(feynman_kac(thin**2.0), grid, particles=64, rng=Streams(0), dtype=F64)
    nearest_centre = (out.x[0, :, None] * CENTRES[:2]).sum((-2, -1)).max(1).values
    assert (3 - nearest_centre).max() < 1e-3


def test_single_precision_stays_orthonormal_over_hundreds_of_steps():
    out = sample(average([Q1, Q2]), linear(400, 0.05, 2.5), particles=16, rng=Streams(0))
    assert (out.x.mT @ out.x - torch.eye(3)).abs().max() < 2e-5


# bad input


def test_matrices_that_are_no_rotations_are_refused():
    with pytest.raises(
        ValueError, match=r"not orthonormal: \|R\^T R - 1\| is up to 0.21, wanted less than 1e-3. Fix: take the nearest rotations"
    ):
        igso3_mixture(1.1 * torch.eye(3).unsqueeze(0), 0.3)
    with pytest.raises(ValueError, match=r"1 mirrored matrices \(determinant -1\)"):
        igso3_mixture(torch.stack([torch.eye(3), -torch.eye(3)]), 0.3)
    with pytest.raises(ValueError, match=r"x has shape \(2, 4\), wanted \[\.\.\., 3, 3\]"):
        Rotations().check(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"not orthonormal: .* nan"):
        Rotations().check(torch.full((1, 3, 3), math.nan))


def test_steps_that_are_too_large_are_refused():
    with pytest.raises(ValueError, match=r"from noise level 2.5 to 1.26 has S = .* = 2.16 radians, wanted at most 0.5, better 0.3"):
        sample(feynman_kac(Q1), linear(2, 0.02, 2.5), particles=4, rng=Streams(0))
    with pytest.raises(ValueError, match=r"from noise level 0.8 to 0"):
        sample(feynman_kac(Q1), torch.cat([linear(40, 0.8, 2.5), torch.zeros(1)]), particles=4, rng=Streams(0))


def test_noise_that_breaks_tracked_densities_is_refused():
    with pytest.raises(ValueError, match=r"zeta=0.5 with tracked log-densities"):
        feynman_kac(Q1 * Q2, zeta=0.5, track=True)


def test_what_needs_a_flat_space_says_so():
    with pytest.raises(ValueError, match=r"live in Rotations\(count=None, uniform=True\), wanted a flat space"):
        flow_below(average([Q1, Q2]))
    with pytest.raises(ValueError, match="around is given, wanted None"):
        sample(average([Q1, Q2]), linear(60, 0.1, 2.5), particles=2, rng=Streams(0), around=torch.eye(3))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: igso3_mixture(CENTRES, 0.0), "std=0.0, wanted a kernel width"),
        (lambda: igso3_mixture(CENTRES, 0.1, torch.ones(2)), r"weights of shape \(2,\) must be 6"),
        (lambda: igso3_mixture(torch.eye(3), 0.1), r"centres has shape \(3, 3\), wanted \[K, 3, 3\]"),
        (lambda: Rotations(0), "count=0, wanted at least 1"),
        (lambda: igso3(torch.zeros(1), 0.0), "variance=0.0, wanted the square"),
        (
            lambda: Q1 * igso3_mixture(uniform(2, 0, 2), 0.1, name="pairs"),
            r"'q1' and 'pairs' have samples of shape \(3, 3\) and \(2, 3, 3\)",
        ),
    ],
)
def test_bad_arguments_are_named(make, says: str):
    with pytest.raises(ValueError, match=says):
        make()
