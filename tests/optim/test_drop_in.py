"""SINGD where AdamW stood: rates, groups, gradients that are thrown away, torch's protocol of state, modes and modules of users' models."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from popflow.optim import SINGD, Auto, Dense, Diagonal, Hierarchical, expand, reduce

F64 = torch.float64


def made(*layers, seed: int = 0) -> nn.Module:
    """Layers given as functions that make them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(layer() for layer in layers)).double()


def mlp() -> nn.Module:
    return made(lambda: nn.Linear(4, 6), lambda: nn.LayerNorm(6), nn.Tanh, lambda: nn.Linear(6, 2))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def loss_of(net: nn.Module, seed: int, size: float = 1.0) -> torch.Tensor:
    x = size * normal(8, 4, seed=seed)
    return (net(x) - x[:, :2].sin()).square().sum(1).mean()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for seed in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(net, seed).backward()
        optimizer.step()


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def factors(optimizer: SINGD) -> torch.Tensor:
    return torch.cat([tensor.flatten() for batch in optimizer.preconditioner.batches for _, tensor in batch.stored()])


# -- rates and groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [2e-5, 0.1])
def test_what_is_not_a_matrix_moves_as_under_adamw_at_the_same_rate(lr):
    net = mlp()
    optimizer, norm = SINGD(net, lr=lr), nn.LayerNorm(6).double()
    adamw = torch.optim.AdamW(norm.parameters(), lr=lr, weight_decay=0.0)
    for seed, share in enumerate((1.0, 1.0, 0.5)):
        optimizer.param_groups[0]["lr"] = adamw.param_groups[0]["lr"] = lr * share
        train(net, optimizer, 1, start=seed)
        for mine, his in zip(net[1].parameters(), norm.parameters(), strict=True):
            his.grad = mine.grad.clone()
        adamw.step()
    torch.testing.assert_close(weights(net[1]), weights(norm), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("biases_first", [False, True])
def test_weights_decay_and_biases_of_the_same_layers_do_not(biases_first):
    net, twin = mlp(), mlp()
    decaying = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in net.parameters() if parameter.ndim == 1]
    groups = [{"params": decaying, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0, "lr": 0.02}]
    optimizer, plain = SINGD(net, groups[::-1] if biases_first else groups, lr=0.1), SINGD(twin, lr=0.1)
    start = [parameter.detach().clone() for parameter in net.parameters()]
    train(net, optimizer, 1)
    train(twin, plain, 1)
    for mine, other, before in zip(net.parameters(), twin.parameters(), start, strict=True):
        moved = other - before
        wanted = before * (1 - 0.1 * 0.5) + moved if mine.ndim > 1 else before + 0.2 * moved
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    train(net, optimizer, 2)
    assert optimizer.param_groups[biases_first]["weight_decay"] == 0.5


def test_the_rate_may_be_a_tensor_that_is_filled_later():
    rate, net, twin = torch.tensor(0.1), mlp(), mlp()
    optimizer, plain = SINGD(net, lr=rate), SINGD(twin, lr=float(rate))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(one, 0.5) for one in (optimizer, plain)]
    for seed in range(3):
        for one, its, schedule in zip((net, twin), (optimizer, plain), schedules, strict=True):
            train(one, its, 1, start=seed)
            schedule.step()
    torch.testing.assert_close(weights(net), weights(twin), rtol=1e-5, atol=1e-7)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = SINGD(mlp(), lr=torch.tensor(1.0))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert float(other.param_groups[0]["lr"]) == pytest.approx(0.1 / 8)
    optimizer.param_groups[0]["lr"].fill_(0.0)
    before = weights(net)
    train(net, optimizer, 1)
    assert torch.equal(before, weights(net))


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_and_tensors_of_one_element_are_numbers():
    net = mlp()
    optimizer = SINGD(net, lr=np.float32(0.5), damping=torch.tensor(0.25), interval=np.int64(2))
    train(net, optimizer, 3)
    saved = optimizer.state_dict()["param_groups"][0]
    assert (saved["lr"], saved["damping"]) == (0.5, 0.25)
    assert type(saved["lr"]) is type(saved["damping"]) is float
    for params in (1e-3, torch.tensor(1e-3)):
        with pytest.raises(TypeError, match=r"params is a .*wanted parameters.*Fix: SINGD\(model, lr=0\.001"):
            SINGD(net, params)
    for params in ("dense", Dense(), net.parameters, {"params": net.parameters()}):
        with pytest.raises(TypeError, match=r"params is a .*wanted parameters or a list of groups"):
            SINGD(net, params)


# -- gradients that are thrown away -------------------------------------------------------------------------------------------------


def by_hand(net: nn.Module, optimizer: SINGD) -> None:
    for parameter in net.parameters():
        parameter.grad = None


