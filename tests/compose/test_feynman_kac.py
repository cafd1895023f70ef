"""Feynman-Kac correctors: the increments themselves, their invariances, and what the options do."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from popflow.compose import (
    VE,
    VP,
    Expert,
    RectifiedFlow,
    Sampler,
    Target,
    cfg,
    feynman_kac,
    flow_output,
    from_network,
    gaussian_mixture,
    karras,
    kernel_mixture,
    sample,
    scores,
    tilt,
    v_output,
    x0_output,
)
from popflow.compose.backward_kernel import Variance, kernel_variances
from popflow.compose.densities import log_initial_normalizer
from popflow.compose.experts import Output
from popflow.compose.feynman_kac import weighing
from popflow.compose.product_kernel import ProductKernel, flow
from popflow.compose.schedule import Schedule
from popflow.compose.spaces.space import Euclidean
from popflow.core import NonFiniteError, PopflowWarning, Population, StaleTrackingError, State, Streams, Trace

F64 = torch.float64
VARIANCES: tuple[Variance, ...] = ("optimal", "euler", "posterior")


def mixture(seed: int, name: str, spread: float = 1.5) -> Expert:
    rng = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(3, 2, generator=rng, dtype=F64)
    return gaussian_mixture(means, 0.3 + torch.rand(3, generator=rng, dtype=F64), torch.rand(3, generator=rng, dtype=F64), name=name)


Q1, Q2, Q3 = mixture(1, "q1"), mixture(2, "q2"), mixture(3, "q3")
GRID = karras(20, 0.02, 10.0)


def population(n: int = 64, runs: int = 2, scale: float = 3.0) -> Population:
    x = scale * torch.randn(runs, n, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    return Population.of(x, batch=1)


def growth(target: Expert | Target, sigma: float, zeta: float = 1.0) -> Tensor:
    """Log-weight of a short Euler step per unit of ``sigma^2``."""
    h = 1e-7 * sigma**2
    weigh = weighing(Target.of(target), zeta, "euler", (0.0, math.inf))
    return weigh(population(), sigma**2, sigma**2 - h, Streams(0)).log_w / h


def run(sampler: Sampler, grid: Tensor = GRID, seed: int = 0, **options) -> Population:
    return sample(sampler, grid, **{"particles": 64, "runs": 2, "dtype": F64, **options}, rng=Streams(seed)).population


# what one step does


def test_one_step_is_the_published_step():
    """Move and log-weight increment of the general product with a reward, written out in epsilon; changes of gamma are weighed before the move."""
    beta, gamma, (s0, s1) = (2.0, -0.7, 0.4), 0.8, (1.7, 1.5)
    target = tilt(Q1 ** beta[0] * Q2 ** beta[1] * Q3 ** beta[2], lambda y: -(y**3).sum(1) / 9, lambda sigma: gamma / sigma)
    sampler = feynman_kac(target, ess_below=1e-9, variance="euler")
    before = population()
    after = sampler.step(before, s0**2, s1**2, Streams(5))
    z = Streams(5).normal("noise", before.x)
    eps = torch.stack([-s0 * e.score(before.x, s0) for e in (Q1, Q2, Q3)])
    combined = sum(b * e for b, e in zip(beta, eps, strict=True))
    slope, S2, g0, g1 = -(before.x**2) / 3, s0**2 - s1**2, gamma / s0, gamma / s1
    moved = before.x - S2 / s0 * combined + S2 / 2 * g1 * slope + math.sqrt(S2) * z
    squares = sum(b * e.square().sum(-1) for b, e in zip(beta, eps, strict=True))
    increment = S2 / (2 * s0**2) * (combined.square().sum(-1) - squares) - g1 * S2 / (2 * s0) * (slope * combined).sum(-1)
    increment = increment + (g1 - g0) * -(before.x**3).sum(-1) / 9
    assert torch.allclose(after.x, moved, atol=1e-12)
    assert torch.allclose(after.log_w, increment, atol=1e-11)


STARTS = {"product": (1.0, 1.0), "guidance": (-1.0, 2.0), "power 2": (2.0, 0.0), "geometric mean": (0.3, 0.6), "unlike": (1.7, -0.4)}


def gaussians(beta: tuple[float, float], sigma: float) -> tuple[float, float, float]:
    """Precision, mean and log Z of a product of N(0, 1) and N(.6, .7^2) noised to a level."""
    v, m = (1 + sigma**2, 0.49 + sigma**2), (0.0, 0.6)
    precision = sum(b / w for b, w in zip(beta, v, strict=True))
    mean = sum(b * c / w for b, c, w in zip(beta, m, v, strict=True)) / precision
    log_z = -sum(b * (math.log(2 * math.pi * w) + c * c / w) for b, c, w in zip(beta, m, v, strict=True)) / 2
    return precision, mean, log_z + (math.log(2 * math.pi / precision) + precision * mean**2) / 2


@pytest.mark.parametrize("zeta", [0.0, 0.5, 1.0, 1.4, 2.0])
@pytest.mark.parametrize("name", STARTS)
def test_one_giant_step_between_gaussians_is_exact(name: str, zeta: float):
    """From 2 to 1/2 at once: the mean weight over the law before is the ratio of the normalisers, by quadrature; and so is the law after, for zeta = 1."""
    beta, (s0, s1) = STARTS[name], (2.0, 0.5)
    wide, narrow = gaussian_mixture(torch.zeros(1, 1, dtype=F64), 1.0), gaussian_mixture(torch.full((1, 1), 0.6, dtype=F64), 0.7)
    (p0, m0, z0), (p1, m1, z1) = gaussians(beta, s0), gaussians(beta, s1)
    extra = max(zeta**2 - 1, 0.0) / 2 * (s0**2 - s1**2)  # noise first: the law of where the scores are taken
    spread, rows = math.sqrt(1 / p0 + extra), 40001
    grid = torch.linspace(-14, 14, rows, dtype=F64)
    x = (m0 + spread * grid).reshape(1, rows, 1)
    law = torch.distributions.Normal(0.0, torch.tensor(1.0, dtype=F64)).log_prob(grid).exp()
    target = Target(((wide, beta[0]), (narrow, beta[1])))
    v0 = s0**2 + extra
    log_w = _weights_at(target, zeta, x, v0, s0**2, s1**2)
    assert float((torch.trapezoid(law * log_w.exp(), grid)).log()) == pytest.approx(z1 - z0, abs=1e-3)
    if zeta == 1:
        kernel = ProductKernel.of(Euclidean((1,)), v0 - s1**2, target.exponents(1.0), _variances(target, math.sqrt(v0), s1))
        shift = x + kernel.mean(scores(target.experts, x, math.sqrt(v0)))
        mass = law * log_w.exp() / torch.trapezoid(law * log_w.exp(), grid)
        mean = float(torch.trapezoid(mass * shift[0, :, 0], grid))
        second = float(torch.trapezoid(mass * (shift[0, :, 0] - mean).square(), grid))
        assert isinstance(kernel.width, float)
        assert mean == pytest.approx(m1, abs=1e-6)
        assert second + kernel.width**2 == pytest.approx(1 / p1, abs=1e-6)


def _variances(target: Target, sigma: float, lower: float) -> list[float | Tensor]:
    return kernel_variances(target.experts, sigma, lower)


def _weights_at(target: Target, zeta: float, x: Tensor, v: float, v0: float, v1: float) -> Tensor:
    """Log-weights of a step whose scores are taken at ``x``, after the noise of ``zeta > 1``: that noise is switched off here."""

    class Still(Streams):
        def normal(self, name: str, like: Tensor) -> Tensor:
            return torch.zeros_like(like)

    weigh = weighing(target, zeta, "optimal", (0.0, math.inf))
    return weigh(Population.of(x, batch=1), v0, v1, Still(0)).log_w[0]


def test_special_cases_of_the_increment():
    """Annealing ``beta(beta-1)|e|^2``, guidance ``w(w-1)|e_c - e_u|^2``, product ``2 <e_1, e_2>``, times ``S^2 / 2 sigma^2``."""
    sigma = 0.9
    e1, e2 = (-sigma * s for s in scores([Q1, Q2], population().x, sigma))

    def in_epsilon(target: Expert | Target) -> Tensor:
        return 2 * sigma**2 * growth(target, sigma)

    assert torch.allclose(in_epsilon(Q1**2.5), 2.5 * 1.5 * e1.square().sum(-1), rtol=1e-6, atol=1e-5)
    assert torch.allclose(in_epsilon(cfg(Q1, Q2, 3.0)), 3 * 2 * (e2 - e1).square().sum(-1), rtol=1e-6, atol=1e-5)
    assert torch.allclose(in_epsilon(Q1 * Q2), 2 * (e1 * e2).sum(-1), rtol=1e-6, atol=1e-5)
    assert torch.allclose(in_epsilon((Q1 * Q2) ** 2), 2 * (e1 + e2).square().sum(-1) + 4 * (e1 * e2).sum(-1), rtol=1e-6, atol=1e-5)


def test_at_zeta_one_the_weights_are_those_of_sequential_monte_carlo():
    """``sum beta_i log(r_i/k) + log k - log proposal`` with Gaussian denoising kernels r_i and noising kernel k, for any displacement."""
    beta, (s0, s1) = (2.0, -0.7, 0.4), (1.7, 1.5)
    before = population()
    after = feynman_kac(Q1 ** beta[0] * Q2 ** beta[1] * Q3 ** beta[2], ess_below=1e-9, variance="euler").step(
        before, s0**2, s1**2, Streams(0)
    )
    S2, s = s0**2 - s1**2, scores([Q1, Q2, Q3], before.x, s0)

    def log_normal(x: Tensor, mean: Tensor) -> Tensor:
        return -(x - mean).square().sum(-1) / (2 * S2) - math.log(2 * math.pi * S2)

    noising = log_normal(before.x, after.x)
    total = noising - log_normal(after.x, before.x + S2 * sum(b * one for b, one in zip(beta, s, strict=True)))
    for b, one in zip(beta, s, strict=True):
        total = total + b * (log_normal(after.x, before.x + S2 * one) - noising)
    assert torch.allclose(after.log_w, total, atol=1e-10)


@pytest.mark.parametrize("beta", [(1.0,), (3.0,), (-1.0, 2.0), (0.5, -2.0, 4.0)])
def test_weights_of_euler_steps_are_differences_of_squares(beta: tuple[float, ...]):
    s = torch.randn(len(beta), 2, 7, 3, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    combined = sum(b * one for b, one in zip(beta, s, strict=True))
    plain = combined.square().sum((-2, -1)) - sum(b * one.square().sum((-2, -1)) for b, one in zip(beta, s, strict=True))
    assert torch.allclose(ProductKernel.of(Euclidean((3, 4)), 2.0, beta, [1.0] * len(beta)).log_normalizer(s), plain, atol=1e-11)


def test_weights_do_not_cancel_in_single_precision():
    """Guidance of two nearly equal scores in 49152 dimensions: relative error below 1e-4 where the difference of squares has none right."""
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(1, 49152, generator=rng)
    s = torch.stack([base, base + 1e-3 * torch.randn(1, 49152, generator=rng)])
    true = float(2 * (s[1].double() - s[0].double()).square().sum())
    combined = -s[0] + 2 * s[1]
    plain = float(combined.square().sum() + s[0].square().sum() - 2 * s[1].square().sum())
    kernel = ProductKernel.of(Euclidean((49152,)), 2.0, (-1.0, 2.0), [1.0, 1.0])
    assert abs(float(kernel.log_normalizer(s)) - true) < 1e-4 * true
    assert abs(plain - true) > 1e-2 * true


def test_log_densities_are_tracked_by_ito():
    """``d log q_i = <s_i, dy> - S^2 |s_i|^2 / 2`` beside the weights, for every expert."""
    before = population()
    before = before.replace(aux={"log_q": torch.zeros(2, 64, 2, dtype=F64)})
    after = feynman_kac(Q1 * Q2, ess_below=1e-9, track=True, variance="euler").step(before, 1.7**2, 1.5**2, Streams(0))
    s = scores([Q1, Q2], before.x, 1.7)
    expected = (s * (after.x - before.x)).sum(-1) - (1.7**2 - 1.5**2) / 2 * s.square().sum(-1)
    assert torch.allclose(after.aux["log_q"], expected.movedim(0, -1), atol=1e-11)


@pytest.mark.parametrize("total", [0.5, 1.0, 3.0])
def test_initial_normaliser_is_the_integral(total: float):
    """``int N(y; 0, s^2)^B dy`` in two dimensions, by quadrature."""
    sigma = 3.0
    y = torch.linspace(-60, 60, 20001, dtype=F64)
    line = torch.trapezoid((total * torch.distributions.Normal(0.0, torch.tensor(sigma, dtype=F64)).log_prob(y)).exp(), y)
    assert log_initial_normalizer(total, sigma, 2) == pytest.approx(2 * math.log(line), abs=1e-9)


# invariances


@pytest.mark.parametrize("zeta", [0.0, 0.5, 1.0])
def test_growth_of_short_steps_does_not_depend_on_zeta(zeta: float):
    target = tilt(Q1**1.5 * Q2**-0.3, lambda y: y[:, 0].sin())
    for sigma in (0.5, 9.0):
        reference = growth(target, sigma)
        assert reference.abs().max() > 1e-4
        assert torch.allclose(growth(target, sigma, zeta=zeta), reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))


@pytest.mark.parametrize("zeta", [0.5, 1.5])
@pytest.mark.parametrize("variance", ["optimal", "euler", "posterior", "local"])
def test_short_steps_follow_the_weighted_process_whatever_the_kernel(zeta: float, variance: Variance):
    """Mean displacement and weight over many noises: ``-h [(1 + zeta^2) S/2 + zeta^2 gamma grad r/2]`` and the growth, as h goes to 0."""
    sigma, gamma, h, n = 1.3, 0.7, 1e-4, 200_000
    target = tilt(Q1**1.5 * Q2**-0.3, lambda y: y[:, 0].sin(), lambda sigma: gamma)
    point = torch.tensor([0.4, -0.8], dtype=F64)
    before = Population.of(point.expand(1, n, 2), batch=1)
    after = feynman_kac(target, zeta=zeta, ess_below=1e-9, variance=variance).step(before, sigma**2, sigma**2 - h, Streams(1))
    s = scores([Q1, Q2], point.unsqueeze(0), sigma)[:, 0]
    combined, slope = 1.5 * s[0] - 0.3 * s[1], torch.tensor([math.cos(0.4), 0.0], dtype=F64)
    drift = (1 + zeta**2) / 2 * combined + zeta**2 / 2 * gamma * slope
    moved = (after.x[0] - point).mean(0) / h
    assert torch.allclose(moved, drift, atol=4 * zeta / math.sqrt(h * n))
    assert torch.allclose((after.x[0] - point).var(0) / h, torch.full((2,), zeta**2, dtype=F64), rtol=0.02)
    exact = (combined.square().sum() - (1.5 * s[0].square().sum() - 0.3 * s[1].square().sum())) / 2 + gamma * (slope * combined).sum() / 2
    assert float(after.log_w.exp().mean().log()) / h == pytest.approx(float(exact), rel=0.02, abs=0.02)


def network_of(expert: Expert, schedule: Schedule, output: Output) -> Expert:
    """The same expert as a perfect network of another parametrisation."""

    def network(x: Tensor, time: Tensor) -> Tensor:
        sigma = float(schedule.sigma(time[0]))
        alpha = schedule.alpha(sigma)
        s, eps = alpha * sigma, -sigma * expert.score(x / alpha, sigma)
        x0 = (x - s * eps) / alpha
        return {x0_output: x0, v_output: alpha * eps - s * x0, flow_output: eps - x0}[output]

    return replace(from_network(network, schedule, expert.event, output=output, name=expert.name), loss=expert.loss)


@pytest.mark.parametrize("combine", [lambda a, b: a * b, lambda a, b: a**3.0 / b])
def test_every_parametrisation_gives_the_same_run(combine: Callable[[Expert, Expert], Target]):
    reference = run(feynman_kac(combine(Q1, Q2)))
    assert reference.log_w.std() > 0
    for (a, b), (c, d) in (((VP(), v_output), (VE(), x0_output)), ((RectifiedFlow(1000.0), flow_output),) * 2):
        other = run(feynman_kac(combine(network_of(Q1, a, b), network_of(Q2, c, d))))
        assert torch.allclose(other.x, reference.x, atol=1e-6)
        assert torch.allclose(other.log_w, reference.log_w, atol=1e-6)
        assert torch.allclose(other.log_z, reference.log_z, atol=1e-6)


def test_the_order_of_experts_does_not_matter():
    reference = run(feynman_kac(Q1**2 * Q2**0.5 / Q3, zeta=1.2))
    for other in ((Q2**0.5 * Q1**2) / Q3, Q3**-1 * Q2**0.5 * Q1**2):
        again = run(feynman_kac(other, zeta=1.2))
        assert torch.allclose(again.x, reference.x, atol=1e-9)
        assert torch.allclose(again.log_w, reference.log_w, atol=1e-9)


def same_bytes(a: Population, b: Population) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.log_w, b.log_w) and torch.equal(a.log_z, b.log_z)


def test_an_exponent_of_zero_drops_its_expert():
    reference = run(feynman_kac(Q1 * Q2))
    assert same_bytes(run(feynman_kac(Q1 * Q2 * Q3**0)), reference)
    off = run(feynman_kac(Q1 * Q2 * Q3 ** (lambda sigma: 0.0)))
    assert torch.allclose(off.x, reference.x, atol=1e-10)
    assert torch.allclose(off.log_w, reference.log_w, atol=1e-10)


def test_two_halves_make_a_whole():
    twin = replace(Q1, name="twin")
    guided = cfg(Q2, Q1**0.25 * twin**0.75, 2.0)
    for whole, halves in ((Q1**3, Q1**1.5 * twin**1.5), (Q1 * Q2, Q1**0.5 * Q2 * twin**0.5), (cfg(Q2, Q1, 2.0), guided)):
        assert len(halves.experts) == len(whole.experts) + 1
        a, b = run(feynman_kac(whole)), run(feynman_kac(halves))
        assert torch.allclose(a.x, b.x, atol=1e-6)
        assert torch.allclose(a.log_w, b.log_w, atol=1e-6)


def test_two_rewards_are_their_sum():
    first, second = (lambda y: y[:, 0].sin()), (lambda y: -y.square().sum(1) / 4)
    a = run(feynman_kac(tilt(tilt(Q1 * Q2, first, 0.7), second, 0.7), kernel_steps=1))
    b = run(feynman_kac(tilt(Q1 * Q2, lambda y: first(y) + second(y), 0.7), kernel_steps=1))
    assert torch.allclose(a.x, b.x, atol=1e-9)
    assert torch.allclose(a.log_w, b.log_w, atol=1e-9)
    assert torch.allclose(a.log_z, b.log_z, atol=1e-9)


@pytest.mark.parametrize("target", [Q1, Q1**1.0, cfg(Q2, Q1, 1.0), cfg(Q1, Q2, 0.0), Q1 * Q2 / Q2], ids=["q", "q^1", "w=1", "w=0", "q2/q2"])
def test_exponent_one_has_no_weights_and_is_the_plain_sampler(target: Expert | Target):
    out = run(feynman_kac(target))
    assert torch.equal(out.log_w, torch.zeros_like(out.log_w))
    assert torch.equal(out.log_z, torch.zeros_like(out.log_z))
    for variance in VARIANCES:
        out, rng = run(feynman_kac(target, variance=variance)), Streams(0)
        y = rng.normal("start", torch.empty(2, 64, 2, dtype=F64)) * 10
        for s0, s1 in itertools.pairwise(GRID.tolist()):
            c = kernel_variances([Q1], s0, s1, variance)[0]
            h = s0**2 - s1**2
            y = y + h * Q1.score(y, s0) + (h / (1 / c)) ** 0.5 * rng.normal("noise", y)
        assert torch.allclose(out.x, y, rtol=0, atol=1e-12)


def test_guidance_one_by_a_function_has_no_weights_either():
    out = run(feynman_kac(cfg(Q2, Q1, lambda sigma: 1.0)))
    assert torch.equal(out.log_w, torch.zeros_like(out.log_w))
    assert torch.allclose(out.x, run(feynman_kac(Q1)).x, atol=1e-10)


@pytest.mark.parametrize("kernel_steps", [0, 2])
def test_switching_correction_off_leaves_the_noise_bit_for_bit(kernel_steps: int):
    target = tilt(Q1 * Q2, lambda y: y[:, 0])
    weighted = run(feynman_kac(target, ess_below=1e-9, kernel_steps=kernel_steps))
    naive = run(feynman_kac(target, correct=False, kernel_steps=kernel_steps))
    assert weighted.log_w.std() > 0.1
    assert torch.equal(weighted.x, naive.x)
    assert torch.equal(naive.log_w, torch.zeros_like(naive.log_w))
    streams = [Streams(0), Streams(0)]
    for correct, rng in zip((True, False), streams, strict=True):
        out = sample(feynman_kac(target, correct=correct, kernel_steps=kernel_steps), GRID, particles=64, rng=rng)
        assert (out.trace["ancestors"][-1] < 64).all() == correct
    for name in ("start", "noise", *["kernel"] * (kernel_steps > 0)):
        assert torch.equal(streams[0](name).get_state(), streams[1](name).get_state())


def test_chunk_size_changes_no_run():
    reference = run(feynman_kac(Q1 * Q2))
    parts = run(feynman_kac(replace(Q1, chunk=1) * replace(Q2, chunk=13)))
    assert torch.allclose(parts.x, reference.x, atol=1e-9)
    assert torch.allclose(parts.log_w, reference.log_w, atol=1e-9)


def test_the_shape_of_a_sample_does_not_matter():
    means, y = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=F64), karras(20, 0.1, 5.0)
    flat, image = gaussian_mixture(means, 0.5), gaussian_mixture(means.reshape(4, 1, 2, 3), 0.5)
    reward = lambda y: -y.flatten(1).square().sum(1) / 4  # noqa: E731
    a, b = (run(feynman_kac(tilt(e**2.0, reward), kernel_steps=1), y) for e in (flat, image))
    assert b.x.shape == (2, 64, 1, 2, 3)
    assert torch.allclose(a.x.flatten(), b.x.flatten(), atol=1e-9)
    assert torch.allclose(a.log_w, b.log_w, atol=1e-9)
    assert torch.allclose(a.log_z, b.log_z, atol=1e-9)


def test_runs_do_not_touch_each_other():
    """Weights, resampling and indices of one run are those it has alone: its neighbour is replaced by another population."""
    step, before = feynman_kac(Q1 * Q2, ess_below=1.0).step, population()
    before = before.reweight(torch.randn(2, 64, generator=torch.Generator().manual_seed(1), dtype=F64))
    other = before.replace(x=torch.stack([before.x[0], before.x[1] + 5]), log_w=torch.stack([before.log_w[0], before.log_w[1] * 9]))
    a, b = (step(pop, 1.7**2, 1.5**2, Streams(0)) for pop in (before, other))
    assert torch.equal(a.x[0], b.x[0])
    assert torch.equal(a.log_w[0], b.log_w[0])
    assert torch.equal(a.log_z[0], b.log_z[0])
    assert not torch.equal(a.x[1], b.x[1])


def test_without_noise_and_for_a_point_a_step_is_that_of_ddim():
    """``y' = y + (sigma' - sigma) eps``: exact for data of one point at any step size; a power moves in closed form too."""
    before = population()
    after = feynman_kac(Q1, zeta=0.0, correct=False, variance="posterior").step(before, 1.7**2, 0.4**2, Streams(0))
    assert torch.allclose(after.x, before.x + (0.4 - 1.7) * -1.7 * Q1.score(before.x, 1.7), atol=1e-12)
    point = kernel_mixture(torch.zeros(1, 2, dtype=F64), 1e-9)
    grid = torch.tensor([3.0, 1.0, 0.1])
    start = Streams(0).normal("start", torch.empty(2, 64, 2, dtype=F64)) * 3
    for target, power in ((point, 1.0), (point**2.0, 2.0)):
        moved = run(feynman_kac(target, zeta=0.0, correct=False), grid).x
        assert torch.allclose(moved, start / power**0.5 * (0.1 / 3) ** power, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("beta", [(1.0, 0.0), (0.5, 0.7), (-1.0, 2.0)])
def test_without_noise_gaussians_of_one_width_are_followed_exactly(beta: tuple[float, float]):
    """The flow of ``prod N(m_i, 1)^{beta_i}`` in one step of any length: position, scores where it ends, weight."""
    centres, (s0, s1) = (torch.tensor([[0.3, 0.0]], dtype=F64), torch.tensor([[-0.5, 1.0]], dtype=F64)), (3.0, 0.4)
    pair = [gaussian_mixture(m, 1.0) for m in centres]
    y, h = population().x, s0**2 - s1**2
    displacement, weight, moved = flow(Euclidean((2,)), h, beta, kernel_variances(pair, s0, s1), scores(pair, y, s0))
    assert torch.allclose(moved, scores(pair, y + displacement, s1), atol=1e-9)
    log_q = [q.log_prob for q in pair]
    assert log_q[0] is not None
    assert log_q[1] is not None
    total, middle = sum(beta), (beta[0] * centres[0] + beta[1] * centres[1]) / sum(beta)
    ratio = ((1 + s1**2) / (1 + s0**2)) ** (total / 2)
    assert torch.allclose(y + displacement, middle + ratio * (y - middle), atol=1e-9)
    rows, jacobian = y.flatten(0, 1), 2 * math.log(ratio)
    exact = sum(b * (f((y + displacement).flatten(0, 1), s1) - f(rows, s0)) for b, f in zip(beta, log_q, strict=True)) + jacobian
    assert torch.allclose(weight.flatten(), exact, atol=1e-8)


# options


def test_clipping_is_off_by_default_bounds_the_increments_and_is_counted():
    free = run(feynman_kac(Q1 * Q2, ess_below=1e-9))
    assert "clipped" not in free.aux
    before = population()
    sampler, plain = feynman_kac(Q1 * Q2, ess_below=1e-9, clip=0.05), feynman_kac(Q1 * Q2, ess_below=1e-9)
    before = before.replace(aux={"clipped": torch.zeros_like(before.log_w)})
    after, unbounded = (s.step(before, 1.7**2, 1.5**2, Streams(0)) for s in (sampler, plain))
    centred = unbounded.log_w - unbounded.log_w.mean(-1, keepdim=True)
    assert 0 < int(after.aux["clipped"].sum()) == int((centred.abs() > 0.05).sum()) < 128
    assert torch.allclose(after.log_w, unbounded.log_w.mean(-1, keepdim=True) + centred.clamp(-0.05, 0.05))
    loose = run(feynman_kac(Q1 * Q2, ess_below=1e-9, clip=1e6))
    assert int(loose.aux["clipped"].sum()) == 0
    assert torch.allclose(loose.log_w, free.log_w, atol=1e-10)


def ramp(sigma: float) -> float:
    return 1 + 1 / (1 + sigma)


@pytest.mark.parametrize(
    "target",
    [Q1 * Q2, Q1**ramp, tilt(Q1 * Q2, lambda y: y[:, 0], 2.0), tilt(Q1 * Q2, lambda y: y[:, 0], 2.0, gradient=False)],
    ids=["product", "ramp", "reward", "reward without gradient"],
)
def test_outside_the_window_nothing_is_weighed_or_resampled(target: Target):
    seen = Trace(log_w=lambda state: state.pop.log_w)
    weighed = feynman_kac(target, window=(0.1, 2.0), ess_below=1e-9)
    out = sample(weighed, GRID, particles=64, rng=Streams(0), record=[seen], dtype=F64)
    sigma, log_w = out.trace["sigma"], seen["log_w"]
    first = int((sigma <= 2.0).nonzero()[0])
    last = int((sigma >= 0.1).nonzero()[-1])
    assert torch.equal(log_w[: first + 1], torch.zeros_like(log_w[: first + 1]))
    assert log_w[first + 1].std() > 0
    assert torch.equal(log_w[last + 1 :], log_w[last + 1].expand_as(log_w[last + 1 :]))
    seen = Trace(log_z=lambda state: state.pop.log_z)
    sample(feynman_kac(target, window=(0.1, 2.0), ess_below=1.0), GRID, particles=64, rng=Streams(0), record=[seen], dtype=F64)
    assert (seen["log_z"][: first + 1] == seen["log_z"][0]).all()
    assert len(seen["log_z"][first : last + 2].unique()) > 1
    assert (seen["log_z"][last + 1 :] == seen["log_z"][-1]).all()


def test_exponents_that_change_weigh_by_the_density_before_the_step():
    """One step of ``q^beta(sigma)``: ``(beta_1 - beta_0) log q(y, sigma_0)``, then the step of the new exponent."""
    before, (s0, s1) = population(), (1.7, 1.5)
    after = feynman_kac(Q1**ramp, ess_below=1e-9).step(before, s0**2, s1**2, Streams(0))
    fixed = feynman_kac(Q1 ** ramp(s1), ess_below=1e-9).step(before, s0**2, s1**2, Streams(0))
    assert Q1.log_prob is not None
    log_q = Q1.log_prob(before.x.flatten(0, 1), s0).reshape(2, 64)
    assert torch.allclose(after.log_w, fixed.log_w + (ramp(s1) - ramp(s0)) * log_q, atol=1e-11)
    assert torch.equal(after.x, fixed.x)


def test_a_higher_threshold_resamples_more_often():
    every = sample(feynman_kac(Q1 * Q2, ess_below=1.0), GRID, particles=64, rng=Streams(0)).trace
    seldom = sample(feynman_kac(Q1 * Q2, ess_below=0.3), GRID, particles=64, rng=Streams(0)).trace
    assert every["ess"].mean() > seldom["ess"].mean()
    assert seldom["ess"].min() < 0.3 * 64


def test_the_last_step_lands_on_thin_data_whatever_the_exponents():
    """Data of two points: from sigma = 0.1 the step to zero must end on them, also for powers and products (no overshoot)."""
    thin = kernel_mixture(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), 1e-4)
    grid = torch.cat([karras(60, 0.1, 10.0), torch.zeros(1)])
    for target in (thin**3.0, thin**0.5, cfg(thin, replace(thin, name="twin"), 3.0)):
        out = sample(feynman_kac(target), grid, particles=256, rng=Streams(0), dtype=F64)
        gap = torch.minimum(out.x.norm(dim=-1), (out.x - torch.tensor([3.0, 0.0])).norm(dim=-1))
        assert gap.max() < 1e-3
        assert torch.equal(out.trace["log_z"][-1], out.trace["log_z"][-2])


def test_a_kernel_lets_resampled_copies_separate():
    """Without noise copies stay equal; Langevin steps at the new level part them, and do not change the weights of the level."""
    with pytest.warns(PopflowWarning, match="zeta=0 with resampling: copies of a particle never separate"):
        still = feynman_kac(Q1 * Q2, zeta=0.0, ess_below=1.0)
    assert len(run(still, runs=1).x[0].unique(dim=0)) < 30
    moving = run(feynman_kac(Q1 * Q2, zeta=0.0, ess_below=1.0, kernel_steps=1), runs=1)
    assert len(moving.x[0].unique(dim=0)) == 64
    before = population()
    a, b = (feynman_kac(Q1 * Q2, ess_below=1e-9, kernel_steps=k).step(before, 1.7**2, 1.5**2, Streams(0)) for k in (0, 3))
    assert torch.equal(a.log_w, b.log_w)
    assert not torch.equal(a.x, b.x)


def test_a_kernel_leaves_the_target_as_it_is():
    """Many Langevin steps from exact draws of a Gaussian product keep its mean and variance within three standard errors."""
    a, b = gaussian_mixture(torch.zeros(1, 1, dtype=F64), 1.0), gaussian_mixture(torch.ones(1, 1, dtype=F64), 0.5)
    sigma, n = 0.5, 20000
    precision = 1 / (1 + 0.25) + 1 / (0.25 + 0.25)
    mean = 1 / (0.25 + 0.25) / precision
    x = mean + torch.randn(1, n, 1, generator=torch.Generator().manual_seed(0), dtype=F64) / math.sqrt(precision)
    sampler = feynman_kac(a * b, ess_below=1e-9, kernel_steps=60, step_size=lambda sigma: 0.002)
    out = sampler.step(Population.of(x, batch=1), sigma**2 * (1 + 1e-12), sigma**2, Streams(0)).x[0, :, 0]
    assert float(torch.corrcoef(torch.stack([out, x[0, :, 0]]))[0, 1]) < 0.8
    assert abs(float(out.mean()) - mean) < 3 * math.sqrt(1 / precision / n)
    assert abs(float(out.var()) * precision - 1) < 3 * math.sqrt(2 / n)


def test_kernels_recompute_tracked_densities_that_are_known():
    out = run(feynman_kac(Q1 * Q2, track=True, kernel_steps=2), karras(15, 0.5, 10.0))
    for i, q in enumerate((Q1, Q2)):
        assert q.log_prob is not None
        assert torch.allclose(out.aux["log_q"][..., i], q.log_prob(out.x.flatten(0, 1), 0.5).reshape(2, 64), atol=1e-10)


def test_resuming_midway_gives_identical_bytes():
    """Weights, tilts, tracked densities, clip counts, ancestors and every stream go on from the plain tensors of a state."""
    target = tilt(replace(Q1, log_prob=None) ** ramp * Q2, lambda y: y[:, 0], gradient=False)
    saved: dict[int, dict[str, Tensor]] = {}

    def keep(state: State) -> None:
        saved[state.k] = {name: value.clone() for name, value in state.tensors().items()}

    sampler = feynman_kac(target, clip=3.0, ess_below=0.8)
    whole = sample(sampler, GRID, particles=64, runs=2, rng=Streams(3), record=[keep])
    assert float(whole.trace["ancestors"][-1].min()) < 64
    for k in (0, 11, 20):
        rng = Streams(3)
        rest = sample(sampler, GRID, particles=64, runs=2, rng=rng, resume=State.of(saved[k], rng))
        assert same_bytes(rest.population, whole.population)
        assert rest.population.aux.keys() == whole.population.aux.keys()
        for name, value in rest.population.aux.items():
            assert torch.equal(value, whole.population.aux[name]), name


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zeta": -1.0}, "zeta=-1.0, wanted a noise scale >= 0"),
        ({"zeta": math.nan}, "zeta=nan, wanted a noise scale >= 0"),
        ({"zeta": math.inf}, "zeta=inf, wanted a noise scale >= 0"),
        ({"window": (5.0, 1.0)}, r"window=\(5.0, 1.0\), wanted \(low, high\)"),
        ({"zeta": 0.4, "track": True}, r"zeta=0.4 with tracked log-densities, wanted zeta >= 1"),
        ({"clip": 0.0}, "clip=0.0, wanted a positive bound"),
        ({"kernel_steps": -1}, "kernel_steps=-1, wanted 0 or more"),
        ({"ess_below": 0.0}, "ess_below=0.0, wanted a fraction"),
        ({"ess_below": 1.5}, "ess_below=1.5, wanted a fraction"),
    ],
)
def test_options_are_checked(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        feynman_kac(Q1 * Q2, **options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [({"kernel_steps": 1.5}, "kernel_steps=1.5, wanted a whole number"), ({"zeta": "1"}, "zeta='1', wanted a number")],
)
def test_numbers_of_the_wrong_kind_are_named(options: dict, message: str):
    with pytest.raises(TypeError, match=message):
        feynman_kac(Q1 * Q2, **options)


@pytest.mark.parametrize("times", [lambda q: 2 * q, lambda q: q * 2])
def test_a_number_times_a_target_is_answered_with_a_power(times: Callable):
    with pytest.raises(TypeError, match=r"an exponent is a power, target\*\*2"):
        times(Q1)


def test_an_unknown_variance_is_answered_with_the_closest():
    with pytest.raises(ValueError, match="did you mean 'optimal'"):
        inspect.unwrap(feynman_kac)(Q1, variance="optimum")  # pyright: ignore[reportArgumentType]


def test_a_ramp_needs_its_densities_and_those_need_the_noise_of_the_reverse_diffusion():
    blind = replace(Q1, log_prob=None) ** ramp
    with pytest.raises(ValueError, match="wanted zeta >= 1: with less noise than the reverse diffusion they miss a Laplacian"):
        feynman_kac(blind, zeta=0.4)
    feynman_kac(blind, zeta=0.4, correct=False)
    feynman_kac(Q1**ramp, zeta=0.4)


@pytest.mark.parametrize("zeta", [1.0, 1.5])
def test_tracked_densities_of_gaussians_are_exact_at_any_step_length(zeta: float):
    experts = [gaussian_mixture(torch.full((1, 2), m, dtype=F64), c) for m, c in ((0.0, 1.0), (0.6, 0.4))]
    seen = run(feynman_kac(experts[0] * experts[1], track=True, zeta=zeta), torch.tensor([20.0, 3.0, 0.5, 0.1]))
    for i, q in enumerate(experts):
        assert q.log_prob is not None
        assert torch.allclose(seen.aux["log_q"][..., i], q.log_prob(seen.x.flatten(0, 1), 0.1).reshape(2, 64), atol=1e-8)


def test_a_kernel_that_would_leave_tracked_densities_behind_is_refused():
    with pytest.raises(StaleTrackingError, match=r"leave the tracked \['log_q'\] behind"):
        run(feynman_kac(replace(Q1, log_prob=None) ** ramp, kernel_steps=1))


def test_a_reward_without_gradient_is_named():
    with pytest.raises(ValueError, match=r"reward 'counted' has no gradient: .*gradient=False"):
        run(feynman_kac(tilt(Q1, lambda y: (y[:, 0] > 0).to(y), name="counted")))
    run(feynman_kac(tilt(Q1, lambda y: (y[:, 0] > 0).to(y), gradient=False)))


def test_a_reward_whose_gradient_is_not_finite_is_named():
    with pytest.raises(NonFiniteError, match=r"reward 'root' has a gradient that is not finite for \d+ of 128 samples"):
        run(feynman_kac(tilt(Q1, lambda y: y[:, 0].sqrt(), name="root"), correct=False))
    with pytest.raises(NonFiniteError, match=r"reward 'logarithm' is NaN or \+inf for \d+ of 128 samples"):
        run(feynman_kac(tilt(Q1, lambda y: y[:, 0].log(), name="logarithm")))


def test_a_gradient_free_reward_weighs_what_the_last_step_made():
    """Strength only at sigma = 0, where a reward may be -inf: half of a symmetric density is left, and log Z is log 1/2."""
    half = tilt(
        gaussian_mixture(torch.zeros(1, 1, dtype=F64), 1.0),
        lambda y: torch.where(y[:, 0] > 0, 0.0, -math.inf),
        lambda sigma: float(sigma == 0),
        gradient=False,
    )
    grid = torch.cat([karras(40, 0.05, 10.0), torch.zeros(1, dtype=F64)])
    pop = run(feynman_kac(half), grid, particles=4096)
    assert bool((pop.x[pop.log_w.isfinite()] > 0).all())
    assert torch.allclose(pop.log_normalizer(), torch.tensor(0.5, dtype=F64).log(), atol=0.05)
