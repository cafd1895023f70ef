"""Experts: every output convention of one analytic mixture is the same expert; batching and chunks change nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from popflow.compose import (
    DDPM,
    EDM,
    VE,
    VP,
    Expert,
    RectifiedFlow,
    alphas_cumprod,
    epsilon_output,
    flow_output,
    from_density,
    from_edm,
    from_network,
    gaussian_mixture,
    kernel_mixture,
    linear_betas,
    score_output,
    scores,
    v_output,
    x0_output,
)
from popflow.compose.experts import Output
from popflow.compose.schedule import Schedule
from popflow.core import Streams

MEANS = torch.tensor([[-1.0, 0.5, 2.0], [1.5, 0.0, -1.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
STDS = torch.tensor([0.5, 0.8, 0.3], dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
TRUTH = gaussian_mixture(MEANS, STDS, WEIGHTS)
TABLE = DDPM(alphas_cumprod(linear_betas(1000)))


def points(n: int = 40, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def posterior_mean(x: Tensor, alpha: float, s: float) -> Tensor:
    """``E[x_0 | x]`` of the mixture noised to ``x = alpha x_0 + s eps``, component by component: the independent reference."""
    total = alpha**2 * STDS**2 + s**2
    gap = x[:, None] - alpha * MEANS
    share = (WEIGHTS.log() - 1.5 * total.log() - gap.square().sum(-1) / (2 * total)).softmax(-1)
    each = MEANS + (alpha * STDS**2 / total)[:, None] * gap
    return (share[..., None] * each).sum(1)


def predictor(schedule: Schedule, output: Output) -> Callable[[Tensor, Tensor], Tensor]:
    """What a perfect network of one convention would return: it sees x and time, no sigma."""

    def network(x: Tensor, time: Tensor) -> Tensor:
        assert time.shape == (len(x),)
        sigma = float(schedule.sigma(time[0]))
        alpha = schedule.alpha(sigma)
        s = alpha * sigma
        x0 = posterior_mean(x, alpha, s)
        eps = (x - alpha * x0) / s
        returned = {
            epsilon_output: eps,
            x0_output: x0,
            v_output: alpha * eps - s * x0,
            flow_output: eps - x0,
            score_output: -eps / s,
        }
        return returned[output]

    return network


@pytest.mark.parametrize("sigma", [0.05, 0.9, 12.0])
@pytest.mark.parametrize("output", [epsilon_output, x0_output, v_output, flow_output, score_output], ids=lambda f: f.__name__)
@pytest.mark.parametrize("schedule", [VP(), VE(), EDM(), RectifiedFlow(1000.0), TABLE], ids=lambda s: type(s).__name__)
def test_every_output_convention_is_the_same_expert(schedule: Schedule, output: Output, sigma: float):
    expert = from_network(predictor(schedule, output), schedule, (3,), output=output)
    y = points() + sigma
    assert torch.allclose(scores([expert], y, sigma) * -sigma, TRUTH.score(y, sigma)[None] * -sigma, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.05, 0.9, 12.0])
def test_edm_preconditioning_is_the_same_expert(sigma: float):
    sd = 0.7

    def raw(x: Tensor, time: Tensor) -> Tensor:
        """F of Karras et al., table 1, solved from D = posterior mean."""
        level = math.exp(4 * float(time[0]))
        total = level**2 + sd**2
        y = x * math.sqrt(total)
        return (posterior_mean(y, 1.0, level) - y * sd**2 / total) / (level * sd / math.sqrt(total))

    y = points() + sigma
    assert torch.allclose(from_edm(raw, (3,), sigma_data=sd).score(y, sigma), TRUTH.score(y, sigma), atol=1e-6 / sigma)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 5.0])
def test_mixture_density_and_score_against_torch(sigma: float):
    width = (STDS**2 + sigma**2).sqrt()
    parts = torch.distributions.Independent(torch.distributions.Normal(MEANS, width[:, None].expand(3, 3)), 1)
    law = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(WEIGHTS), parts)
    y = points().requires_grad_()
    log_prob = law.log_prob(y)
    (slope,) = torch.autograd.grad(log_prob.sum(), y)
    assert TRUTH.log_prob is not None
    assert torch.allclose(TRUTH.log_prob(y.detach(), sigma), log_prob, atol=1e-10)
    if sigma:
        assert torch.allclose(TRUTH.score(y.detach(), sigma), slope, atol=1e-9)


def test_mixture_far_from_the_origin_keeps_its_digits():
    """Means of size 1000 in float32: squares are taken about the centre of the means."""
    near = gaussian_mixture(MEANS.float(), 0.5)
    far = gaussian_mixture(MEANS.float() + 1000, 0.5)
    y = torch.round(points().float() * 64) / 64  # exactly representable after the shift
    assert torch.allclose(far.score(y + 1000, 0.1), near.score(y, 0.1), rtol=1e-3, atol=1e-3)


def test_mixture_components_of_no_weight_do_not_matter():
    some = gaussian_mixture(MEANS, STDS, torch.tensor([0.4, 0.6, 0.0]))
    less = gaussian_mixture(MEANS[:2], STDS[:2], torch.tensor([2.0, 3.0]))
    assert torch.allclose(some.score(points(), 0.5), less.score(points(), 0.5), atol=1e-12)


def test_kernel_mixture_is_the_mixture_of_its_points():
    data = points(7)
    a, b = kernel_mixture(data, 0.3), gaussian_mixture(data, 0.3)
    assert torch.equal(a.score(points(), 0.4), b.score(points(), 0.4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_mixture(MEANS, -0.1), "standard deviations >= 0"),
        (lambda: gaussian_mixture(MEANS, 1.0, torch.tensor([1.0, -1.0, 1.0])), "3 non-negative numbers"),
        (lambda: gaussian_mixture(MEANS, 1.0, torch.zeros(3)), "not all zero"),
        (lambda: gaussian_mixture(MEANS, 1.0, torch.ones(2)), "3 non-negative numbers"),
        (lambda: gaussian_mixture(torch.tensor([-1.0, 1.0]), 1.0), r"means has shape \(2,\), wanted \[K, \*event\]"),
        (lambda: gaussian_mixture(torch.zeros(0, 2), 1.0), r"means has shape \(0, 2\), wanted \[K, \*event\]"),
        (lambda: gaussian_mixture(MEANS, torch.ones(2)), r"std has shape \(2,\), wanted one number, or one for each of 3"),
        (lambda: kernel_mixture(MEANS, 0.0), "positive kernel width"),
    ],
)
def test_mixtures_refuse_bad_parameters(call: Callable[[], Expert], message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_from_density_is_the_mixture():
    assert TRUTH.log_prob is not None
    other = from_density(TRUTH.log_prob, (3,))
    for sigma in (0.02, 1.0, 15.0):
        assert torch.allclose(other.score(points(), sigma), TRUTH.score(points(), sigma), atol=1e-9, rtol=1e-9)


def test_from_density_can_be_differentiated_forwards():
    """The divergence of its score, by Jacobian-vector products, is that of the mixture's closed form."""
    assert TRUTH.log_prob is not None
    other, y = from_density(TRUTH.log_prob, (3,)), points(5)
    for v in torch.eye(3, dtype=torch.float64):
        a, b = (torch.func.jvp(lambda y, e=e: e.score(y, 0.7), (y,), (v.expand_as(y).contiguous(),))[1] for e in (other, TRUTH))
        assert b.abs().max() > 0.1
        assert torch.allclose(a, b, atol=1e-9)


