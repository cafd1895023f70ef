"""SuperDiff: tracked log-densities, OR and AND against closed forms, by noise and by the ODE, with and without guidance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from popflow.compose import (
    Expert,
    Guidance,
    Sampler,
    average,
    both,
    either,
    from_density,
    gaussian_mixture,
    igso3_mixture,
    karras,
    sample,
    scores,
)
from popflow.compose.backward_kernel import Variance, kernel_variances
from popflow.core import Population, State, Streams, Trace

F64 = torch.float64
GRID = karras(30, 0.05, 10.0)


def mixture(seed: int, dim: int = 8, name: str = "q") -> Expert:
    rng = torch.Generator().manual_seed(seed)
    return gaussian_mixture(
        torch.randn(3, dim, generator=rng, dtype=F64), 0.5 + torch.rand(3, generator=rng, dtype=F64), name=f"{name}{seed}"
    )


EXPERTS = [mixture(seed) for seed in range(4)]
BLIND = [replace(e, log_prob=None) for e in EXPERTS]
NULL = mixture(9)
TURN = igso3_mixture(torch.eye(3).unsqueeze(0), 0.3)


def run(sampler: Sampler, grid: Tensor = GRID, seed: int = 0, **options) -> Population:
    return sample(sampler, grid, **{"particles": 32, "runs": 2, "dtype": F64, **options}, rng=Streams(seed)).population


def population(m: int, n: int = 32) -> Population:
    x = 2 * torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    return Population.of(x, batch=1).replace(
        aux={"log_q": torch.zeros(2, n, m, dtype=F64), "kappa": torch.full((2, n, m), 1 / m, dtype=F64)}
    )


def alone(expert: Expert, variance: Variance, dtype: torch.dtype = F64) -> Tensor:
    """End of the reverse diffusion of one expert, written out: ``y + h s + sqrt(c h) z``."""
    rng = Streams(0)
    y = rng.normal("start", torch.empty(2, 32, 8, dtype=dtype)) * float(GRID[0])
    for sigma, lower in zip(GRID[:-1].tolist(), GRID[1:].tolist(), strict=True):
        h, (c,) = sigma**2 - lower**2, kernel_variances([expert], sigma, lower, variance)
        y = y + h * expert.score(y, sigma) + math.sqrt(c * h) * rng.normal("noise", y)
    return y


def increments(sampler: Sampler, m: int, s0: float = 1.5, s1: float = 1.4) -> tuple[Population, Population]:
    before = population(m)
    return before, sampler.step(before, s0**2, s1**2, Streams(3))


# log-densities


@pytest.mark.parametrize("variance", ["euler", "optimal", "posterior"])
@pytest.mark.parametrize("make", [average, either, both])
def test_the_increment_is_the_log_ratio_of_the_two_kernels(make: Callable[..., Sampler], variance: Variance):
    """``log N(y'; y + S^2 s, c S^2) - log N(y; y', S^2)`` for the displacement of any mixture; with c = 1 the Ito sum ``<s, dy> - S^2 |s|^2 / 2``."""
    before, after = increments(make(EXPERTS[:3], variance=variance), 3)
    S2 = 1.5**2 - 1.4**2
    for i, (expert, c) in enumerate(zip(EXPERTS[:3], kernel_variances(EXPERTS[:3], 1.5, 1.4, variance), strict=True)):
        s = expert.score(before.x, 1.5)
        denoising = torch.distributions.Normal(before.x + S2 * s, torch.tensor(c * S2, dtype=F64).sqrt()).log_prob(after.x).sum(-1)
        noising = torch.distributions.Normal(after.x, torch.tensor(S2, dtype=F64).sqrt()).log_prob(before.x).sum(-1)
        if variance == "euler":
            move = after.x - before.x
            assert torch.allclose(denoising - noising, (s * move).sum(-1) - S2 / 2 * s.square().sum(-1), atol=1e-10)
        assert torch.allclose(after.aux["log_q"][..., i], denoising - noising, atol=1e-10)


@pytest.mark.parametrize("make", [average, either])
def test_tracked_densities_approach_the_exact_ones(make: Callable[..., Sampler]):
    """Ito: error like the square root of the step. Without noise and with the exact divergence: like the step, and far smaller."""
    flat = [gaussian_mixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64), 0.5), gaussian_mixture(torch.ones(1, 2, dtype=F64), 0.8)]

    def error(steps: int, **options) -> Tensor:
        out = run(make(flat, **options), karras(steps, 0.1, 10.0), particles=256)
        exact = torch.stack([e.log_prob(out.x.flatten(0, 1), 0.1).reshape(2, -1) for e in flat if e.log_prob is not None], -1)
        return out.aux["log_q"] - exact

    coarse, fine = error(50), error(450)
    assert abs(float(fine.mean())) < 0.1
    assert 2 < float(coarse.std() / fine.std()) < 4.5  # root of 9: 3
    ode, finer = (error(steps, deterministic=True, probes=None) for steps in (15, 45))
    assert finer.std() < 0.09
    assert 2.3 < ode.abs().mean() / finer.abs().mean() < 4.5


def test_probes_estimate_the_exact_divergence():
    """Rademacher probes are unbiased: their mean over 20000 copies of a point is the exact divergence within four standard errors."""
    point = 2 * torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=F64)
    before = population(2).replace(x=point.repeat(1, 20000, 1), log_w=torch.zeros(1, 20000, dtype=F64))
    before = before.replace(aux={"log_q": torch.zeros(1, 20000, 2, dtype=F64)})
    once, exact = (
        average(EXPERTS[:2], deterministic=True, probes=p).step(before, 1.5**2, 1.4**2, Streams(0)).aux["log_q"][0] for p in (1, None)
    )
    assert once.std(0).min() > 0.003
    assert ((once.mean(0) - exact.mean(0)).abs() / (once.std(0) / math.sqrt(20000))).max() < 4
    four = average(EXPERTS[:2], deterministic=True, probes=4).step(before, 1.5**2, 1.4**2, Streams(0)).aux["log_q"][0]
    assert torch.allclose(four.std(0), once.std(0) / 2, rtol=0.05)


def test_divergence_of_a_density_given_by_its_logarithm():
    """`from_density` serves the ODE too: same tracked densities as the closed-form mixture."""
    other = [from_density(e.log_prob, e.event) for e in EXPERTS[:2] if e.log_prob is not None]
    a, b = (run(either(es, deterministic=True), karras(8, 0.5, 5.0)) for es in (other, EXPERTS[:2]))
    assert torch.allclose(a.aux["log_q"], b.aux["log_q"], atol=1e-8)


def test_densities_start_from_what_is_known():
    """Exact ones where every expert knows its own, else the common Gaussian of the first level."""
    seen: list[State] = []
    for experts in (EXPERTS[:2], BLIND[:2]):
        run(average(experts), karras(2, 1.0, 10.0), record=[seen.append])
    exact, gaussian = seen[0].pop, seen[3].pop
    for i, expert in enumerate(EXPERTS[:2]):
        assert expert.log_prob is not None
        assert torch.allclose(exact.aux["log_q"][..., i].flatten(), expert.log_prob(exact.x.flatten(0, 1), 10.0))
    normal = torch.distributions.Normal(0.0, torch.tensor(10.0, dtype=F64)).log_prob(gaussian.x).sum(-1)
    assert torch.allclose(gaussian.aux["log_q"], normal[..., None].expand(2, 32, 2))


# AND


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("guidance", [None, Guidance(NULL, 3.0)])
@pytest.mark.parametrize("m", [2, 4])
def test_and_changes_all_densities_alike(m: int, guidance: Guidance | None, deterministic: bool):
    before, after = increments(both(EXPERTS[:m], ridge=0.0, guidance=guidance, deterministic=deterministic), m)
    gain = after.aux["log_q"] - before.aux["log_q"]
    spread = gain.amax(-1) - gain.amin(-1)
    assert gain.abs().max() > 0.1
    assert spread.max() < 1e-5
    plain = increments(average(EXPERTS[:m], guidance=guidance, deterministic=deterministic), m)[1].aux["log_q"]
    assert (plain.amax(-1) - plain.amin(-1)).median() > 0.01
    assert torch.allclose(after.aux["kappa"].sum(-1), torch.ones(2, 32, dtype=F64))
    assert after.aux["kappa"].std() > 0.01


@pytest.mark.parametrize("variance", ["euler", "optimal"])
@pytest.mark.parametrize("m", [2, 4])
def test_and_keeps_tracked_densities_equal_along_the_whole_path(m: int, variance: Variance):
    """All of them where the changes are linear; without roots of the parabolas a particle now and then keeps a gap."""
    out = run(both(BLIND[:m], ridge=0.0, feedback=0.0, variance=variance))
    spread = out.aux["log_q"].amax(-1) - out.aux["log_q"].amin(-1)
    assert (spread > 1e-5).double().mean() <= (0.0 if variance == "euler" else 0.05)
    assert spread.max() < 0.5


@pytest.mark.parametrize("w", [1.0, 4.0])
def test_and_of_two_has_the_published_shares(w: float):
    """Closed form in sigma coordinates, with the same noise z (b = first expert, o = second, u = unconditional):

    kappa_o = [S^2/(2 sigma^2) (|e_b|^2 - |e_o|^2) + <e_b - e_o, d_0> / sigma] / ((w S^2/sigma^2) |e_o - e_b|^2) with a minus sign on the
    numerator, where ``d_0 = -(S^2/sigma)(e_u + w (e_b - e_u)) + S z`` is the step that follows the first expert alone.
    """
    guidance = None if w == 1 else Guidance(NULL, w)
    before, after = increments(both(EXPERTS[:2], ridge=0.0, guidance=guidance, variance="euler"), 2)
    sigma, S2 = 1.5, 1.5**2 - 1.4**2
    z = Streams(3).normal("noise", before.x)
    b, o, u = (-sigma * s for s in scores([*EXPERTS[:2], NULL], before.x, sigma))
    base = b if w == 1 else u + w * (b - u)
    alone = -S2 / sigma * base + math.sqrt(S2) * z
    above = ((o - b) * alone).sum(-1) / sigma + S2 / (2 * sigma**2) * (o.square().sum(-1) - b.square().sum(-1))
    kappa = above / (w * S2 / sigma**2 * (o - b).square().sum(-1))
    assert torch.allclose(after.aux["kappa"][..., 1], kappa, atol=1e-9, rtol=1e-9)
    assert torch.allclose(after.x, before.x + alone - (w * S2 / sigma * kappa)[..., None] * (o - b), atol=1e-9)


@pytest.mark.parametrize("order", [(2, 0, 1)])
@pytest.mark.parametrize("make", [both, either, average])
def test_the_order_of_experts_only_permutes_the_shares(make: Callable[..., Sampler], order: tuple[int, ...]):
    reference = run(make(EXPERTS[:3]))
    other = run(make([EXPERTS[i] for i in order]))
    assert torch.allclose(other.x, reference.x, atol=1e-7)
    for name in ("kappa", "log_q"):
        assert torch.allclose(other.aux[name], reference.aux[name][..., list(order)], atol=1e-6)


@pytest.mark.parametrize("make", [both, either, average])
@pytest.mark.parametrize("m", [2, 3])
def test_identical_experts_share_equally_and_are_the_single_model(make: Callable[..., Sampler], m: int):
    for variance in ("euler", "optimal"):
        out = run(make(EXPERTS[:1] * m, variance=variance))
        assert torch.allclose(out.aux["kappa"], torch.full_like(out.aux["kappa"], 1 / m), atol=1e-12)
        assert torch.allclose(out.x, alone(EXPERTS[0], variance), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_experts_that_differ_by_rounding_alone_share_equally(dtype: torch.dtype):
    """The system of AND is all rounding there; solving it would throw the particles out."""
    rng, eps = torch.Generator().manual_seed(0), torch.finfo(dtype).eps

    def rounded(y: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
        out = -sigma * EXPERTS[0].score(y, sigma)
        return out * (1 + 4 * eps * torch.randn(out.shape, generator=rng, dtype=out.dtype))

    twin = Expert(rounded, (8,), name="rounded")
    out = run(both([BLIND[0], replace(twin, loss=EXPERTS[0].loss)], ridge=0.0), dtype=dtype)
    assert torch.equal(out.aux["kappa"], torch.full_like(out.aux["kappa"], 0.5))
    assert torch.allclose(out.x, alone(EXPERTS[0], "optimal", dtype), atol=1e4 * eps)


def true_gap(experts: list[Expert], grid: Tensor, variance: Variance, **options) -> Tensor:
    """``log q_i - log q_1`` by the exact densities at the end, ``[particles, M - 1]``."""
    x = run(both(experts, variance=variance, feedback=1.0, ridge=0.0), grid, runs=1, **options).x[0]
    log_q = torch.stack([e.log_prob(x, float(grid[-1])) for e in experts if e.log_prob is not None], -1)
    return log_q[:, 1:] - log_q[:, :1]


@pytest.mark.parametrize(("dim", "m"), [(2, 2), (16, 2), (4, 3)])
def test_and_of_gaussians_equalises_the_true_densities_in_few_steps(dim: int, m: int):
    """Their kernels are Gaussian: Bayes' rule is exact at any step length, with the table and with curvature. The published form is off by a nat or more."""
    means = torch.eye(3, dim, dtype=F64)
    experts = [gaussian_mixture(k * means[k : k + 1], width) for k, width in enumerate((0.3, 1.5, 0.8)[:m])]
    for variance in ("optimal", "local"):
        gap = true_gap(experts, karras(40, 0.05, 10.0), variance)
        assert gap.abs().mean() < 1e-3
        assert gap.abs().median() < 1e-8
    assert true_gap(experts, karras(40, 0.05, 10.0), "euler").mean(0).abs().max() > 0.5


