"""SINGD as an optimiser: exact steps, invariances, accumulation, state, precision, scalers, processes, modules, and errors."""

from __future__ import annotations

import copy
import io
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import popflow.optim
from popflow.optim import (
    SINGD,
    Auto,
    BlockDiagonal,
    Dense,
    Diagonal,
    Hierarchical,
    LowerToeplitz,
    UpperTriangular,
    expand,
    gaussian_cotangent,
    over_data,
    reduce,
)

F64 = torch.float64
SOURCE = str(Path(popflow.optim.__file__).parents[2])
NATURAL = {"update_rms": None, "kl_clip": None}


def seeded(make, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def normal(*shape: int, seed: int = 0, dtype=F64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mlp(dtype=F64, bias: bool = True) -> nn.Module:
    return seeded(
        lambda: nn.Sequential(nn.Linear(4, 6, bias=bias), nn.Tanh(), nn.Linear(6, 6, bias=bias), nn.Tanh(), nn.Linear(6, 2, bias=bias))
    ).to(dtype)


def train(net, optimizer, steps: int, start: int = 0, batch: int = 8) -> list[float]:
    losses = []
    dtype = next(net.parameters()).dtype
    for i in range(start, start + steps):
        x = normal(batch, 4, seed=i).to(dtype)
        optimizer.zero_grad()
        loss = (net(x) - x[:, :2].sin()).square().sum(1).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(net) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def test_one_step_solves_least_squares():
    x, w = normal(40, 5), normal(3, 5, seed=1)
    y = x @ w.T + normal(40, 3, seed=2)
    net = seeded(lambda: nn.Linear(5, 3, bias=False)).double()
    optimizer = SINGD(net, lr=1.0, momentum=0.0, interval=1, **NATURAL)
    values, vectors = torch.linalg.eigh(x.T @ x / 40 + 1e-12 * torch.eye(5, dtype=F64))
    optimizer.preconditioner.batches[0].k.value = ((vectors / values.sqrt())[None],)
    optimizer.detach()
    ((net(x) - y).square().sum(1) / 2).mean().backward()
    optimizer.step()
    torch.testing.assert_close(net.weight.detach(), torch.linalg.lstsq(x, y).solution.T, rtol=1e-8, atol=1e-8)


def test_wellknown_update_by_hand():
    """Two steps of dense SINGD on one layer, written out with matrices."""
    net = seeded(lambda: nn.Linear(3, 2)).double()
    w = torch.cat([net.weight, net.bias[:, None]], 1).detach().clone()
    options = {"lr": 0.1, "momentum": 0.9, "damping": 0.02, "lr_cov": 0.05, "alpha1": 0.5, "weight_decay": 0.3}
    optimizer = SINGD(net, interval=1, warm=False, **options, **NATURAL)
    k, c = torch.eye(4, dtype=F64), torch.eye(2, dtype=F64)
    m_k, m_c, m_w = torch.zeros_like(k), torch.zeros_like(c), torch.zeros_like(w)
    for step in range(2):
        x = normal(7, 3, seed=step) / 10
        optimizer.zero_grad()
        net(x).square().sum(1).mean().backward()
        optimizer.step()
        a = torch.cat([x, torch.ones(7, 1, dtype=F64)], 1)
        g = 2 * a @ w.T
        h_k, h_c = k.T @ (a.T @ a / 7) @ k, c.T @ (g.T @ g / 7) @ c
        m_k_new = 0.5 * m_k + (h_c.trace() / 2 * h_k + 0.02 * (c.T @ c).trace() / 2 * k.T @ k - torch.eye(4)) / 2
        m_c_new = 0.5 * m_c + (h_k.trace() / 4 * h_c + 0.02 * (k.T @ k).trace() / 4 * c.T @ c - torch.eye(2)) / 2
        m_k, m_c = m_k_new, m_c_new
        k, c = k @ (torch.eye(4) - 0.05 * m_k), c @ (torch.eye(2) - 0.05 * m_c)
        m_w = 0.9 * m_w + c @ c.T @ (g.T @ a / 7) @ k @ k.T
        w = (1 - 0.1 * 0.3) * w - 0.1 * m_w
    torch.testing.assert_close(torch.cat([net.weight, net.bias[:, None]], 1).detach(), w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("structure", "signed", "same"), [(Dense(), False, True), (Diagonal(), True, True), (Diagonal(), False, False)])
def test_rotation_of_the_inputs(structure, signed, same):
    q = torch.linalg.qr(normal(4, 4, seed=9))[0]
    if signed:
        q = torch.eye(4, dtype=F64)[[2, 0, 3, 1]] * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=F64)
    nets = [mlp(), mlp()]
    nets[1][0].weight.data = nets[0][0].weight.data @ q
    for net, turn in zip(nets, (torch.eye(4, dtype=F64), q), strict=True):
        # The cap acts: its bound of a dense factor is one of norm and trace, which a rotation leaves alone.
        optimizer = SINGD(net, lr=0.05, structure=structure, interval=1, warm=False, damping=0.3, alpha1=0.5, **NATURAL | {"kl_clip": 1e-2})
        capped = 0
        for i in range(50):
            x = normal(16, 4, seed=i)
            optimizer.zero_grad()
            (4 * (net(x @ turn) - x[:, :2].sin())).square().sum(1).mean().backward()
            optimizer.step()
            capped += sum(
                float(side.structure.bound(side.momentum, side.n)) > 1 for b in optimizer.preconditioner.batches for side in (b.k, b.c)
            )
        assert capped > 5
    gap = (nets[1][0].weight - nets[0][0].weight @ q).norm().item()
    assert gap < 1e-9 if same else gap > 1e-5, gap


@pytest.mark.parametrize(("structure", "adaptive"), [(Dense(), True), (Diagonal(), False), (Hierarchical(2, 1), False)], ids=str)
def test_accumulation_is_the_large_batch(adaptive, structure):
    results = []
    for parts in (1, 4):
        net = mlp()
        optimizer = SINGD(net, lr=0.05, structure=structure, interval=2, adaptive=adaptive, kl_clip=1e-2, update_rms=None)
        for i in range(6):
            x = normal(16, 4, seed=i)
            optimizer.zero_grad()
            for piece in x.chunk(parts):
                ((net(piece) - piece[:, :2]).square().sum(1).mean() / parts).backward()
            optimizer.step()
        results.append(torch.cat([weights(net), *(t.flatten() for b in optimizer.preconditioner.batches for _, t in b.stored())]))
    assert (results[0] - results[1]).abs().max() < 1e-10


def test_a_weight_used_twice_is_not_twice_the_data():
    """The same layer applied to two halves of a sequence equals one call on the whole, for expand."""
    results = []
    for split in (False, True):
        net = seeded(lambda: nn.Linear(3, 2)).double()
        optimizer = SINGD(net, lr=0.1, interval=1, adaptive=False)
        for i in range(3):
            x = normal(5, 4, 3, seed=i)
            optimizer.zero_grad()
            z = torch.cat([net(x[:, :2]), net(x[:, 2:])], 1) if split else net(x)
            z.square().sum((1, 2)).mean().backward()
            optimizer.step()
        results.append(weights(net))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("structure", [Dense(), BlockDiagonal(4), LowerToeplitz(), Hierarchical(2, 2)], ids=str)
def test_equal_shapes_as_one_batch(structure):
    """Layers of equal shape are one batch; with one parameter group each they are not. Same numbers."""
    results = []
    for apart in (False, True):
        net = seeded(lambda: nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))).double()
        params = [{"params": list(layer.parameters())} for layer in net] if apart else None
        optimizer = SINGD(net, params, lr=0.02, structure=structure, interval=2)
        assert len(optimizer.preconditioner.batches) == (3 if apart else 1)
        for i in range(6):
            x = normal(8, 4, seed=i)
            optimizer.zero_grad()
            (net(x) - x.sin()).square().sum(1).mean().backward()
            optimizer.step()
        results.append(weights(net))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)