class Net(nn.Module):
    """A small network with a condition, a buffer, and a count of its calls and rows."""

    def __init__(self, seed: int, activation: Callable[[Tensor], Tensor] = torch.tanh):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second, self.label = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(2, 16)
        self.register_buffer("shift", torch.full((1,), float(seed)))
        self.activation, self.calls, self.rows = activation, 0, []
        self.double()

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None) -> Tensor:
        self.calls, self.rows = self.calls + 1, [*self.rows, len(x)]
        hidden = self.first(torch.cat([x, time[:, None]], -1))
        if cond is not None:
            hidden = hidden + self.label(cond)
        return self.second(self.activation(hidden)) + self.shift


A, B, C = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]))


def test_shared_weights_are_one_call_and_equal_single_calls():
    network = Net(0)
    base = from_network(network, VP(), (3,), name="net")
    experts = [base.given(c, f"net-{i}") for i, c in enumerate((A, B, C))]
    y = points(5).reshape(1, 5, 3)
    single = torch.stack([e.score(y, 0.8) for e in experts])
    assert not torch.allclose(single[0], single[1])
    network.calls, network.rows = 0, []
    together = scores(experts, y, 0.8)
    assert (network.calls, network.rows) == (1, [15])
    assert together.shape == (3, 1, 5, 3)
    assert torch.allclose(together, single, atol=1e-12)