def test_true_gaps_vanish_with_the_step_with_local_widths_alone():
    """Two mixtures of unequal widths."""
    rng = torch.Generator().manual_seed(5)
    narrow, wide = (
        gaussian_mixture(torch.randn(2, 3, generator=rng, dtype=F64), torch.tensor(w, dtype=F64)) for w in ((0.3, 0.5), (1.2, 0.8))
    )
    coarse, fine = (true_gap([narrow, wide], karras(n, 0.05, 10.0), "local", particles=64) for n in (20, 150))
    table, published = (true_gap([narrow, wide], karras(150, 0.05, 10.0), kind, particles=64) for kind in ("optimal", "euler"))
    assert fine.square().mean().sqrt() < 0.1
    assert coarse.square().mean() > 4 * fine.square().mean()
    assert table.square().mean() > 4 * fine.square().mean()
    assert published.mean().abs() > 0.5


def test_moves_of_and_are_bounded():
    """Where scores nearly agree and densities do not, the published system throws particles out; moves along the difference end at ``3 sqrt(h)``."""
    near = [gaussian_mixture(torch.full((1, 8), m, dtype=F64), 1.0) for m in (0.0, 1e-3)]
    wanted, before, h = [5.0, 0.0], population(2), 1.5**2 - 1.4**2
    mean = before.x + h * scores(near, before.x, 1.5).mean(0)
    for variance in ("optimal", "euler"):
        after = both(near, bias=wanted, feedback=1.0, variance=variance).step(before, 1.5**2, 1.4**2, Streams(0))
        along = (after.x - mean).mean(-1).abs() * math.sqrt(8)
        assert torch.allclose(along / math.sqrt(h), torch.full_like(along, 3.0), atol=1e-6) == (variance == "optimal")
        assert bool((along < 1e3).all()) == (variance == "optimal")