STRUCTURES = [Dense(), Diagonal(), BlockDiagonal(4), Hierarchical(2, 1), LowerToeplitz(), (UpperTriangular(), Diagonal())]


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_it_learns(structure):
    net = mlp()
    losses = train(net, SINGD(net, lr=0.05, structure=structure, interval=2), 60, batch=64)
    assert sum(losses[-5:]) < 0.1 * sum(losses[:5])


@pytest.mark.parametrize(("structure", "dtype"), [(Dense(), torch.float32), (Hierarchical(2, 1), torch.bfloat16)], ids=str)
def test_state_goes_through_a_file_and_continues_bit_for_bit(structure, dtype):
    def made():
        net = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2))).to(dtype)
        return net, SINGD(net, lr=0.02, structure=structure, interval=3, seed=5)

    net, optimizer = made()
    train(net, optimizer, 5)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(net, optimizer, 7, start=5)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    keys = copy.deepcopy({name: sorted(entry) for name, entry in saved["optimizer"]["state"].items()})
    for steps in (2, 0):  # into one that has run and into a new one; the given dictionary is not used up
        other, loaded = made()
        train(other, loaded, steps)
        other.load_state_dict(saved["net"])
        loaded.load_state_dict(saved["optimizer"])
        train(other, loaded, 7, start=5)
        assert torch.equal(weights(net), weights(other))
    assert keys == {name: sorted(entry) for name, entry in saved["optimizer"]["state"].items()}
    assert saved["optimizer"]["param_groups"][0]["param_names"] == [name for name, _ in net.named_parameters()]
    assert {number for number, entry in saved["optimizer"]["state"].items() if "K.0" in entry} == {0, 4}
    assert all(isinstance(value, torch.Tensor) for entry in saved["optimizer"]["state"].values() for value in entry.values())