def of_the_optimizer(net: nn.Module, optimizer: SINGD) -> None:
    optimizer.zero_grad()


def to_zeros(net: nn.Module, optimizer: SINGD) -> None:
    optimizer.zero_grad(set_to_none=False)


def of_the_model(net: nn.Module, optimizer: SINGD) -> None:
    net.zero_grad()


@pytest.mark.parametrize("drop", [of_the_optimizer, to_zeros, of_the_model, by_hand])
def test_curvature_goes_with_the_gradient_that_is_dropped(drop):
    net, twin = mlp(), mlp()
    optimizer, plain = SINGD(net, interval=1), SINGD(twin, interval=1)
    for seed in range(3):
        loss_of(net, 100 + seed, size=30.0).backward()
        drop(net, optimizer)
        for one, its in ((net, optimizer), (twin, plain)):
            loss_of(one, seed).backward()
            loss_of(one, 50 + seed).backward()  # accumulated: both count
            its.step()
            its.zero_grad()
    assert torch.equal(factors(optimizer), factors(plain))


@pytest.mark.parametrize("first", [True, False])
def test_a_gradient_that_is_only_looked_at_is_no_curvature(first):
    net, twin = mlp(), mlp()
    optimizer, plain = SINGD(net, interval=1), SINGD(twin, interval=1)
    for seed in range(3):
        for look in (True, False):
            if look is first:
                torch.autograd.grad(loss_of(net, 100 + seed, size=30.0), [*net.parameters()])
            else:
                loss_of(net, seed).backward()
        loss_of(twin, seed).backward()
        for its in (optimizer, plain):
            its.step()
            its.zero_grad(set_to_none=False)
    assert torch.equal(factors(optimizer), factors(plain))


def test_the_pass_of_a_generator_leaves_its_critic_alone():
    """Two networks that take turns: what the generator's loss sends through the critic is not the critic's curvature."""
    results = []
    for listening in (True, False):
        generator = made(lambda: nn.Linear(3, 4), nn.Tanh, lambda: nn.Linear(4, 4))
        critic = made(lambda: nn.Linear(4, 6), nn.Tanh, lambda: nn.Linear(6, 1), seed=1)
        ours = [SINGD(one, lr=0.02, interval=1) for one in (generator, critic)]
        for seed in range(4):
            real, noise = normal(8, 4, seed=seed), normal(8, 3, seed=100 + seed)
            critic.zero_grad()
            nn.functional.softplus(-critic(real)).mean().backward()
            nn.functional.softplus(critic(generator(noise).detach())).mean().backward()
            ours[1].step()
            generator.zero_grad()
            critic.requires_grad_(listening)
            (10 * nn.functional.softplus(-critic(generator(noise)))).mean().backward()
            critic.requires_grad_(True)
            ours[0].step()
        results.append(torch.cat([weights(generator), weights(critic), *map(factors, ours)]))
    assert torch.equal(*results)


def test_a_pass_that_comes_after_the_step_it_was_recorded_for_is_no_curvature():
    net, twin = mlp(), mlp()
    optimizer, plain = SINGD(net, lr=0.0, interval=3), SINGD(twin, lr=0.0, interval=3)
    late = net[0](30 * normal(8, 4, seed=100)).square().mean()
    train(net, optimizer, 1)
    late.backward()
    train(twin, plain, 1)
    for one, its in ((net, optimizer), (twin, plain)):
        its.step()
        for seed in (2, 3):  # gradients are never dropped here: the steps use them up
            loss_of(one, seed).backward()
            its.step()
    assert optimizer.preconditioner.refreshes == 2
    assert torch.equal(*(next(batch.k.value[0] for batch in its.preconditioner.batches) for its in (optimizer, plain)))


def test_given_cotangents_outlive_the_gradients():
    net = made(lambda: nn.Linear(4, 2))
    optimizer = SINGD(net, interval=1, listen=False)
    for early in (True, False):
        outputs = net(normal(8, 4))
        if early:
            optimizer.zero_grad()
        optimizer.observe(outputs, torch.ones_like(outputs))
        if not early:
            optimizer.zero_grad()
        outputs.square().mean().backward()
        optimizer.step()
    assert optimizer.preconditioner.refreshes == 2


# -- steps that cannot be taken, or have nothing to refresh from -------------------------------------------------------------------