def test_a_ridge_pulls_the_shares_to_equal_ones():
    size = [float((run(both(EXPERTS[:3], ridge=r, feedback=0.0)).aux["kappa"] - 1 / 3).abs().mean()) for r in (0.0, 1.0, 1e3)]
    assert size[0] > 2 * size[1] > 20 * size[2]


def test_wanted_differences_are_reached_through_feedback():
    wanted = torch.tensor([2.0, -1.0, 0.5], dtype=F64)
    out = run(both(BLIND[:3], ridge=0.0, feedback=0.5, bias=wanted.tolist()))
    centred = out.aux["log_q"] - out.aux["log_q"].mean(-1, keepdim=True)
    assert torch.allclose(centred, (wanted - wanted.mean()).expand_as(centred), atol=1e-4)
    without = run(both(BLIND[:3], ridge=0.0, feedback=0.0)).aux["log_q"]
    assert (without - without.mean(-1, keepdim=True)).abs().max() < 1e-5


def test_feedback_closes_the_gap_of_the_first_level_by_its_share():
    """Exact densities differ at the first level; each step takes the share of what is left, all of it at once for one."""
    for share in (0.25, 1.0):
        gaps = Trace(gap=lambda state: (state.pop.aux["log_q"][..., 0] - state.pop.aux["log_q"][..., 1]).abs().mean())
        run(both(EXPERTS[:2], ridge=0.0, feedback=share), karras(10, 0.5, 4.0), record=[gaps])
        assert gaps["gap"][0] > 0.1
        assert torch.allclose(gaps["gap"], gaps["gap"][0] * (1 - share) ** torch.arange(11, dtype=F64), atol=1e-8)