def test_state_of_other_structures_is_refused():
    net = mlp()
    optimizer = SINGD(net, structure=Dense())
    train(net, optimizer, 2)
    with pytest.raises(ValueError, match=r"'K\.0' of '0\.weight'"):
        SINGD(mlp(), structure=Diagonal()).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="other parameters"):
        SINGD(mlp(bias=False)).load_state_dict(optimizer.state_dict())


def test_a_state_that_does_not_fit_changes_nothing():
    net = mlp()
    optimizer = SINGD(net, structure=Dense())
    train(net, optimizer, 2)
    saved = optimizer.state_dict()
    broken = {name: dict(entry) for name, entry in saved["state"].items()}
    last = [name for name, entry in broken.items() if "C.0" in entry][-1]
    broken[last]["C.0"] = broken[last]["C.0"][:, :-1]
    for entry in broken.values():
        entry.update({key: value + 1 for key, value in entry.items() if key.startswith(("K.", "momentum"))})
    with pytest.raises(ValueError, match="wanted shape"):
        optimizer.load_state_dict({"state": broken, "param_groups": saved["param_groups"]})
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(value, after[name][key]) for name, entry in saved["state"].items() for key, value in entry.items())


def test_deep_copies_go_their_own_way():
    net = mlp()
    optimizer = SINGD(net, lr=0.02, interval=2)
    train(net, optimizer, 3)
    other, copied = copy.deepcopy((net, optimizer))
    average = copy.deepcopy(net)
    before = weights(net)
    ahead = train(other, copied, 4, start=3)
    assert torch.equal(weights(net), before)
    average(normal(3, 4)).sum().backward()  # a copy of the model alone is a stranger
    assert all(record.h_k is None for batch in optimizer.preconditioner.batches for record in batch.recorded)
    assert train(net, optimizer, 4, start=3) == ahead
    assert torch.equal(weights(net), weights(other))


def test_the_optimiser_follows_its_model_to_another_dtype():
    net = mlp(torch.float32)
    optimizer = SINGD(net, lr=0.02, interval=2)
    train(net, optimizer, 3)
    net.double()
    train(net, optimizer, 3, start=3)
    assert all(t.dtype == F64 for batch in optimizer.preconditioner.batches for _, t in batch.stored())