@pytest.mark.parametrize("update_rms", [1.0, None])
@pytest.mark.parametrize("where", ["1.weight", "3.bias", "0.weight"])
def test_one_gradient_that_is_not_finite_moves_nothing(where, update_rms):
    net = mlp()
    groups = [{"params": net[:2].parameters()}, {"params": net[2:].parameters()}]
    optimizer = SINGD(net, groups, interval=3, update_rms=update_rms)
    train(net, optimizer, 2)
    before = weights(net), factors(optimizer), copy.deepcopy(optimizer.state_dict()["state"][2])
    optimizer.zero_grad()
    loss_of(net, 2).backward()
    net.get_parameter(where).grad.view(-1)[0] = float("nan")
    with pytest.warns(RuntimeWarning, match="a gradient is not finite; the step is skipped"):
        optimizer.step()
    assert torch.equal(before[0], weights(net))
    assert torch.equal(before[1], factors(optimizer))
    assert torch.equal(before[2]["exp_avg"], optimizer.state_dict()["state"][2]["exp_avg"])
    assert optimizer.skipped == 1
    train(net, optimizer, 2)
    assert not torch.equal(before[0], weights(net))
    assert weights(net).isfinite().all()


def test_fine_tuning_in_evaluation_mode_is_training():
    net, twin = mlp(), mlp().eval()
    for one in (net, twin):
        train(one, SINGD(one, interval=2), 5)
    assert torch.equal(weights(net), weights(twin))


