"""Exact scores behind networks of diffusers: the whole adapter against closed forms, for VP (epsilon and v), flow and EDM."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

import diffusers
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from popflow.compose import Target, both, cfg, either, feynman_kac, gaussian_mixture, karras, sample
from popflow.compose.diffusers import from_pipe
from popflow.core import Population, Streams

SCHEDULERS = {
    "VP epsilon": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "VP v": lambda: diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "EDM": lambda: diffusers.EDMEulerScheduler(),  # noqa: PLW0108
}
MIXTURES = {
    "q": ([0.3, 0.7], [-2.0, 1.5], [0.8, 0.4]),
    "q1": ([0.5, 0.5], [-1.0, 2.0], [1.0, 0.7]),
    "q2": ([0.3, 0.7], [0.0, 2.5], [0.6, 0.8]),
}


class Mixture(ModelMixin, ConfigMixin):
    """The perfect network of a Gaussian mixture under a scheduler: sees x and time like any other, knows no sigma."""

    @register_to_config
    def __init__(self, sample_size: int = 1, in_channels: int = 1, num_class_embeds: int | None = None):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)  # gives the network its precision

    def given(self, means: Tensor, stds: Tensor, weights: Tensor, scheduler) -> Mixture:
        self.means, self.stds, self.weights, self.scheduler = means, stds, weights, scheduler
        return self

    def level(self, time: float) -> tuple[float, float]:
        """``(alpha, s)`` at a time, written down from the definition of each scheduler."""
        if isinstance(self.scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
            return 1 - time / 1000, time / 1000
        if isinstance(self.scheduler, diffusers.EDMEulerScheduler):
            return 1.0, math.exp(4 * time)
        table = self.scheduler.alphas_cumprod.double()
        low = min(int(time), len(table) - 2)
        log_sigma = ((1 - table) / table).log() / 2
        sigma = float(torch.lerp(log_sigma[low], log_sigma[low + 1], time - low).exp())
        return 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)

    def forward(self, x: Tensor, time: Tensor, class_labels=None, return_dict: bool = True) -> tuple[Tensor]:
        alpha, s = self.level(float(time[0]))
        edm = isinstance(self.scheduler, diffusers.EDMEulerScheduler)
        point = (x * math.sqrt(s**2 + 0.25) if edm else x).flatten(1)
        total = alpha**2 * self.stds**2 + s**2
        gap = point[:, None] - alpha * self.means.flatten(1)
        share = (self.weights.log() - point.shape[1] / 2 * total.log() - gap.square().sum(-1) / (2 * total)).softmax(-1)
        each = self.means.flatten(1) + (alpha * self.stds**2 / total)[:, None] * gap
        clean = (share[..., None] * each).sum(1)
        eps = (point - alpha * clean) / s
        kind = self.scheduler.config.get("prediction_type", "epsilon")
        if isinstance(self.scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
            out = eps - clean
        elif edm:  # F of Karras et al., solved from D = clean
            out = (clean - point * 0.25 / (s**2 + 0.25)) / (0.5 * s / math.sqrt(s**2 + 0.25))
        else:
            out = alpha * eps - s * clean if kind == "v_prediction" else eps
        return (out.reshape(x.shape),)


Mixture.__name__ = "UNet2DModel"  # what the adapter goes by


def expert(name: str, kind: str):
    weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in MIXTURES[name])
    return wrapped(means.reshape(-1, 1, 1, 1), stds, weights, kind, name)


def wrapped(means, stds, weights, kind, name):
    scheduler = SCHEDULERS[kind]()
    network = Mixture(sample_size=means.shape[-1]).given(means, stds, weights, scheduler)
    pipe = diffusers.DDPMPipeline.__new__(diffusers.DDPMPipeline)  # its __init__ would turn the scheduler into a DDIM one
    pipe.register_modules(unet=network, scheduler=scheduler)
    return from_pipe(pipe, name=name)


def exact(name: str):
    weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in MIXTURES[name])
    return gaussian_mixture(means.reshape(-1, 1, 1, 1), stds, weights, name=name)


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("sigma", [0.05, 0.9, 12.0])
def test_the_score_is_exact_for_every_output(kind: str, sigma: float):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    stds, weights = torch.tensor([0.5, 0.8, 0.3], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    y = (1 + sigma) * torch.randn(20, 1, 8, 8, generator=generator, dtype=torch.float64)
    ours = wrapped(means, stds, weights, kind, "m").score(y, sigma)
    assert torch.allclose(ours * sigma, gaussian_mixture(means, stds, weights).score(y, sigma) * sigma, atol=1e-6)


def test_all_parametrisations_give_the_same_weights_and_moves():
    """VP, flow and EDM networks of one pair of densities: increments equal to 1e-6 for the same noise."""
    generator = torch.Generator().manual_seed(0)
    mixtures = [
        (torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64), torch.tensor([0.5, 0.8], dtype=torch.float64)) for _ in range(2)
    ]
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    ends = {}
    for kind in SCHEDULERS:
        a, b = (wrapped(means, stds, weights, kind, name) for name, (means, stds) in zip("ab", mixtures, strict=True))
        out = sample(feynman_kac(a**1.5 * b**0.7), karras(20, 0.1, 20.0), particles=16, rng=Streams(0), dtype=torch.float64)
        ends[kind] = out.population
    for kind, pop in ends.items():
        assert torch.allclose(pop.x, ends["VP epsilon"].x, atol=1e-6), kind
        assert torch.allclose(pop.log_w, ends["VP epsilon"].log_w, atol=1e-6), kind


TARGETS = {
    "q^3": (lambda e: e["q"] ** 3.0, 2**0.5, False, 0.06),
    "guidance q1^-1 q2^2": (lambda e: cfg(e["q1"], e["q2"], 2.0), 1.0, True, 0.05),
    "geometric mean": (lambda e: e["q1"] ** 0.5 * e["q2"] ** 0.5, 1.0, True, 0.05),
    "product": (lambda e: e["q1"] * e["q2"], 2**0.5, True, 0.06),
}


def law(target: Target) -> tuple[Tensor, Tensor, float]:
    x = torch.linspace(-14, 14, 14001, dtype=torch.float64)
    points = x.reshape(-1, 1, 1, 1)
    log_p = sum(b * exact(e.name).log_prob(points, 0.0) for e, b in zip(target.experts, target.exponents(0.0), strict=True))
    cdf = torch.cumulative_trapezoid((log_p - log_p.max()).exp(), x)
    return x, torch.cat([cdf.new_zeros(1), cdf]) / cdf[-1], float(cdf[-1].log() + log_p.max())


def ks(x: Tensor, weights: Tensor, grid: Tensor, cdf: Tensor) -> float:
    order = x.argsort()
    x, cumulative = x[order], weights[order].cumsum(0)
    low = torch.searchsorted(grid, x).clamp(1, len(grid) - 1)
    share = ((x - grid[low - 1]) / (grid[low] - grid[low - 1])).clamp(0, 1)
    truth = torch.lerp(cdf[low - 1], cdf[low], share)
    return float(torch.maximum((cumulative - truth).abs(), (cumulative - weights[order] - truth).abs()).max())


def drawn(kind: str, name: str, correct: bool) -> Population:
    make, zeta, _, _ = TARGETS[name]
    target = Target.of(make({one: expert(one, kind) for one in MIXTURES}))
    sampler = feynman_kac(target, zeta=zeta, correct=correct)
    return sample(sampler, karras(150, 0.02, 20.0), particles=2048, rng=Streams(1), dtype=torch.float64).population


@cache
def known(name: str) -> tuple[Tensor, Tensor, float, float]:
    """The exact law, its normaliser, and how far the sum of scores alone is from it; every network of one density gives the same (see above)."""
    grid, cdf, log_z = law(Target.of(TARGETS[name][0]({one: expert(one, "VP epsilon") for one in MIXTURES})))
    naive = drawn("VP epsilon", name, correct=False)
    return grid, cdf, log_z, ks(naive.x.flatten(), naive.weights()[0], grid, cdf)


@pytest.mark.parametrize(("kind", "name"), [*(("VP epsilon", name) for name in TARGETS), ("flow", "q^3"), ("EDM", "product")])
def test_compositions_meet_their_exact_law(kind: str, name: str):
    _, _, log_z_bar, bar = TARGETS[name]
    grid, cdf, log_z, naive = known(name)
    out = drawn(kind, name, correct=True)
    if log_z_bar and name != "product":
        assert float(out.log_normalizer()) == pytest.approx(log_z, abs=0.05)
    far = ks(out.x.flatten(), out.weights()[0], grid, cdf)
    assert far < bar
    assert far < naive / (2 if log_z_bar else 1)


def test_or_of_two_pipelines_is_the_mixture():
    """Two modes each: each of four modes holds a quarter."""
    centres = {"a": [[-1.5, 1.5], [1.5, 1.5]], "b": [[-1.5, -1.5], [1.5, -1.5]]}
    std, half = torch.full((2,), 0.4, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    experts = []
    for name, where in centres.items():
        means = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
        means[:, 0, 0] = torch.tensor(where, dtype=torch.float64)
        experts.append(wrapped(means, std, half, "flow" if name == "a" else "VP v", name))
    out = sample(either(experts), karras(200, 0.02, 20.0), particles=2000, rng=Streams(0), dtype=torch.float64)
    x = out.x[0, :, 0, 0]
    quarter = torch.stack([((x[:, 0].sign() == i) & (x[:, 1].sign() == j)).double().mean() for i in (-1, 1) for j in (-1, 1)])
    assert torch.allclose(quarter, torch.full_like(quarter, 0.25), atol=0.04)
    assert float((x.abs() - 1.5).std()) == pytest.approx(0.4, abs=0.03)


def test_and_of_two_pipelines_keeps_their_densities_equal():
    a, b = expert("q1", "VP epsilon"), expert("q2", "flow")
    out = sample(both([a, b]), karras(250, 0.02, 20.0), particles=500, rng=Streams(0), dtype=torch.float64)
    log_q = out.population.aux["log_q"][0]
    assert float((log_q[:, 0] - log_q[:, 1]).abs().max()) < 1e-2