def test_groups_schedules_closures_clipping_and_decay():
    net = mlp()
    groups = [
        {"params": list(net[:2].parameters()), "lr": 0.0},
        {"params": list(net[2:].parameters()), "weight_decay": 0.1, "structure": Diagonal()},
    ]
    optimizer = SINGD(net, groups, lr=0.02, interval=1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    first = net[0].weight.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = net(normal(8, 4)).square().sum(1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        return loss

    losses = []
    for _ in range(4):
        losses.append(optimizer.step(closure).item())
        schedule.step()
    assert losses[-1] < losses[0]
    assert torch.equal(first, net[0].weight.detach())
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.0)
    assert [str(line.inputs) for line in optimizer.report()] == ["Dense()", "Diagonal()", "Diagonal()"]


def test_kl_clip_is_the_length_of_the_step():
    """``lr^2 <dW, grad W> = kl_clip`` for the clipped ``dW``; with ``q = <dW, grad W>`` unclipped, ``(change . grad)^2 = kl_clip q``."""
    along = []
    for lr, clip in ((1e-3, None), (10.0, 1e-4)):
        net = mlp()
        optimizer = SINGD(net, lr=lr, momentum=0.0, interval=1, update_rms=None, kl_clip=clip)
        before, x = weights(net), normal(8, 4)
        net(x).square().sum().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
        optimizer.step()
        along.append(float((before - weights(net)) @ gradient))
    assert along[1] ** 2 == pytest.approx(1e-4 * along[0] / 1e-3, rel=1e-6)


def test_update_rms_is_the_size_of_the_step():
    net = mlp()
    optimizer = SINGD(net, lr=0.01, momentum=0.0, update_rms=0.2)
    before = net[2].weight.detach().clone(), net[2].bias.detach().clone()
    train(net, optimizer, 1)
    change = torch.cat([(a - b).flatten() for a, b in zip(before, net[2].parameters(), strict=True)])
    assert change.square().mean().sqrt().item() == pytest.approx(0.01 * 0.2, rel=1e-9)


@pytest.mark.parametrize("clip", [False, True])
def test_loss_scaling_changes_nothing_and_overflow_skips(clip):
    results = []
    for scale in (None, 2.0**10):
        net = mlp(torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None, growth_interval=3)
        optimizer = SINGD(net, lr=0.02, interval=2, adaptive=False, grad_scaler=scaler if scale and clip else None)
        for i in range(7):
            x = normal(8, 4, seed=i, dtype=torch.float32)
            optimizer.zero_grad()
            scaler.scale(net(x).square().sum(1).mean()).backward()
            if clip:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        results.append(weights(net))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)
    before, steps = weights(net), optimizer.preconditioner.steps
    net(torch.full((2, 4), math.inf)).sum().mul(scaler.get_scale()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(before, weights(net))
    assert optimizer.preconditioner.steps == steps
    assert all(record.h_k is None for batch in optimizer.preconditioner.batches for record in batch.recorded)


def test_unscaled_gradients_without_the_scaler_are_refused():
    net = mlp(torch.float32)
    optimizer, scaler = SINGD(net), torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(net(torch.ones(2, 4)).sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="grad_scaler=scaler"):
        scaler.step(optimizer)


@pytest.mark.parametrize("structure", [Dense(), Diagonal()], ids=str)
def test_bfloat16_stays_near_float32(structure):
    final = []
    for dtype in (torch.float32, torch.bfloat16):
        net = mlp(dtype)
        losses = train(net, SINGD(net, lr=0.01, structure=structure, interval=2), 80, batch=64)
        assert all(map(math.isfinite, losses))
        final.append(sum(losses[-10:]) / 10)
    assert final[1] < final[0] + 0.05


def test_factors_in_bfloat16_where_asked():
    net = mlp(torch.bfloat16)
    optimizer = SINGD(net, lr=0.05, interval=1, factor_dtype=torch.bfloat16)
    losses = train(net, optimizer, 60, batch=64)
    assert optimizer.preconditioner.batches[0].k.value[0].dtype == torch.bfloat16
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_half_of_the_memory_of_adamw():
    net = seeded(lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)))
    count = sum(parameter.numel() for parameter in net.parameters())
    for structure, most in ((Diagonal(), 1.05), (LowerToeplitz(), 1.05), (BlockDiagonal(30), 1.75), (Auto(0.55), 1.1), (Auto(1.0), 2.0)):
        optimizer = SINGD(net, structure=structure)
        net(torch.ones(4, 64)).sum().backward()
        optimizer.step()
        assert sum(line.state for line in optimizer.report()) / count <= most
        optimizer.detach()