# OR


MODES = torch.tensor([[[-1.5, 1.5], [1.5, 1.5]], [[-1.5, -1.5], [1.5, -1.5]]])
PAIR = [gaussian_mixture(m, 0.4, name=n) for m, n in zip(MODES, "ab", strict=True)]


@pytest.mark.parametrize("options", [{}, {"temperature": 100.0}, {"deterministic": True, "probes": None}], ids=["T=1", "T=100", "ode"])
def test_or_covers_every_mode_of_both_in_equal_shares(options: dict):
    steps = 60 if options.get("deterministic") else 200
    out = run(either(PAIR, **options), karras(steps, 0.01, 10.0), particles=4096, runs=1).x[0]
    gap = torch.cdist(out, MODES.reshape(4, 2).to(out))
    near, owner = gap.min(1)
    assert torch.allclose(owner.bincount(minlength=4) / 4096, torch.full((4,), 0.25), atol=0.03)
    assert float((near < 3.15 * 0.4).float().mean()) > 0.985
    for mode in range(4):
        assert abs(float(out[owner == mode].std(0).mean()) - 0.4) < 0.03


def test_or_with_a_bias_has_the_shares_of_its_mixture():
    out = run(either(PAIR, bias=[math.log(0.8), math.log(0.2)]), karras(150, 0.01, 10.0), particles=4096, runs=1).x[0]
    assert abs(float((out[:, 1] > 0).double().mean()) - 0.8) < 0.03


