"""What is captured is exact: weight gradients and Gauss-Newton blocks come back from the rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from popflow.optim import (
    Rows,
    Tap,
    categorical_cotangent,
    expand,
    find_layers,
    gaussian_cotangent,
    over_data,
    over_rows,
    per_datum,
    reduce,
    rows,
    summed,
)

F64 = torch.float64


def seeded(make, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def captured_gradient(found: Rows) -> torch.Tensor:
    """``sum_n,r g a^T``, with the column of the bias: the gradient of the weight."""
    a = torch.cat([found.a, torch.ones_like(found.a[..., :1])], -1) if found.layer.bias is not None else found.a
    return torch.einsum("bnrd,bnrp->bdp", found.g, a)


def true_gradient(layer) -> torch.Tensor:
    return torch.cat([layer.view(parameter.grad) for parameter in layer.parameters()], -1)


CONVOLUTIONS = {
    "plain 1d": (lambda: nn.Conv1d(3, 4, 3), (5, 3, 9)),
    "1d stride, padding, dilation": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2, bias=False), (4, 2, 11)),
    "1d no batch": (lambda: nn.Conv1d(2, 3, 3), (2, 7)),
    "2d groups": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (3, 4, 8, 9)),
    "2d depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (3, 4, 5, 5)),
    "2d same": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same"), (3, 2, 6, 5)),
    "2d circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (3, 2, 6, 5)),
    "2d reflect": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), (3, 2, 6, 5)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 4, 3), (5, 3, 9)),
    "transposed 1d no batch": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 7)),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=(3, 2), padding=(2, 0), output_padding=(2, 1), groups=2, dilation=(1, 3)),
        (3, 4, 5, 4),
    ),
    "transposed 2d far beyond": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=1, dilation=3, output_padding=2, bias=False), (3, 2, 4, 3)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 4, (2, 1, 3), stride=(1, 2, 1), padding=(1, 0, 1), groups=2), (2, 2, 4, 3, 5)),
    "3d": (lambda: nn.Conv3d(2, 4, (2, 1, 3), stride=(1, 2, 1), padding=(1, 0, 1), groups=2), (2, 2, 4, 3, 5)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_give_back_their_gradient(case):
    make, shape = CONVOLUTIONS[case]
    conv, x = seeded(make).double(), normal(*shape)
    z = conv(x)
    cotangent = normal(*z.shape, seed=1)
    z.backward(cotangent)
    _, [found] = rows(conv, lambda: conv(x), lambda _: cotangent)
    torch.testing.assert_close(captured_gradient(found), true_gradient(found.layer), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", ["plain 1d", "2d groups", "3d"])
def test_expand_is_the_gauss_newton_block_of_a_convolution(case):
    make, shape = CONVOLUTIONS[case]
    conv, x = seeded(make).double(), normal(*shape)
    conv.bias = None
    names = dict(conv.named_parameters())
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(conv, {"weight": w}, x))(names["weight"].detach())
    jacobian = jacobian.reshape(-1, conv.weight.numel())
    blocks = torch.zeros_like(jacobian.T @ jacobian)
    size = conv.weight.numel() // conv.groups
    for channel in range(conv.out_channels // conv.groups):
        cotangent = torch.zeros(*conv(x).shape, dtype=F64)
        cotangent[:, channel :: conv.out_channels // conv.groups] = 1
        _, [found] = rows(conv, lambda: conv(x), lambda _, c=cotangent: c)
        a, g = expand(found.a, found.g)
        for group in range(conv.groups):
            part = slice(group * size, (group + 1) * size)
            blocks[part, part] += torch.kron(g[group].T @ g[group] / len(g[group]), a[group].T @ a[group])
    torch.testing.assert_close(blocks, jacobian.T @ jacobian, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pooled", [False, True])
def test_expand_and_reduce_are_exact_for_deep_linear_networks(pooled):
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False))).double()
    x = normal(5, 6, 3)

    def forward(weights=None):
        z = net(x) if weights is None else torch.func.functional_call(net, weights, x)
        return z.sum(1) if pooled else z

    share = reduce if pooled else expand
    for index, layer in enumerate(find_layers(net)):
        name = f"{index}.weight"
        jacobian = torch.func.jacrev(lambda w, n=name: forward({n: w}))(layer.weight.detach()).reshape(-1, layer.weight.numel())
        block = 0.0
        for unit in range(3):

            def cotangent(z, u=unit):
                return nn.functional.one_hot(torch.tensor(u), 3).double().expand_as(z)

            found = next(r for r in rows(net, forward, cotangent)[1] if r.layer.name == layer.name)
            a, g = share(found.a, found.g)
            block = block + torch.kron(g[0].T @ g[0] / len(g[0]), a[0].T @ a[0])
        torch.testing.assert_close(block, jacobian.T @ jacobian, rtol=1e-9, atol=1e-9)


def test_expand_is_reduce_for_one_use():
    a, g = normal(1, 5, 1, 3), normal(1, 5, 1, 2)
    for x, y in zip(expand(a, g), reduce(a, g), strict=True):
        assert torch.equal(x, y)


def test_averaging_modes_agree_on_one_fisher_matrix():
    net, x = seeded(lambda: nn.Linear(3, 2)).double(), normal(4, 5, 3)

    def gram(loss, averaging):
        recorded = []
        tap = Tap(find_layers(net), lambda layer, a, g: recorded.append(expand(a, g)[1]))
        tap.armed = True
        loss(net(x).square()).backward()
        tap.detach()
        return averaging(4, 20) * recorded[0][0].T @ recorded[0][0]

    per_position = gram(lambda z: z.sum(), per_datum)
    torch.testing.assert_close(gram(lambda z: z.sum((1, 2)).mean(), over_data), per_position)
    torch.testing.assert_close(gram(lambda z: z.sum(2).mean(), over_rows), per_position * 4 / 20)
    torch.testing.assert_close(gram(lambda z: z.sum(), summed), per_position * 4)


ATTENTION = {
    "self": lambda **kw: nn.MultiheadAttention(4, 2, batch_first=True, **kw),
    "sequence first": lambda **kw: nn.MultiheadAttention(4, 2, **kw),
    "no bias": lambda **kw: nn.MultiheadAttention(4, 2, bias=False, batch_first=True, **kw),
}


@pytest.mark.parametrize("cross", ["self", "memory", "all different"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_projections_give_back_their_gradients(case, cross):
    attention = seeded(ATTENTION[case]).double()
    q, k, v = normal(3, 5, 4), normal(3, 5, 4, seed=1), normal(3, 5, 4, seed=2)
    inputs = {"self": (q, q, q), "memory": (q, k, k), "all different": (q, k, v)}[cross]
    z = attention(*inputs, need_weights=False)[0]
    cotangent = normal(*z.shape, seed=3)
    z.backward(cotangent)
    _, found = rows(attention, lambda: attention(*inputs, need_weights=False)[0], lambda _: cotangent)
    assert sorted(r.layer.name for r in found) == [".k", ".out_proj", ".q", ".v"]
    data = 3 if attention.batch_first else 5
    for one in found:
        assert one.a.shape[1] == data
        torch.testing.assert_close(captured_gradient(one), true_gradient(one.layer), rtol=1e-10, atol=1e-10)


def test_attention_with_other_widths_leaves_the_packed_bias_alone():
    attention = seeded(lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, batch_first=True)).double()
    q, k, v = normal(2, 3, 4), normal(2, 6, 3), normal(2, 6, 5)
    z = attention(q, k, v, need_weights=False)[0]
    z.sum().backward()
    _, found = rows(attention, lambda: attention(q, k, v, need_weights=False)[0], torch.ones_like)
    assert len(found) == 4
    for one in found:
        torch.testing.assert_close(captured_gradient(one), true_gradient(one.layer), rtol=1e-10, atol=1e-10)


def test_shared_weights_are_one_layer_with_several_calls():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight, self.second.bias = self.first.weight, self.first.bias

        def forward(self, x):
            return self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))

    net, x = seeded(Tied).double(), normal(4, 3)
    net(x).sum().backward()
    assert len(find_layers(net)) == 1
    _, found = rows(net, lambda: net(x), torch.ones_like)
    assert len(found) == 3
    torch.testing.assert_close(sum(captured_gradient(one) for one in found), true_gradient(found[0].layer))


def test_in_place_activations_checkpoints_and_graph_layers():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.act = nn.Linear(3, 4), nn.Linear(4, 2), nn.ReLU(inplace=True)
            self.mean = torch.full((6, 6), 1 / 6, dtype=F64)

        def forward(self, x):
            hidden = torch.utils.checkpoint.checkpoint(lambda y: self.act(self.one(self.mean @ y)), x, use_reentrant=False)
            return self.mean @ self.two(hidden)

    net, x, recorded = seeded(Graph).double(), normal(6, 3), []
    tap = Tap(find_layers(net), lambda layer, a, g: recorded.append(Rows(layer, a, g)))
    tap.armed = True
    net(x).square().sum().backward()
    assert len({one.layer for one in recorded}) == 2
    for layer in tap.layers:
        total = captured_gradient(next(one for one in recorded if one.layer is layer))
        torch.testing.assert_close(total, true_gradient(layer))
    tap.detach()
    net(x).sum().backward()
    assert len(recorded) == 2


def test_hooks_rest_when_not_armed_without_graphs_and_in_graphs_of_derivatives():
    net, x, recorded = seeded(lambda: nn.Linear(2, 1)), torch.ones(3, 2, requires_grad=True), []
    tap = Tap(find_layers(net), lambda *told: recorded.append(told))
    net(x).sum().backward()
    tap.armed = True
    with torch.no_grad():
        net(x)
    assert recorded == []
    slope = torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]
    assert recorded == []
    (slope.square().sum() + net(x).sum()).backward()
    assert len(recorded) == 1


def test_functional_rows_leave_gradients_alone_and_need_no_training_mode():
    net = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))).double().eval()
    x = normal(5, 2)
    _, found = rows(net, lambda: net(x), torch.ones_like)
    assert all(parameter.grad is None for parameter in net.parameters())
    jacobian = torch.func.vmap(torch.func.grad(lambda w, y: torch.func.functional_call(net, {"0.weight": w}, y)[0]), (None, 0))(
        net[0].weight.detach(), x
    )
    torch.testing.assert_close(torch.einsum("nd,np->ndp", found[0].g[0, :, 0], found[0].a[0, :, 0]), jacobian)
    assert not any(module._forward_hooks for module in net.modules())


def test_sampled_cotangents_have_the_right_gram_matrix():
    rng = torch.Generator().manual_seed(0)
    logits = torch.tensor([[1.0, 0.0, -1.0]]).expand(40000, 3)
    p = logits[0].softmax(-1)
    c = categorical_cotangent(logits, rng)
    assert (c.T @ c / len(c) - (torch.diag(p) - torch.outer(p, p))).abs().max() < 0.01
    c = gaussian_cotangent(logits, rng)
    assert (c.T @ c / len(c) - torch.eye(3)).abs().max() < 0.03
