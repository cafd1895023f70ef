"""`fit` with an optimiser that listens to the modules: the same steps as a plain loop, exact resume, never compiled."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call

from popflow.core import Streams
from popflow.core.checkpoint import load_tensors
from popflow.learn import fit
from popflow.optim import SINGD, Dense, Diagonal


class Small(nn.Module):
    """Convolution, attention, normalisation, a linear head."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 4, 3, padding=1), nn.LayerNorm(4)
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        h = self.norm(self.conv(x).mT)
        return self.head(h + self.attention(h, h, h, need_weights=False)[0])


def made() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


def batches(rng: Streams) -> torch.Tensor:
    return rng.normal("data", torch.empty(16, 2, 5))


def loss_of(net: nn.Module):
    def loss(params, x):
        return (functional_call(net, params, (x,)).squeeze(-1) - x.sum(1)).square().mean(), {}

    return loss


@pytest.mark.parametrize("structure", [Dense(), Diagonal()], ids=str)
def test_matches_a_plain_loop(structure):
    net, mine, options = made(), made(), {"lr": 0.02, "structure": structure, "interval": 3}
    result = fit(loss_of(net), dict(net.named_parameters()), batches, steps=12, rng=Streams(1), optimizer=partial(SINGD, net, **options))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    optimizer, rng = SINGD(mine, **options), Streams(1)
    for _ in range(12):
        x = batches(rng)
        optimizer.zero_grad()
        (mine(x).squeeze(-1) - x.sum(1)).square().mean().backward()
        optimizer.step()
    assert optimizer.preconditioner.refreshes == 4
    assert not torch.equal(mine.conv.weight, net.conv.weight)
    for name, parameter in mine.named_parameters():
        torch.testing.assert_close(result.params[name], parameter.detach(), rtol=1e-5, atol=1e-6)


def test_stopped_and_resumed_is_the_same_to_the_last_byte(tmp_path):
    def run(steps: int, path):
        net = made()
        make = partial(SINGD, net, lr=0.02, interval=4)
        params = dict(net.named_parameters())
        return fit(loss_of(net), params, batches, steps=steps, rng=Streams(2), optimizer=make, ema=0.9, clip_norm=1.0, checkpoint=path)

    whole = run(11, tmp_path / "whole")
    run(6, tmp_path / "parts")
    resumed = run(11, tmp_path / "parts")
    for name in whole.params:
        assert torch.equal(whole.params[name], resumed.params[name]), name
        assert torch.equal(whole.ema[name], resumed.ema[name]), name
    one, other = (load_tensors(tmp_path / name)[0] for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert any(name.startswith("opt.") and ".K." in name for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_goes_back_after_a_divergence():
    net, seen = made(), []

    def loss(params, x):
        seen.append(0)
        return loss_of(net)(params, x)[0] * (float("inf") if len(seen) == 25 else 1.0), {}

    make = partial(SINGD, net, lr=0.02, interval=2)
    with pytest.warns(Warning, match="half the learning rate"):
        result = fit(loss, dict(net.named_parameters()), batches, steps=30, rng=Streams(3), optimizer=make, log_every=10)
    assert result.rollbacks == 1
    assert all(value.isfinite().all() for value in result.params.values())


def test_compiling_is_refused_and_other_shapes_are_named():
    net = made()
    params = dict(net.named_parameters())
    with pytest.raises(RuntimeError, match=r"SINGD records through module hooks.*compile=False"):
        fit(loss_of(net), params, batches, steps=3, rng=Streams(0), optimizer=partial(SINGD, net), compile=True)
    with pytest.raises(ValueError, match=r"'head\.weight' has shape \(2, 4\), the model's has \(1, 4\)"):
        SINGD(net, [*params.items()][:-2] + [("head.weight", torch.zeros(2, 4)), ("head.bias", torch.zeros(2))])