def test_the_shares_of_or_are_a_softmax_of_the_densities_before_the_step():
    before = population(3).replace(aux={"log_q": torch.randn(2, 32, 3, generator=torch.Generator().manual_seed(1), dtype=F64)})
    after = either(EXPERTS[:3], temperature=2.0, bias=[0.0, 1.0, -1.0]).step(before, 1.5**2, 1.4**2, Streams(0))
    wanted = (2 * before.aux["log_q"] + torch.tensor([0.0, 1.0, -1.0])).softmax(-1)
    assert torch.allclose(after.aux["kappa"], wanted)
    cold = either(EXPERTS[:3], temperature=1e12, variance="euler").step(before, 1.5**2, 1.4**2, Streams(0))
    winner = torch.nn.functional.one_hot(before.aux["log_q"].argmax(-1), 3).double()
    assert torch.equal(cold.aux["kappa"], winner)
    chosen = torch.stack([e.score(before.x, 1.5) for e in EXPERTS[:3]], -2)[winner.bool()].reshape(before.x.shape)
    z = Streams(0).normal("noise", before.x)
    S2 = 1.5**2 - 1.4**2
    assert torch.allclose(cold.x, before.x + S2 * chosen + math.sqrt(S2) * z, atol=1e-12)


def test_or_of_one_mixture_split_in_two_is_the_mixture():
    """kappa = exact posterior of the half that a point comes from: the kernel of the whole has the same mean, and by the law of total variance the same width."""
    whole = gaussian_mixture(MODES.reshape(4, 2).to(F64), 0.4)
    halves = [gaussian_mixture(m.to(F64), 0.4) for m in MODES]
    rng = torch.Generator().manual_seed(0)
    y = MODES.reshape(4, 2).to(F64)[torch.randint(4, (1, 40_000), generator=rng)]
    y = y + math.hypot(0.4, 0.7) * torch.randn(y.shape, generator=rng, dtype=F64)  # the noised mixture
    exact = torch.stack([h.log_prob(y[0], 0.7) for h in halves if h.log_prob is not None], -1).unsqueeze(0)
    before = Population.of(y, batch=1).replace(aux={"log_q": exact, "kappa": exact})
    S2, z = 0.7**2 - 0.5**2, Streams(0).normal("noise", y)
    for variance in ("euler", "optimal"):
        after, (c,) = (
            either(halves, variance=variance).step(before, 0.7**2, 0.5**2, Streams(0)),
            kernel_variances([whole], 0.7, 0.5, variance),
        )
        width = ((after.x - y - S2 * whole.score(y, 0.7)) / z).square() / S2
        assert torch.allclose(width.mean(), torch.tensor(c, dtype=F64), rtol=1e-9 if variance == "euler" else 0.02)


