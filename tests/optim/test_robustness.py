"""SINGD where a run changes or breaks midway: dtypes, options, batches of any size, storages, states that do not fit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from popflow.optim import SINGD, BlockDiagonal, Dense, Diagonal, Hierarchical, LowerToeplitz, growing

F64 = torch.float64
STRUCTURES = [Dense(), Diagonal(), BlockDiagonal(3), LowerToeplitz(), Hierarchical(2, 1)]


def made(dtype: torch.dtype = torch.float32, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6) if norm else nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)


def train(net: nn.Module, optimizer: SINGD, steps: int, start: int = 0, size: float = 1.0) -> None:
    dtype = next(net.parameters()).dtype
    for i in range(start, start + steps):
        x = (size * torch.randn(8, 4, generator=torch.Generator().manual_seed(i), dtype=F64)).to(dtype)
        optimizer.zero_grad()
        (net(x) - x[:, :2].sin()).square().sum(1).mean().backward()
        optimizer.step()


def tensors(net: nn.Module, optimizer: SINGD) -> list[torch.Tensor]:
    return [*net.parameters(), *(part for batch in optimizer.preconditioner.batches for _, part in batch.stored())]


def length(net: nn.Module, before: list[torch.Tensor]) -> float:
    """Root mean square of the change of the first layer."""
    return torch.cat([(a - b).flatten() for a, b in zip(net[0].parameters(), before, strict=True)]).square().mean().sqrt().item()


@pytest.mark.parametrize(("alpha1", "adaptive"), [(0.5, True), (0.0, False)])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_no_batch_however_large_breaks_a_factor(structure, alpha1, adaptive):
    """tr(H_K) tr(H_C) leaves float32 long before either trace does."""
    for size in (1e5, 1e10, 1e14, 1e18):
        net = made()
        optimizer = SINGD(net, structure=structure, interval=1, alpha1=alpha1, adaptive=adaptive)
        train(net, optimizer, 2)
        optimizer.preconditioner.warned.add("not finite")
        train(net, optimizer, 1, start=2, size=size)
        skipped, before = optimizer.skipped, [part.clone() for part in net.parameters()]
        train(net, optimizer, 2, start=3)
        assert all(part.isfinite().all() for part in tensors(net, optimizer))
        assert optimizer.skipped == skipped
        assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_gradients_whose_squares_leave_float64_are_skipped():
    net = made(F64)
    optimizer = SINGD(net, interval=1)
    train(net, optimizer, 2)
    before = copy.deepcopy(tensors(net, optimizer))
    optimizer.detach()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 1e200)
    with pytest.warns(RuntimeWarning, match="not finite"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(net, optimizer), strict=True))


@pytest.mark.parametrize(("first", "then"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, F64)])
def test_a_model_that_changes_its_dtype_takes_everything_along(first, then):
    net = made(first, norm=True)
    optimizer = SINGD(net, interval=2)
    train(net, optimizer, 3)
    net.to(then)
    train(net, optimizer, 3, start=3)
    assert {batch.momentum.dtype for batch in optimizer.preconditioner.batches if batch.momentum is not None} == {then}
    assert optimizer.adamw[0] is not None
    assert {value.dtype for state in optimizer.adamw[0].state.values() for key, value in state.items() if key != "step"} == {then}
    if then == torch.float32:
        assert not torch.equal(net[0].weight, net[0].weight.bfloat16().float())


def test_a_spike_of_the_gradient_fits_into_the_momentum_of_float16():
    net = made(torch.float16)
    optimizer = SINGD(net, interval=1)
    train(net, optimizer, 2)
    optimizer.detach()
    for _ in range(3):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 1000.0)
        optimizer.step()
    assert all(part.isfinite().all() for part in tensors(net, optimizer))
    other = SINGD(made(torch.float16), interval=1)
    other.load_state_dict(optimizer.state_dict())
    assert all(
        torch.equal(a.momentum, b.momentum) for a, b in zip(optimizer.preconditioner.batches, other.preconditioner.batches, strict=True)
    )


def test_steps_without_momentum_leave_none_behind():
    net = made()
    optimizer = SINGD(net, interval=1)
    group = optimizer.param_groups[0]
    train(net, optimizer, 3)
    group["momentum"] = 0.0
    train(net, optimizer, 2, start=3)
    assert all(batch.momentum is None for batch in optimizer.preconditioner.batches)
    group["momentum"] = 0.9
    before = [parameter.detach().clone() for parameter in net[0].parameters()]
    train(net, optimizer, 1, start=5)
    assert length(net, before) == pytest.approx(group["lr"], rel=1e-4)  # begun anew, as a first step


def test_scaled_steps_after_natural_ones_are_no_longer_than_asked():
    net = made()
    optimizer = SINGD(net, interval=1, kl_clip=None)
    group = optimizer.param_groups[0]
    lr = group["lr"]
    train(net, optimizer, 20)
    group.update(update_rms=None, lr=0.0)
    train(net, optimizer, 4, start=20, size=100.0)
    group.update(update_rms=1.0, lr=lr)
    for i in range(20):
        before = [parameter.detach().clone() for parameter in net[0].parameters()]
        train(net, optimizer, 1, start=30 + i)
        assert length(net, before) < lr * (1 + 1e-4)


@pytest.mark.parametrize("split", [False, True])
def test_one_pull_is_one_batch_however_often_a_weight_is_used(split):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Linear(3, 2, bias=False).double()
    optimizer = SINGD(net, interval=1, listen=False)
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    for calls in (1, 2):
        z = torch.cat([net(x[:, :2]), net(x[:, 2:])], 1) if split else net(x)
        optimizer.observe(z, torch.ones_like(z))
        assert (optimizer.preconditioner.batches[0].recorded[0].data, optimizer.preconditioner.batches[0].recorded[0].rows) == (
            5 * calls,
            20 * calls,
        )


def test_attention_is_recorded_where_all_parameters_share_one_storage():
    recorded = []
    for flat in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.MultiheadAttention(4, 2, kdim=9, vdim=5, batch_first=True)
        if flat:
            nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(net.parameters()), net.parameters())
        optimizer = SINGD(net, interval=1)
        query, key, value = (torch.randn(3, n, d, generator=torch.Generator().manual_seed(n)) for n, d in ((2, 4), (7, 9), (7, 5)))
        net(query, key, value)[0].square().mean().backward()
        recorded.append(
            {
                layer.name: one.h_k
                for batch in optimizer.preconditioner.batches
                for layer, one in zip(batch.layers, batch.recorded, strict=True)
            }
        )
    assert recorded[0].keys() == recorded[1].keys()
    assert all(torch.equal(recorded[0][name][0], recorded[1][name][0]) for name in recorded[0])


def test_an_optimiser_goes_through_pickle():
    net = made()
    optimizer = SINGD(net)
    train(net, optimizer, 2)
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.preconditioner.interval(50) == optimizer.preconditioner.interval(50) == 10
    assert all(
        torch.equal(a.momentum, b.momentum) for a, b in zip(optimizer.preconditioner.batches, again.preconditioner.batches, strict=True)
    )


def test_intervals_that_cannot_grow():
    with pytest.raises(ValueError, match=r"every=0, wanted an integer at least 1\. Fix: 5 is usual\."):
        growing(10, every=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_factors_of_too_little_range_are_refused(dtype):
    with pytest.raises(TypeError, match=r"factor_dtype=.*wanted torch\.float32, torch\.float64 or torch\.bfloat16"):
        SINGD(made(), factor_dtype=dtype)


@pytest.mark.parametrize("lost", ["state", "param_groups", "counters", "started"])
def test_states_with_holes_are_refused(lost):
    net = made()
    optimizer = SINGD(net)
    train(net, optimizer, 1)
    saved = optimizer.state_dict()
    holes = {key: value for key, value in saved.items() if key != lost}
    if "state" in holes:
        holes["state"] = {number: {k: v for k, v in entry.items() if k != lost} for number, entry in saved["state"].items()}
    with pytest.raises(ValueError, match=r"state_dict: .* Fix: "):
        optimizer.load_state_dict(holes)


CALLS = [
    (nn.Linear(3, 2), (3,), 1),
    (nn.Linear(3, 2), (2, 4, 3), 8),
    (nn.Linear(3, 2, bias=False), (2, 4, 3), 8),
    (nn.Conv1d(3, 2, 2), (3, 5), 4),
    (nn.Conv2d(3, 2, 2), (3, 5, 5), 16),
    (nn.Conv2d(3, 2, 2), (2, 3, 5, 5), 32),
]


@pytest.mark.parametrize("listen", [True, False])
@pytest.mark.parametrize(("layer", "shape", "rows"), CALLS, ids=str)
def test_an_activation_in_place_hides_no_layer(layer, shape, rows, listen):
    """Outputs may be views, whose graph an operation in place makes anew: the cotangent is that of the output before it."""
    told = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer.reset_parameters()
    for inplace in (False, True):
        net = nn.Sequential(copy.deepcopy(layer), nn.LeakyReLU(0.5, inplace=inplace))
        optimizer = SINGD(net, interval=1, listen=listen)
        outputs = net(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        optimizer.observe(outputs, outputs.detach()) if not listen else (outputs.square().sum() / 2).backward()
        told.append(optimizer.preconditioner.batches[0].recorded[0])
    assert told[0].rows == told[1].rows == rows
    assert all(torch.equal(a, b) for a, b in zip((*told[0].h_k, *told[0].h_c), (*told[1].h_k, *told[1].h_c), strict=True))
    assert told[0].h_c[0].abs().max() > 0


def test_gradients_of_inputs_alone_are_no_curvature():
    net = made()
    optimizer = SINGD(net, interval=1)
    x = torch.ones(5, 4, requires_grad=True)
    (towards,) = torch.autograd.grad(net(x).square().sum(), x)
    assert [record.rows for batch in optimizer.preconditioner.batches for record in batch.recorded] == [0, 0, 0]
    gradients = torch.autograd.grad(net(x.detach() + towards.sign()).square().mean(), [*net.parameters()])
    assert [record.rows for batch in optimizer.preconditioner.batches for record in batch.recorded] == [5, 5, 5]
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def test_the_fallback_under_a_rate_that_rises_from_nothing_stays_at_its_own():
    net = made(norm=True)
    optimizer = SINGD(net, lr=0.0, fallback_lr=1e-3)
    for i, lr in enumerate((0.0, 1e-6, 1e-3, 1e-2, 5e-3)):
        optimizer.param_groups[0]["lr"] = lr
        train(net, optimizer, 1, start=i)
        assert optimizer.adamw[0] is not None
        assert optimizer.adamw[0].param_groups[0]["lr"] == pytest.approx((0.0, 1e-3, 1e-3, 1e-3, 5e-4)[i])


def test_a_layer_without_numbers_is_left_alone():
    with torch.random.fork_rng():
        net = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 0)])
    optimizer = SINGD(net, interval=1)
    torch.cat([layer(torch.ones(4, 3)) for layer in net], 1).square().sum().backward()
    optimizer.step()
    assert [line.name for line in optimizer.report() if line.inputs is not None] == ["0"]