class Everything(nn.Module):
    """One of each."""

    def __init__(self):
        super().__init__()
        self.embed, self.encoder = nn.Embedding(7, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.conv, self.norm = nn.Conv1d(8, 8, 3, padding=1, groups=2), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head, self.frozen, self.unused = nn.Linear(8, 7, bias=False), nn.Linear(8, 8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.head.weight = self.embed.weight
        self.frozen.requires_grad_(False)

    def forward(self, tokens):
        x = self.encoder(self.embed(tokens))
        x = x + self.conv(x.mT).mT * self.scale
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(self.frozen(x) + self.frozen(self.frozen(x)))


@pytest.mark.parametrize(
    ("structure", "share"),
    [("auto", expand), (Diagonal(), reduce), (LowerToeplitz(), expand)],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_every_module_trains(structure, share):
    net = seeded(Everything)
    optimizer = SINGD(net, lr=2e-2, structure=structure, interval=2, sharing=share, fallback_lr=5e-3)
    tokens = torch.randint(0, 7, (6, 5), generator=torch.Generator().manual_seed(0))
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    still = {name for name, parameter in net.named_parameters() if torch.equal(before[name], parameter)}
    assert still == {"frozen.weight", "frozen.bias", "unused.weight", "unused.bias"}
    how = {line.name: line.inputs is not None for line in optimizer.report()}
    assert how["scale"] is how["norm.weight"] is False
    assert how["attention.q"] is how["encoder.self_attn.out_proj"] is how["encoder.linear1"] is how["conv"] is how["head"] is True


def test_toggled_gradients_empty_batches_and_one_datum():
    net = mlp()
    optimizer = SINGD(net, lr=0.01, interval=1)
    train(net, optimizer, 2)
    net[0].requires_grad_(False)
    optimizer.zero_grad()
    before = net[0].weight.detach().clone()
    train(net, optimizer, 2)
    assert torch.equal(before, net[0].weight)
    net[0].requires_grad_(True)
    train(net, optimizer, 2, batch=1)
    assert not torch.equal(before, net[0].weight)
    optimizer.zero_grad()
    (net(torch.zeros(0, 4, dtype=F64)).sum() + net(normal(3, 4)).sum()).backward()
    optimizer.step()
    assert torch.isfinite(weights(net)).all()


def test_hooks_record_on_interval_steps_only():
    net = mlp()
    optimizer = SINGD(net, interval=lambda step: 1 if step < 3 else 4)
    due = []
    for i in range(12):
        due.append(optimizer.due)
        train(net, optimizer, 1, start=i)
    assert due == [True, True, True, False, False, False, True, False, False, False, True, False]
    assert optimizer.preconditioner.refreshes == sum(due)
    optimizer.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    train(net, optimizer, 3)


def test_observed_cotangents_are_the_curvature():
    """With unit cotangents on a linear model the output factor solves a curvature of one, whatever the loss is."""
    net = seeded(lambda: nn.Linear(3, 1, bias=False)).double()
    optimizer = SINGD(net, lr=0.0, interval=1, listen=False, adaptive=False, damping=1e-12, lr_cov=0.5)
    x = normal(50, 3)
    for _ in range(60):
        optimizer.zero_grad()
        z = net(x)
        optimizer.observe(z, torch.ones_like(z))
        (1000 * z).square().mean().backward()
        optimizer.step()
    k, c = optimizer.preconditioner.batches[0].k.value[0][0], optimizer.preconditioner.batches[0].c.value[0][0]
    torch.testing.assert_close(k @ k.T, torch.linalg.inv(x.T @ x / 50), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(c @ c.T, torch.ones(1, 1, dtype=F64), rtol=1e-8, atol=1e-8)
    with pytest.raises(RuntimeError, match="listen=False"):
        SINGD(mlp()).observe(z, z)


def test_sampled_fisher_keeps_its_size_where_the_empirical_one_vanishes():
    rng, x = torch.Generator().manual_seed(0), normal(256, 3)
    net = seeded(lambda: nn.Linear(3, 2)).double()
    optimizer = SINGD(net, lr=0.0, interval=1, listen=False, adaptive=False, lr_cov=0.2, damping=1e-6)
    for _ in range(80):
        optimizer.zero_grad()
        z = net(x)
        optimizer.observe(z, gaussian_cotangent(z, rng))
        (z - z.detach()).square().mean().backward()
        optimizer.step()
    c = optimizer.preconditioner.batches[0].c.value[0][0]
    assert (c @ c.T - torch.eye(2)).abs().max() < 0.2


def test_rows_can_be_thinned_without_bias():
    net = seeded(lambda: nn.Linear(3, 2)).double()
    optimizer = SINGD(net, interval=1, max_rows=16, averaging=over_data)
    net(normal(4, 16, 3)).square().sum((1, 2)).mean().backward()
    thin = optimizer.preconditioner.batches[0].recorded[0]
    optimizer.detach()
    other = SINGD(net, interval=1)
    net(normal(4, 16, 3)).square().sum((1, 2)).mean().backward()
    full = other.preconditioner.batches[0].recorded[0]
    assert thin.rows == full.rows == 64
    assert thin.data == full.data == 4
    assert thin.h_k[0][0].trace() == pytest.approx(full.h_k[0][0].trace().item(), rel=0.5)
    assert thin.h_k[0][0][3, 3] == pytest.approx(full.h_k[0][0][3, 3].item())


def test_rows_of_an_image_are_taken_from_all_of_its_columns():
    net = seeded(lambda: nn.Conv2d(8, 2, 1, bias=False))
    x = torch.eye(8)[None, :, None].expand(4, 8, 8, 8)  # channel c is one in column c alone: U = I / 8
    optimizer = SINGD(net, structure=Diagonal(), interval=1, max_rows=16, damping=1e-12)
    net(x).square().sum((1, 2, 3)).mean().backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.preconditioner.batches[0].k.value[0], torch.full((1, 8), 8**0.5), rtol=1e-3, atol=0.0)


class Attending(nn.Module):
    """Attention inside of torch's own layer, and bare."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = self.encoder(x.unflatten(0, (2, -1)))
        return self.attention(x, x, x)[0].flatten(0, 1)


@pytest.mark.parametrize("made", [mlp, lambda: seeded(Attending).double()], ids=["linear", "attention"])
def test_compiled_models_are_recorded(made):
    results = []
    for wrap in (lambda net: net, lambda net: torch.compile(net, backend="eager")):
        net = made()
        optimizer = SINGD(net, lr=0.02, interval=2)
        run = wrap(net)
        for i in range(5):
            x = normal(8, 4, seed=i)
            optimizer.zero_grad()
            run(x).square().sum(1).mean().backward()
            optimizer.step()
        results.append(weights(net))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


PROCESSES = """
import os, sys, torch
from torch import nn
from popflow.optim import SINGD, Dense, Diagonal, Hierarchical

rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
if world > 1:
    torch.distributed.init_process_group("gloo")
    net = nn.parallel.DistributedDataParallel(net)
found = []
for structure in (Dense(), Diagonal(), Hierarchical(2, 1)):
    optimizer = SINGD(net, lr=0.02, structure=structure, interval=2)
    for i in range(5):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(i)).double()[rank::world]
        optimizer.zero_grad()
        net(x).square().sum(1).mean().backward()
        optimizer.step()
    optimizer.detach()
    found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
if rank == 0:
    torch.save(torch.stack(found), sys.argv[1])
if world > 1:
    torch.distributed.destroy_process_group()
"""


def test_two_processes_are_one(tmp_path, monkeypatch):
    environment = os.environ | {"PYTHONPATH": SOURCE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 2000)}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESSES, str(tmp_path / "two.pt")],
            env=environment | {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "one.pt")])
    with torch.random.fork_rng():
        exec(PROCESSES, {})
    for process in pair:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors.decode()[-2000:]
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def test_curvature_that_is_not_finite_is_skipped_counted_and_said_once():
    net = mlp()
    optimizer = SINGD(net, lr=0.01, interval=1)
    train(net, optimizer, 2)
    kept, before = optimizer.preconditioner.batches[0].k.value[0].clone(), weights(net)
    optimizer.zero_grad()
    net(torch.full((2, 4), math.nan, dtype=F64)).sum().backward()
    with pytest.warns(RuntimeWarning, match="layer '0'"):
        optimizer.step()
    assert torch.equal(kept, optimizer.preconditioner.batches[0].k.value[0])
    assert torch.equal(before, weights(net))
    skipped = optimizer.skipped
    assert skipped > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.zero_grad()
        net(torch.full((2, 4), math.inf, dtype=F64)).sum().backward()
        optimizer.step()
    assert optimizer.skipped > skipped
    assert all(map(math.isfinite, train(net, optimizer, 2)))


BAD_NUMBERS = [
    ("lr", -1.0),
    ("lr", math.inf),
    ("damping", math.nan),
    ("damping", 0.0),
    ("damping", -1e-3),
    ("momentum", 1.0),
    ("alpha1", -0.1),
    ("alpha1", 1.0),
    ("lr_cov", 0.0),
    ("lr_cov", 1.0),
    ("lr_cov", math.nan),
    ("weight_decay", -1.0),
    ("interval", 0),
    ("max_rows", 0),
    ("seed", -1),
    ("kl_clip", 0.0),
    ("update_rms", -1.0),
    ("fallback_lr", -1.0),
]


def test_numbers_out_of_range_are_named_in_arguments_and_groups():
    net = mlp()
    for name, value in BAD_NUMBERS:
        with pytest.raises(ValueError, match=rf"{name}=.*wanted"):
            SINGD(net, **{name: value})
    with pytest.raises(ValueError, match="lr='fast', wanted a finite number"):
        SINGD(net, [{"params": list(net.parameters()), "lr": "fast"}])


@pytest.mark.parametrize(("name", "value"), [("lr_cov", 2.0), ("interval", 0), ("interval", 1.5)])
def test_functions_that_return_numbers_out_of_range(name, value):
    net = mlp()
    optimizer = SINGD(net, **{"interval": 1, name: lambda step: value})
    with pytest.raises(ValueError, match=rf"{name}={value}, wanted"):
        train(net, optimizer, 2)


@pytest.mark.usefixtures("unchecked")
def test_options_of_the_wrong_kind_are_named():
    net = mlp()
    for name, value in (("lr", None), ("lr", len), ("damping", None), ("interval", None), ("momentum", len)):
        with pytest.raises(ValueError, match=rf"{name}=.*wanted"):
            SINGD(net, **{name: value})
    for structure in ((), (Dense(),), (Dense(), "diagonal"), Dense):
        with pytest.raises(TypeError, match="for layer '0' is unknown"):
            SINGD(net, structure=structure)


def test_what_cannot_be_is_named():
    net = mlp()
    with pytest.raises(TypeError, match="DataParallel"):
        SINGD(nn.DataParallel(net))
    with pytest.raises(TypeError, match=r"structure='foo' for layer '0' is unknown"):
        SINGD(net, structure="foo")
    with pytest.raises(ValueError, match=r"fallback names 'hed'"):
        SINGD(net, fallback=["hed"])
    with pytest.raises(ValueError, match="no layer"):
        SINGD(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="'2' is split over parameter groups: its weight is in one of those given, the bias is not"):
        SINGD(net, [net[2].weight])
    with pytest.raises(ValueError, match=r"'2' is split over parameter groups with damping=0\.1 for its weight and 0\.0001 for its bias"):
        SINGD(net, [{"params": [net[2].weight], "damping": 0.1}, {"params": [net[2].bias]}])
    with pytest.raises(ValueError, match=r"shape \(3,\) is not a parameter"):
        SINGD(net, [*net.parameters(), nn.Parameter(torch.zeros(3))])
    strange = seeded(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.complex64)))
    with pytest.raises(TypeError, match=r"'1\.weight' is complex"):
        SINGD(strange)
    with pytest.raises(ValueError, match="lazy"):
        SINGD(seeded(lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))))


def test_a_step_that_recorded_nothing_says_so_and_leaves_the_refresh_due():
    net = mlp()
    optimizer = SINGD(net)
    torch.func.functional_call(net, {"0.weight": net[0].weight * 1}, normal(3, 4))  # no module sees this pass's gradient
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = weights(net)
    with pytest.warns(RuntimeWarning, match=r"layer '0' has a gradient but never recorded curvature.*Fix: run the module"):
        optimizer.step()
    assert not torch.equal(before, weights(net))
    assert optimizer.due
    assert optimizer.preconditioner.refreshes == 0
    net[0].weight.grad = torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1).double(), (6, 4))
    optimizer.detach()
    with pytest.raises(TypeError, match=r"'0\.weight' of layer '0' has a sparse gradient"):
        optimizer.step()


def test_layers_given_to_the_fallback():
    net = mlp()
    optimizer = SINGD(net, fallback=["4", "2.weight"])
    how = {line.name: line.inputs for line in optimizer.report()}
    assert how["0"] is not None
    assert [name for name, inputs in how.items() if inputs is None] == ["2.weight", "2.bias", "4.weight", "4.bias"]
    train(net, optimizer, 2)
    assert "AdamW" in str(optimizer.report()[-1])


def test_groups_may_be_iterators_of_named_parameters_of_parts():
    net = mlp()
    optimizer = SINGD(
        net, [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters()}, {"params": iter(net[4].parameters())}]
    )
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2, 2]
    assert [line.name for line in optimizer.report()] == ["0", "2", "4"]
    twin = mlp()
    inner = SINGD(nn.ModuleDict({"a": net, "0": twin}), [{"params": net.named_parameters()}])  # "0.weight" here is "a.0.weight" there
    assert [line.name for line in inner.report()] == ["a.0", "a.2", "a.4"]


def test_a_group_that_comes_late_is_recorded():
    net = mlp()
    optimizer = SINGD(net, list(net[0].parameters()), interval=10)
    train(net, optimizer, 2)
    optimizer.add_param_group({"params": net[4].parameters()})
    train(net, optimizer, 1)
    assert all(all(batch.started) for batch in optimizer.preconditioner.batches)
    assert [len(module._forward_hooks) for module in (net[0], net[2], net[4])] == [1, 0, 1]


@pytest.mark.parametrize(("update_rms", "apart"), [(0.2, True), (None, False)])
def test_a_loss_that_is_not_finite_spoils_no_parameter(update_rms, apart):
    net = seeded(lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, 2))).double()
    groups = [{"params": net[:1].parameters()}, {"params": net[1:].parameters()}]
    optimizer = SINGD(net, groups if apart else None, interval=1, update_rms=update_rms)
    train(net, optimizer, 2)
    before = weights(net)
    optimizer.zero_grad()
    net(torch.full((2, 4), math.nan, dtype=F64)).sum().backward()
    with pytest.warns(RuntimeWarning, match="not finite"):
        optimizer.step()
    assert torch.equal(before, weights(net))
    assert all(map(math.isfinite, train(net, optimizer, 2)))


def test_keyword_calls_are_recorded():
    net, twin = mlp(), mlp()
    optimizers = [SINGD(one, interval=1) for one in (net, twin)]
    x = normal(8, 4)
    net[4](net[3](net[2](net[1](net[0](x))))).square().mean().backward()
    twin[4](input=twin[3](twin[2](input=twin[1](twin[0](input=x))))).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(weights(net), weights(twin))


def test_a_layer_that_never_records_curvature_is_named_once():
    net = mlp()
    net[2].forward = lambda x: torch.addmm(net[2].bias, x, net[2].weight.T)
    net[2].__class__ = type("Other", (nn.Linear,), {"__call__": lambda self, x: self.forward(x)})
    optimizer = SINGD(net, lr=0.01, interval=1)
    with pytest.warns(RuntimeWarning, match="layer '2' has a gradient but never recorded curvature") as told:
        train(net, optimizer, 3)
    assert len(told) == 1


def test_sparse_gradients_are_refused_before_anything_moves():
    net = seeded(lambda: nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 2)))
    optimizer = SINGD(net)
    net(torch.tensor([1, 2])).square().mean().backward()
    before = weights(net)
    with pytest.raises(TypeError, match=r"'0\.weight' has a sparse gradient.*sparse=False"):
        optimizer.step()
    assert torch.equal(before, weights(net))


@pytest.mark.usefixtures("unchecked")
def test_wrong_kinds_are_named_with_their_fix():
    net = mlp()
    with pytest.raises(TypeError, match=r"model is a generator, wanted the nn\.Module"):
        SINGD(net.parameters())
    with pytest.raises(TypeError, match=r"module '1' is nn\.DataParallel"):
        SINGD(nn.Sequential(nn.Tanh(), nn.DataParallel(net)))
    for name, value in (("sharing", "reduce"), ("averaging", "mean"), ("factor_dtype", torch.int32), ("factor_dtype", "bf16")):
        with pytest.raises(TypeError, match=rf"{name}=.*wanted.*Fix: "):
            SINGD(net, **{name: value})
    with pytest.raises(ValueError, match=r"lr_cov=1\.5, wanted a finite number above 0 and below 1\. Fix: 0\.3 is usual\."):
        SINGD(net, lr_cov=1.5)


def test_the_fallback_follows_a_rate_that_starts_at_nothing():
    net = seeded(lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))).double()
    optimizer = SINGD(net, lr=0.0, weight_decay=0.1, fallback_lr=1e-3)
    alone = nn.Parameter(net[0].weight.detach().clone())
    other = torch.optim.AdamW([alone], lr=1e-3, weight_decay=0.1)
    for lr in (0.0, 0.01, 0.005):  # the rate of the fallback is 1e-3 at the highest
        optimizer.param_groups[0]["lr"], other.param_groups[0]["lr"] = lr, 0.1 * lr
        train(net, optimizer, 1)
        alone.grad = net[0].weight.grad.clone()
        other.step()
    torch.testing.assert_close(net[0].weight, alone, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(alone, torch.ones(4, dtype=F64), atol=1e-4)


@pytest.mark.parametrize("ratio", [1.6, 3.0])
def test_auto_keeps_to_its_budget_with_what_is_cached(ratio):
    net = seeded(lambda: nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 24), nn.LayerNorm(24), nn.Linear(24, 2))).double()
    optimizer = SINGD(net, structure=Auto(ratio), interval=10)
    train(net, optimizer, 1)
    lines = optimizer.report()
    assert sum(line.state for line in lines) <= 2 * ratio * sum(line.parameters for line in lines)


def test_a_copy_made_under_a_schedule_steps_itself():
    net = mlp()
    optimizer = SINGD(net, lr=0.01, interval=1)
    torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    train(net, optimizer, 2)
    twin, copied = copy.deepcopy((net, optimizer))
    before = weights(net)
    expected = train(twin, copied, 3, start=2)
    assert torch.equal(before, weights(net))
    assert train(net, optimizer, 3, start=2) == expected


def test_the_length_of_a_step_is_that_of_adam():
    """Root mean square: the rate where gradients agree, 0.23 of it where they are noise, never more; the scale of the loss does not count."""
    rng = torch.Generator().manual_seed(3)
    mu, lr = 0.9, 0.25
    noise = [torch.randn(6, 5, generator=rng) for _ in range(400)]
    spikes = [torch.full((6, 5), 1e6 if k % 50 == 49 else 1e-3) for k in range(400)]
    gradients = {"agree": [torch.ones(6, 5)] * 400, "noise": noise, "scaled": [1e4 * one for one in noise], "spikes": spikes}
    lengths: dict[str, list[float]] = {}
    for name, given in gradients.items():
        with torch.random.fork_rng():
            net = nn.Linear(4, 6)
        optimizer = SINGD(net, lr=lr, momentum=mu, structure=Diagonal(), listen=False)
        optimizer.detach()  # the factors stay the identity
        for one in given:
            net.weight.grad, net.bias.grad = one[:, :4].clone(), one[:, 4].clone()
            before = torch.cat([net.weight, net.bias[:, None]], 1).detach().double()
            optimizer.step()
            moved = torch.cat([net.weight, net.bias[:, None]], 1).detach().double() - before
            lengths.setdefault(name, []).append(moved.square().mean().sqrt().item() / lr)
    assert lengths["agree"] == pytest.approx([1.0] * 400, rel=1e-4)
    assert sum(lengths["noise"][50:]) / 350 == pytest.approx(math.sqrt((1 - mu) / (1 + mu)), rel=0.05)
    assert lengths["noise"] == pytest.approx(lengths["scaled"], rel=1e-3)
    assert max(lengths["spikes"]) < 1 + 1e-4