def test_the_same_unconditional_model_twice_is_evaluated_once():
    network = Net(0)
    experts = [from_network(network, VP(), (3,), name="net")] * 2
    y = points(5)
    together = scores([experts[0], TRUTH, replace(experts[1], name="twin")], y, 0.8)
    assert (network.calls, network.rows) == (1, [5])
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1], TRUTH.score(y, 0.8))


def test_shared_weights_between_other_experts_keep_their_order():
    network = Net(0)
    base = from_network(network, VP(), (3,))
    experts = [base.given(A), TRUTH, base.given(B)]
    network.calls = 0
    together = scores(experts, points(5), 0.8)
    assert network.calls == 1
    assert torch.allclose(together, torch.stack([e.score(points(5), 0.8) for e in experts]), atol=1e-12)


def test_sharing_a_model_with_and_without_condition_is_refused():
    base = from_network(Net(0), VP(), (3,), name="net")
    with pytest.raises(ValueError, match=r"\['net', 'cat'\] share one model but some have no condition"):
        scores([base, base.given(A, "cat")], points(5), 0.8)


@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
def test_chunk_size_changes_nothing(chunk: int):
    network, y = Net(0), points(23)
    parts = from_network(network, VP(), (3,), chunk=chunk)
    by_parts = parts.score(y, 0.8), scores([parts.given(A), parts.given(B)], y, 0.8)
    assert max(network.rows) == min(chunk, 46)
    assert network.calls == math.ceil(23 / chunk) + math.ceil(46 / chunk)
    whole = from_network(network, VP(), (3,))
    assert torch.allclose(by_parts[0], whole.score(y, 0.8), atol=1e-12)
    assert torch.allclose(by_parts[1], scores([whole.given(A), whole.given(B)], y, 0.8), atol=1e-12)
    mixture = gaussian_mixture(MEANS, STDS, WEIGHTS, chunk=chunk)
    assert torch.allclose(mixture.score(y, 0.8), TRUTH.score(y, 0.8), atol=1e-12)


class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(torch.cat([x, t[:, None]], 1))


def test_networks_are_put_into_evaluation():
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3).double()).train()
    expert = from_network(lambda x, t: network(x), VE(), (3,))
    from_network(network, VE(), (3,))
    assert not network.training
    assert torch.equal(expert.score(points(), 1.0), expert.score(points(), 1.0))


@pytest.mark.parametrize("own", [torch.float32, torch.float16])
def test_a_network_is_evaluated_in_its_own_precision(own: torch.dtype):
    """Samples in float64 and a network in single or half precision: the score is in float64 and close to the network's."""
    with Streams(0).layers():
        network = Timed()
    y = points(5)
    for wrapped in (
        lambda net: from_network(net, VP(), (3,)),
        lambda net: from_edm(net, (3,)),
    ):
        exact = wrapped(network.double()).score(y, 0.7)
        seen = wrapped(copy.deepcopy(network).to(own)).score(y, 0.7)
        assert seen.dtype == torch.float64
        assert torch.allclose(seen, exact, atol=1e-5 if own == torch.float32 else 2e-2)


def test_a_network_that_returns_no_tensor_is_told_so():
    wrapped = from_network(lambda x, t: (x,), VP(), (3,), name="tuple")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="the network returned a tuple, wanted a tensor"):
        wrapped.score(points(5), 1.0)