# guidance, the ODE, the last step


def test_the_guided_kernel_is_the_product_of_gaussians():
    """``u^{1-w} (q_1 q_2)^{w/2}``, precisions and means weighted by the exponents over c; where that has no width, the width of the unguided one."""
    before, S2 = population(2), 1.5**2 - 1.4**2
    s, c = scores([*EXPERTS[:2], NULL], before.x, 1.5), kernel_variances([*EXPERTS[:2], NULL], 1.5, 1.4)
    z = Streams(3).normal("noise", before.x)
    far = 1e4 if c[2] < min(c[:2]) else -1e4
    for w in (0.0, 2.5, -0.5, far):
        weights = [w / 2 / c[0], w / 2 / c[1], (1 - w) / c[2]]
        total = sum(weights)
        mean, width = sum(one * score for one, score in zip(weights, s, strict=True)) / total, 1 / total
        if w == far:
            assert total < 0
            mixed, width = ((s[0] / c[0] + s[1] / c[1]) / (1 / c[0] + 1 / c[1])), 2 / (1 / c[0] + 1 / c[1])
            mean = s[2] + w * (mixed - s[2])
        after = increments(average(EXPERTS[:2], guidance=Guidance(NULL, w)), 2)[1]
        assert torch.allclose(after.x, before.x + S2 * mean + math.sqrt(width * S2) * z, atol=1e-9)


@pytest.mark.parametrize("deterministic", [False, True])
def test_guidance_moves_by_the_guided_mixture_and_tracks_the_conditional_densities(deterministic: bool):
    w = 2.5
    guided = average(
        EXPERTS[:2], guidance=Guidance(NULL, w), deterministic=deterministic, probes=None, variance="optimal" if deterministic else "euler"
    )
    before, after = increments(guided, 2)
    S2, (a, b, u) = 1.5**2 - 1.4**2, scores([*EXPERTS[:2], NULL], before.x, 1.5)
    guided = u + w * ((a + b) / 2 - u)
    moved = 1.5 * (1.5 - 1.4) * guided if deterministic else S2 * guided + math.sqrt(S2) * Streams(3).normal("noise", before.x)
    assert torch.allclose(after.x - before.x, moved, atol=1e-12)
    if not deterministic:
        expected = (a * moved).sum(-1) - S2 / 2 * a.square().sum(-1)
        assert torch.allclose(after.aux["log_q"][..., 0], expected, atol=1e-11)


def test_guidance_of_weight_one_is_none():
    a, b = run(either(EXPERTS[:2], guidance=Guidance(NULL, 1.0))), run(either(EXPERTS[:2]))
    assert torch.allclose(a.x, b.x, atol=1e-8)


