"""Networks: shapes, conditioning, independence of rows, sizes, and that they can learn."""

from functools import partial

import pytest
import torch
from torch.func import functional_call

from popflow.core.calculus import value_and_grad
from popflow.core.streams import Streams
from popflow.learn.fit import cosine, fit
from popflow.learn.networks import MLP, TimeEmbedding


@pytest.fixture(autouse=True)
def torch_layers_draw_their_first_parameters():
    with torch.random.fork_rng():
        yield


def lively(network):
    """The same network with every parameter at random: blocks that start as zero would hide mistakes."""
    rng = Streams(5)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.2 * rng.normal("p", p))
    return network


def example(dtype=torch.float32):
    return lively(MLP(3, width=16, classes=2)).to(dtype), Streams(1).normal("x", torch.zeros(4, 3, dtype=dtype))


def test_like_x_conditioned_on_time_and_class():
    network, x = example()
    t, cond = torch.linspace(0, 1, 4), torch.tensor([0, 1, 0, 1])
    y = network(x, t, cond)
    assert y.shape == x.shape
    torch.testing.assert_close(network(x, 0.5, cond), network(x, torch.full((4,), 0.5), cond))
    torch.testing.assert_close(network(x, t), network(x, t, torch.full((4,), 2)))
    for other in (network(x, t + 0.1, cond), network(x, t, 1 - cond), network(x, t)):
        assert (other - y).abs().amax(1).min() > 1e-4


def test_rows_are_independent_and_float64_works():
    network, x = example(torch.float64)
    y = network(x, 0.3)
    torch.testing.assert_close(network(x[1:2], 0.3), y[1:2])
    _, (gradient,) = value_and_grad(lambda x: network(x, 0.3).square().sum(1), x)
    alone = torch.func.grad(lambda x: network(x[None], 0.3).square().sum())(x[2])
    torch.testing.assert_close(gradient[2], alone)


def test_what_cannot_work_is_named():
    with pytest.raises(ValueError, match="classes=0"):
        MLP(3)(torch.zeros(2, 3), 0.0, torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="width=0, wanted at least 1"):
        MLP(2, width=0)


def test_time_embedding_tells_times_apart_and_stays_smooth():
    """Both [0, 1] and log sigma in [-7, 5]: distinct times have distinct embeddings, and no feature changes faster than 16 a unit."""
    embed = TimeEmbedding()
    t = torch.linspace(-7, 5, 600)
    features = embed(t)[:, 1:]
    distance = torch.cdist(features, features) + 10 * torch.eye(600)
    assert distance.min() > 0.1
    assert ((features[1:] - features[:-1]) / (t[1] - t[0])).abs().max() <= 16.01
    unit = embed(torch.linspace(0, 1, 11))[:, 1:]
    assert (torch.cdist(unit, unit) + 10 * torch.eye(11)).min() > 0.5


def test_it_learns_to_denoise_with_the_right_dependence_on_sigma():
    """For x ~ N(0, 1) per row (all numbers equal) plus noise sigma, the error of the best denoiser is known; a short fit comes near it."""
    torch.manual_seed(0)
    network, dim = MLP(16, width=32, depth=2), 16

    def draw(rng, rows=48):
        clean = rng.normal("clean", torch.empty(rows, 1)).expand(rows, 16)
        log_sigma = 4 * rng.uniform("sigma", (rows,), torch.float32) - 2
        return clean, clean + log_sigma.exp()[:, None] * rng.normal("noise", torch.empty(rows, 16)), log_sigma

    def loss(params, batch):
        clean, noisy, log_sigma = batch
        return (functional_call(network, params, (noisy, log_sigma)) - clean).square().mean(), {}

    adam = partial(torch.optim.Adam, lr=5e-3)
    result = fit(loss, dict(network.named_parameters()), draw, steps=200, rng=Streams(0), optimizer=adam, schedule=cosine(200, 10))
    clean, noisy, log_sigma = draw(Streams(1), 2000)
    with torch.no_grad():
        error = loss(result.params, (clean, noisy, log_sigma))[0]
        misled = loss(result.params, (clean, noisy, log_sigma.flip(0)))[0]
        sigma2 = (2 * log_sigma).exp()
        best = (sigma2 / (dim + sigma2)).mean()
    assert 0.95 * best < error < 1.1 * best
    assert misled > 1.3 * error