def test_an_empty_batch_is_a_step_without_news():
    net = mlp()
    optimizer = SINGD(net, lr=0.1, interval=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (0, 1):
            train(net, optimizer, steps)
            before, due = factors(optimizer)[: 4 * 4], optimizer.due
            optimizer.zero_grad()
            net(torch.zeros(0, 4, dtype=F64)).sum().backward()
            optimizer.step()
            assert torch.equal(before, factors(optimizer)[: 4 * 4])
            assert optimizer.due
            assert due is (steps == 0)
    assert weights(net).isfinite().all()
    train(net, optimizer, 1)
    assert optimizer.preconditioner.refreshes == 2


# -- torch's protocol of state ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoints_hold_the_state(flat, tmp_path):
    net = mlp()
    decaying = {id(parameter) for parameter in net.parameters() if parameter.ndim > 1}

    def optimizer_of(net: nn.Module) -> SINGD:
        parts = [[p for p in net.parameters() if (p.ndim > 1) is wide] for wide in (True, False)]
        return SINGD(net, [{"params": parts[0], "weight_decay": 0.1}, {"params": parts[1]}], interval=2)

    optimizer, options = optimizer_of(net), StateDictOptions(flatten_optimizer_state_dict=flat)
    assert len(decaying) == 2
    train(net, optimizer, 3)
    model_state, optimizer_state = get_state_dict(net, optimizer, options=options)
    torch.distributed.checkpoint.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=tmp_path, no_dist=True)
    train(net, optimizer, 4, start=3)
    twin = mlp()
    other = optimizer_of(twin)
    saved = dict(zip(("model", "optimizer"), get_state_dict(twin, other, options=options), strict=True))
    torch.distributed.checkpoint.load(saved, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(twin, other, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"], options=options)
    train(twin, other, 4, start=3)
    assert torch.equal(weights(net), weights(twin))
    assert torch.equal(factors(optimizer), factors(other))


def test_state_is_that_of_every_parameter_and_hooks_fire():
    net = mlp()
    optimizer, told = SINGD(net), []
    assert not optimizer.state
    optimizer.register_state_dict_pre_hook(lambda its: told.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda its, state: state | {"more": 1})
    optimizer.register_load_state_dict_pre_hook(lambda its, state: told.append(state["more"]))
    optimizer.register_load_state_dict_post_hook(lambda its: told.append("loaded"))
    optimizer.register_step_post_hook(lambda its, args, kwargs: told.append("step"))
    train(net, optimizer, 2)
    assert set(optimizer.state) == set(net.parameters())
    assert all(float(entry["step"]) == 2 for entry in optimizer.state.values())
    assert {"K.0", "C.0", "momentum"} <= optimizer.state[net[0].weight].keys()
    optimizer.state[net[0].weight]["momentum"].zero_()  # the one in use
    assert optimizer.preconditioner.batches[0].momentum.count_nonzero() == 0
    optimizer.load_state_dict(optimizer.state_dict())
    assert told == ["step", "step", "before saving", 1, "loaded"]


def test_a_state_that_is_assigned_is_refused():
    net = mlp()
    optimizer = SINGD(net)
    with pytest.raises(AttributeError, match=r"cannot be assigned\. Fix: load_state_dict"):
        optimizer.state = {net[0].weight: {"momentum": torch.zeros(6, 4)}}
    train(net, optimizer, 1)
    with pytest.raises(AttributeError, match="a new SINGD to begin anew"):
        optimizer.state = {}


def test_models_and_optimisers_go_through_pickle_while_they_listen():
    net = made(lambda: nn.Linear(4, 6), lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0), lambda: nn.Linear(6, 2))
    optimizer = SINGD(net, interval=2)
    train(net, optimizer, 1)
    twin, other = pickle.loads(pickle.dumps((net, optimizer)))
    alone = pickle.loads(pickle.dumps(net))
    loss_of(alone, 0).backward()  # a copy of the model alone is a stranger to both
    for one, its in ((net, optimizer), (twin, other)):
        train(one, its, 3, start=1)
    assert torch.equal(weights(net), weights(twin))
    assert torch.equal(factors(optimizer), factors(other))


def test_the_state_of_a_compiled_model_is_that_of_the_model():
    def inside(net: nn.Module) -> nn.Module:
        net[0] = torch.compile(net[0], backend="eager")
        return net

    net, state = mlp(), {}
    for wrap in (lambda net: net, lambda net: torch.compile(net, backend="eager"), inside):
        wrapped = wrap(mlp())
        optimizer = SINGD(wrapped, fallback=["3"])
        assert [line.name for line in optimizer.report()] == ["0", "1.weight", "1.bias", "3.weight", "3.bias"]
        train(wrapped, optimizer, 1)
        optimizer.load_state_dict(state or optimizer.state_dict())
        state = optimizer.state_dict()
    SINGD(net, fallback=["3"]).load_state_dict(state)


# -- modules ------------------------------------------------------------------------------------------------------------------------


def test_default_structures_bound_the_state_and_say_what_they_are():
    with torch.device("meta"):
        wide = nn.Sequential(nn.Linear(64, 6000), nn.Linear(6000, 300), nn.Linear(300, 512, bias=False))
        small, many = nn.Linear(64, 512), nn.Sequential(*(nn.Linear(500, 1) for _ in range(400)))
    lines = SINGD(wide, stochastic_rounding=False).report()
    assert [(line.inputs, line.outputs) for line in lines] == [
        (Dense(), Hierarchical(32, 32)),
        (Hierarchical(32, 32), Dense()),
        (Dense(), Dense()),
    ]
    assert [(line.inputs, line.outputs) for line in SINGD(small, stochastic_rounding=False).report()] == [(Dense(), Dense())]
    lines = SINGD(many, stochastic_rounding=False).report()
    assert Dense() not in {line.inputs for line in lines}
    assert sum(line.state for line in lines) <= 2**22
    with pytest.raises(ValueError, match=r"max_side=0, wanted an integer at least 1\. Fix: 512 is usual"):
        Auto(max_side=0)


@pytest.mark.parametrize(("share", "adaptive"), [(expand, True), (reduce, False)])
def test_a_transposed_convolution_of_one_pixel_is_a_convolution(share, adaptive):
    """``ConvTranspose1d(p, d, 1)`` is ``Conv1d(p, d, 1)`` with the weight stored as its transpose: the same steps, with the two factors exchanged."""
    convolution, transposed = made(lambda: nn.Conv1d(3, 5, 1, groups=1, bias=False)), made(lambda: nn.ConvTranspose1d(3, 5, 1, bias=False))
    transposed[0].weight.data = convolution[0].weight.data.transpose(0, 1).clone()
    for net in (convolution, transposed):
        optimizer = SINGD(
            net,
            lr=0.1,
            interval=1,
            sharing=share,
            adaptive=adaptive,
            damping=0.1,
            structure=(Dense(), Diagonal()) if net is convolution else (Diagonal(), Dense()),
        )
        for seed in range(6):
            x = normal(7, 3, 4, seed=seed)
            optimizer.zero_grad()
            (net(x) - x.sum(1, keepdim=True).sin()).square().sum((1, 2)).mean().backward()
            optimizer.step()
    torch.testing.assert_close(convolution[0].weight.transpose(0, 1), transposed[0].weight, rtol=1e-10, atol=1e-10)


def test_weights_tied_to_their_transpose_are_recorded_once():
    net = made(lambda: nn.Conv1d(3, 5, 3, bias=False), nn.Tanh, lambda: nn.ConvTranspose1d(5, 3, 3, bias=False))
    net[2].weight = net[0].weight
    optimizer = SINGD(net, interval=1)
    x = normal(7, 3, 9)
    (net(x) - x).square().mean().backward()
    assert [[record.rows for record in batch.recorded] for batch in optimizer.preconditioner.batches] == [[7 * 7]]
    optimizer.step()


def test_modules_that_hooks_cannot_see_into_are_named():
    with torch.random.fork_rng():
        net = nn.ModuleDict({"rnn": nn.GRU(4, 6), "cell": nn.LSTMCell(6, 6), "head": nn.Linear(6, 2)})
    with pytest.warns(
        UserWarning, match=r"module 'rnn' \(GRU\) is left to the built-in AdamW, 2 of such modules in all.*fallback=\['rnn'\]"
    ):
        SINGD(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SINGD(net, fallback=["rnn", "cell"])
        SINGD(net, net["head"].parameters())