def test_the_ode_draws_no_noise_and_the_last_step_takes_the_last_shares():
    rng, grid = Streams(0), torch.cat([karras(3, 0.2, 5.0), torch.zeros(1)])
    out = sample(either(EXPERTS[:2], deterministic=True, probes=None), grid, particles=8, rng=rng, dtype=F64)
    assert set(rng.state()) == {"start"}
    before = sample(either(EXPERTS[:2], deterministic=True, probes=None), grid[:-1], particles=8, rng=Streams(0), dtype=F64).population
    mixed = (before.aux["kappa"].movedim(-1, 0)[..., None] * scores(EXPERTS[:2], before.x, 0.2)).sum(0)
    assert torch.allclose(out.x, before.x + 0.2**2 * mixed, atol=1e-12)
    assert torch.equal(out.population.aux["log_q"], before.aux["log_q"])


@pytest.mark.parametrize("make", [both, either])
def test_resuming_midway_gives_identical_bytes(make: Callable[..., Sampler]):
    sampler, saved = make(EXPERTS[:3]), {}

    def keep(state: State) -> None:
        saved[state.k] = {name: value.clone() for name, value in state.tensors().items()}

    whole = run(sampler, record=[keep])
    rng = Streams(0)
    rest = sample(sampler, GRID, particles=32, runs=2, rng=rng, resume=State.of(saved[16], rng), dtype=F64).population
    assert torch.equal(rest.x, whole.x)
    assert torch.equal(rest.aux["log_q"], whole.aux["log_q"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: either(EXPERTS[:1]), "experts holds 1 model"),
        (lambda: both([]), "experts holds 0 model"),
        (lambda: either(EXPERTS[:2], temperature=0.0), "temperature=0.0, wanted a positive number"),
        (lambda: either(EXPERTS[:2], temperature=math.inf), "temperature=inf, wanted a positive number.* 1e6 the likeliest"),
        (lambda: either(EXPERTS[:2], bias=[1.0]), r"bias=\[1.0\], wanted one finite number for each of 2 experts"),
        (lambda: either(EXPERTS[:2], bias=[0.0, math.nan]), "wanted one finite number for each of 2 experts"),
        (lambda: both(EXPERTS[:2], ridge=-1.0), "ridge=-1.0, wanted a number >= 0"),
        (lambda: either(EXPERTS[:2], deterministic=True, variance="local"), "variance='local' has no effect with deterministic=True"),
        (lambda: both([TURN, TURN], variance="local"), "variance='local' with samples in Rotations.*, which is not flat: wanted 'optimal'"),
        (lambda: both(EXPERTS[:2], feedback=1.5), r"feedback=1.5, wanted a share in \[0, 1\]"),
        (
            lambda: both(EXPERTS[:2], bias=[0.0, 1.0], feedback=0.0),
            r"bias=\[0.0, 1.0\] has no effect in AND with feedback=0, wanted feedback above 0",
        ),
        (lambda: both(EXPERTS[:2], guidance=Guidance(NULL, 0.0)), "guidance.w=0 in AND"),
        (lambda: both(EXPERTS[:2], guidance=Guidance(NULL, math.nan)), "guidance.w=nan, wanted a finite number"),
        (lambda: both(EXPERTS[:2], ridge=math.inf), "ridge=inf, wanted a number >= 0"),
        (lambda: average(EXPERTS[:2], probes=0), "probes=0, wanted at least 1"),
        (lambda: either([EXPERTS[0], mixture(0, dim=3)]), r"samples of shape \(8,\) and \(3,\)"),
        (lambda: either(EXPERTS[:2], guidance=Guidance(replace(NULL, space="latent"), 2.0)), "live in the spaces 'data' and 'latent'"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Sampler], message: str):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("unchecked")
def test_a_product_has_no_density_to_superpose():
    with pytest.raises(TypeError, match="experts holds a Target, wanted an Expert"):
        either([EXPERTS[0] * EXPERTS[1], EXPERTS[2]])  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_width_is_named():
    with pytest.raises(ValueError, match=r"variance.*'lokal'.*local"):
        both(EXPERTS[:2], variance="lokal")  # pyright: ignore[reportArgumentType]
