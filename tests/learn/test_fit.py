"""The training loop: what it learns, that it resumes exactly, that it guards, stops and compiles as it says."""

import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

from popflow.core.calculus import value_and_grad
from popflow.core.checkpoint import load_tensors
from popflow.core.errors import CheckpointError, DivergenceError, PopflowWarning
from popflow.core.streams import Streams
from popflow.learn import MLP, cosine, fit
from popflow.learn.compiling import onednn_is_faster
from popflow.learn.ema import ema_weight
from popflow.learn.learner import Learner

ADAM = partial(torch.optim.Adam, lr=0.05)


def mean_loss(params, batch):
    error = params["mean"] - batch
    return error.square().mean(), {"bias": error.mean()}


def data(rng):
    return 3 + rng.normal("data", torch.empty(32, 2))


def problem(seed=0):
    """A small network regressed on sin, with a loss that has an input gradient."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MLP(1, out=1, width=8, depth=2)

    def loss(params, batch):
        x, t = batch
        value, (slope, _) = value_and_grad(lambda x, t: functional_call(network, params, (x, t))[:, 0], x, t)
        error = (value - x[:, 0].sin()).square().mean()
        return error + (slope[:, 0] - x[:, 0].cos()).square().mean(), {"value": error}

    def batches(rng):
        return 2 * rng.normal("x", torch.empty(16, 1)), rng.uniform("t", (16,), torch.float32)

    return loss, dict(network.named_parameters()), batches


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_learns_the_mean_and_leaves_its_input_alone():
    start = {"mean": torch.zeros(2)}
    result = fit(mean_loss, start, data, steps=400, rng=Streams(0), optimizer=ADAM, schedule=cosine(400), ema=0.9)
    assert (result.params["mean"] - 3).abs().max() < 0.05
    assert start["mean"].abs().max() == 0
    assert result.step == 400
    assert not result.compiled


def test_one_step_of_sgd_is_the_formula():
    """mean' = mean - lr grad, clipped where it is longer; the norm before clipping is recorded, the average moved by ema_weight(1) = 0.9."""
    for clip_norm, factor in ((1.0, 0.2), (10.0, 1.0)):
        seen = []
        result = fit(
            lambda params, batch: ((params["a"] * batch).sum(), {}),
            {"a": torch.zeros(2)},
            lambda rng: torch.tensor([3.0, 4.0]),
            steps=1,
            rng=Streams(0),
            optimizer=partial(torch.optim.SGD, lr=0.5),
            clip_norm=clip_norm,
            ema=0.99,
            record=[seen.append],
        )
        torch.testing.assert_close(result.params["a"], factor * torch.tensor([-1.5, -2.0]))
        torch.testing.assert_close(result.ema["a"], factor * torch.tensor([-1.35, -1.8]))
        assert seen[0].metrics["grad_norm"] == pytest.approx(5.0)
        assert seen[0].lr == 0.5


def test_several_tensors_are_clipped_together_and_averaged_at_every_step():
    """Gradients 3 and 4 have the joint norm 5 and are clipped to 0.6 and 0.8; the rate is constant, the weight of the average is not."""
    result = fit(
        lambda p, batch: (3 * p["a"].sum() + 4 * p["b"].sum(), {}),
        {"a": torch.zeros(1), "b": torch.zeros(1)},
        lambda rng: None,
        steps=4,
        rng=Streams(0),
        optimizer=partial(torch.optim.SGD, lr=1.0),
        clip_norm=1.0,
        ema=0.99,
    )
    average = 0.0
    for k in range(1, 5):
        average += ema_weight(k, 0.99) * (k - average)
    for name, slope in (("a", 0.6), ("b", 0.8)):
        assert result.params[name].item() == pytest.approx(-4 * slope)
        assert result.ema[name].item() == pytest.approx(-average * slope)


def test_matches_a_plain_loop():
    loss, params, batches = problem()
    result = fit(loss, params, batches, steps=30, rng=Streams(1), optimizer=ADAM)
    mine = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    optimizer, rng = ADAM(list(mine.values())), Streams(1)
    for _ in range(30):
        value, _ = loss(mine, batches(rng))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    for name, p in mine.items():
        torch.testing.assert_close(result.params[name], p.detach())


def test_records_are_averages_with_the_learning_rate_of_the_step():
    seen, losses = [], []

    def loss(params, batch):
        value, metrics = mean_loss(params, batch)
        losses.append(value.item())
        return value, metrics

    fit(loss, {"mean": torch.zeros(2)}, data, steps=25, rng=Streams(0), schedule=lambda k: 1 / (k + 1), record=[seen.append], log_every=10)
    assert [p.step for p in seen] == [10, 20, 25]
    assert seen[1].metrics["loss"] == pytest.approx(sum(losses[10:20]) / 10)
    assert seen[2].metrics["loss"] == pytest.approx(sum(losses[20:]) / 5)
    assert set(seen[0].metrics) == {"loss", "bias"}
    assert seen[1].lr == pytest.approx(1e-3 / 20)


@pytest.mark.parametrize(
    "optimizer",
    [ADAM, partial(torch.optim.NAdam, lr=0.01), partial(torch.optim.Muon, lr=0.01)],
)
def test_stopped_and_resumed_is_the_same_to_the_last_byte(tmp_path, optimizer):
    loss, params, batches = problem()
    if optimizer.func is torch.optim.Muon:  # matrices only
        params = {name: p for name, p in params.items() if p.ndim == 2}
    run = partial(
        fit, loss, params, batches, optimizer=optimizer, ema=0.9, clip_norm=5.0, schedule=cosine(100, 5), log_every=7, checkpoint_every=10
    )
    whole, parts, tail = [], [], []
    a = run(steps=60, rng=Streams(4), checkpoint=tmp_path / "a", record=[whole.append])
    run(steps=40, rng=Streams(4), checkpoint=tmp_path / "b", record=[parts.append])
    b = run(steps=60, rng=Streams(4), checkpoint=tmp_path / "b", record=[tail.append])
    assert same(a.params, b.params)
    assert same(a.ema, b.ema)
    assert b.step == 60
    assert parts[:-1] == whole[:5]
    assert tail[1:] == whole[6:]
    assert (parts[-1].step, tail[0].step, whole[5].step, tail[0].lr) == (40, 42, 42, whole[5].lr)
    # the record at the end of the first part divides an average over the steps 36 to 42
    for name, mean in whole[5].metrics.items():
        assert 5 * parts[-1].metrics[name] + 2 * tail[0].metrics[name] == pytest.approx(7 * mean, rel=1e-6)
    again = run(steps=60, rng=Streams(4), checkpoint=tmp_path / "b")
    assert same(a.params, again.params)


def long_run(path, pause=0.0):
    """The run that is killed below: 120 steps, a checkpoint every 20."""
    loss, params, batches = problem()

    def drawn(rng):
        if pause:
            print("step", flush=True)
            time.sleep(pause)
        return batches(rng)

    schedule = cosine(120, 10)
    return fit(
        loss, params, drawn, steps=120, rng=Streams(2), optimizer=ADAM, ema=0.99, clip_norm=1.0, schedule=schedule, log_every=7,
        checkpoint=path, checkpoint_every=20,
    )  # fmt: skip


def in_a_process_of_its_own(call):
    """Start ``test_fit.CALL`` in a fresh interpreter, without the hooks of the test suite."""
    code = (
        f"import sys, torch; torch.set_num_threads(1); sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_fit; test_fit.{call}"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "whole"
    long_run(path)
    return path.read_bytes()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_gives_the_same_bytes(tmp_path, sign, uninterrupted):
    process = in_a_process_of_its_own(f"long_run({str(tmp_path / 'stopped')!r}, pause=0.01)")
    assert process.stdout is not None
    for count, _ in enumerate(process.stdout):
        if count == 67:
            process.send_signal(sign)
            break
    _, errors = process.communicate()
    at = load_tensors(tmp_path / "stopped")[1]["step"]
    if sign == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert at == 60
    else:
        assert f"KeyboardInterrupt: stopped at step {at} of 120" in errors
        assert at > 66
    long_run(tmp_path / "stopped")
    assert (tmp_path / "stopped").read_bytes() == uninterrupted


def test_interrupt_raises_after_writing(tmp_path):
    calls = []

    def batches(rng):
        calls.append(1)
        if len(calls) == 13:
            os.kill(os.getpid(), signal.SIGINT)
        return data(rng)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step 13 of 40"):
        fit(mean_loss, {"mean": torch.zeros(2)}, batches, steps=40, rng=Streams(0), optimizer=ADAM, checkpoint=tmp_path / "c")
    assert signal.getsignal(signal.SIGINT) is before
    resumed = fit(mean_loss, {"mean": torch.zeros(2)}, data, steps=40, rng=Streams(0), optimizer=ADAM, checkpoint=tmp_path / "c")
    whole = fit(mean_loss, {"mean": torch.zeros(2)}, data, steps=40, rng=Streams(0), optimizer=ADAM)
    assert same(resumed.params, whole.params)


def dying(draw, at):
    """Batches of ``draw``; the process dies at one of them."""
    calls = []

    def batches(rng):
        calls.append(1)
        if len(calls) == at:
            raise RuntimeError("killed")
        return draw(rng)

    return batches


def test_the_averages_of_a_record_go_on_where_the_checkpoint_left_them(tmp_path):
    """The checkpoint at step 10 lies between the records at steps 7 and 14: those from 14 on are the ones of a run that was not killed."""
    whole, tail = [], []
    run = partial(fit, mean_loss, {"mean": torch.zeros(2)}, steps=30, optimizer=ADAM, log_every=7, checkpoint_every=10)
    run(data, rng=Streams(0), record=[whole.append])
    with pytest.raises(RuntimeError, match="killed"):
        run(dying(data, 13), rng=Streams(0), checkpoint=tmp_path / "c")
    run(data, rng=Streams(0), checkpoint=tmp_path / "c", record=[tail.append])
    assert [p.step for p in tail] == [14, 21, 28, 30]
    assert tail == whole[1:]


def test_a_record_long_after_the_last_checkpoint_writes_one(tmp_path, monkeypatch):
    """Two minutes a step, records every 2 steps, checkpoints every 1000: written at steps 4 and 8, after eight minutes each, and at the end."""
    clock, seen, path = [0.0], [], tmp_path / "c"
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slow(rng):
        seen.append(load_tensors(path)[1]["step"] if path.exists() else 0)
        clock[0] += 120
        return data(rng)

    run = partial(fit, mean_loss, {"mean": torch.zeros(2)}, optimizer=ADAM, log_every=2, steps=11, compile=False)
    run(slow, rng=Streams(0), checkpoint=path)
    assert seen == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8]
    whole = path.read_bytes()
    path.unlink()
    clock[0] = 0.0
    with pytest.raises(RuntimeError, match="killed"):
        run(dying(slow, 10), rng=Streams(0), checkpoint=path)
    assert load_tensors(path)[1]["step"] == 8
    run(data, rng=Streams(0), checkpoint=path)
    assert path.read_bytes() == whole


def test_a_halved_rate_stays_halved_after_resuming(tmp_path):
    """Gradient descent on 1/2 a^2 contracts by |1 - lr|: 2.5 diverges and is halved."""
    seen = []
    run = partial(
        fit, lambda p, batch: (0.5 * p["a"].square().sum(), {}), {"a": torch.ones(1)}, lambda rng: None,
        optimizer=partial(torch.optim.SGD, lr=2.5), log_every=10, checkpoint=tmp_path / "c", record=[seen.append],
    )  # fmt: skip
    with pytest.warns(PopflowWarning, match="half the learning rate"):
        assert run(steps=40, rng=Streams(0)).rollbacks == 1
    assert run(steps=60, rng=Streams(0)).rollbacks == 1
    assert [p.lr for p in seen[-2:]] == [1.25, 1.25]


def test_the_guard_measures_from_the_lowest_loss_also_after_resuming(tmp_path):
    """Mean losses -10, 0 and 5: the last is 15 above the lowest, more than the largest size, though only 5 above the one before."""
    losses = iter([-10.0, 0.0, 5.0])
    run = partial(
        fit, lambda p, batch: (0 * p["a"].sum() + batch, {}), {"a": torch.ones(1)}, lambda rng: torch.tensor(next(losses)),
        log_every=1, checkpoint=tmp_path / "c", spike=1.0, max_rollbacks=0,
    )  # fmt: skip
    for steps in (1, 2):
        run(steps=steps, rng=Streams(0))
    with pytest.raises(DivergenceError, match="the mean loss is 5 at step 3, it was -10 at best"):
        run(steps=3, rng=Streams(0))
    losses = iter([-10.0, 0.0, 5.0])
    with pytest.raises(DivergenceError, match="the mean loss is 5 at step 3, it was -10 at best"):
        run(steps=3, rng=Streams(0), checkpoint=None)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c"
    run = partial(fit, mean_loss, {"mean": torch.zeros(2)}, data, optimizer=ADAM, checkpoint=path)
    run(steps=10, rng=Streams(0))
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        run(steps=20, rng=Streams(0))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_too_high_a_learning_rate_is_halved_until_it_works():
    """For loss 1/2 a^2 gradient descent contracts by |1 - lr|: 5 diverges, 2.5 diverges, 1.25 converges."""
    run = partial(
        fit, lambda p, batch: (0.5 * p["a"].square().sum(), {}), {"a": torch.ones(1)}, lambda rng: None, steps=200, rng=Streams(0)
    )
    with pytest.warns(PopflowWarning, match="half the learning rate"):
        result = run(optimizer=partial(torch.optim.SGD, lr=5.0), log_every=10)
    assert result.rollbacks == 2
    assert result.params["a"].abs() < 1e-6


def test_gives_up_with_advice():
    with pytest.warns(PopflowWarning), pytest.raises(DivergenceError, match=r"halved 2 times.*Fix: start with a lower"):
        fit(lambda p, batch: (p["a"].sum() / 0.0, {}), {"a": torch.ones(1)}, lambda rng: None, steps=50, rng=Streams(0), max_rollbacks=2)


def test_a_finite_loss_with_infinite_gradients_is_caught():
    """sqrt at zero: the loss is 0, its gradient infinite. The parameters are looked at, not only the loss."""
    with pytest.warns(PopflowWarning), pytest.raises(DivergenceError):
        fit(lambda p, batch: (p["a"].sqrt().sum(), {}), {"a": torch.zeros(1)}, lambda rng: None, steps=1, rng=Streams(0))


def test_a_falling_negative_loss_is_no_divergence():
    """An action may start at zero and fall without bound."""
    result = fit(
        lambda p, batch: (p["a"].sum(), {}),
        {"a": torch.zeros(1)},
        lambda rng: None,
        steps=100,
        rng=Streams(0),
        optimizer=partial(torch.optim.SGD, lr=100.0),
        log_every=1,
    )
    assert result.rollbacks == 0
    assert result.params["a"].item() == -10_000


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "c"
    run = partial(fit, mean_loss, batches=data, optimizer=ADAM, checkpoint=path)
    run(params={"mean": torch.zeros(2)}, steps=10, rng=Streams(0))
    with pytest.raises(CheckpointError, match="seed 0"):
        run(params={"mean": torch.zeros(2)}, steps=10, rng=Streams(1))
    with pytest.raises(CheckpointError, match="another model"):
        run(params={"mean": torch.zeros(1)}, steps=10, rng=Streams(0))
    with pytest.raises(CheckpointError, match="past steps=5"):
        run(params={"mean": torch.zeros(2)}, steps=5, rng=Streams(0))
    with pytest.raises(CheckpointError, match="another model"):
        run(params={"mean": torch.zeros(2)}, steps=10, rng=Streams(0), ema=0.9)


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        (lambda p, b: p["mean"].sum(), TypeError, "wanted .scalar tensor, mapping"),
        (lambda p, b: (p["mean"], {}), TypeError, "without dimensions"),
        (lambda p, b: (p["mean"].sum(), {"m": 1.0}), TypeError, "m: loss returned float"),
    ],
)
def test_bad_losses_are_named(bad, error, match):
    with pytest.raises(error, match=match):
        fit(bad, {"mean": torch.zeros(2)}, data, steps=1, rng=Streams(0))


def test_bad_arguments_are_named():
    run = partial(fit, mean_loss, {"mean": torch.zeros(2)}, data, rng=Streams(0))
    for arguments, match in (
        ({"steps": 0}, "steps=0"),
        ({"steps": 1, "ema": 1.0}, "ema=1.0"),
        ({"steps": 1, "clip_norm": 0.0}, "clip_norm=0.0"),
        ({"steps": 1, "log_every": 0}, "log_every=0"),
    ):
        with pytest.raises(ValueError, match=match):
            run(**arguments)
    with pytest.raises(ValueError, match="params is empty"):
        fit(mean_loss, {}, data, steps=1, rng=Streams(0))
    with pytest.raises(ValueError, match="warmup"):
        cosine(10, warmup=10)


@pytest.mark.usefixtures("unchecked")
def test_wrong_kinds_are_named():
    run = partial(fit, mean_loss, {"mean": torch.zeros(2)}, data, rng=Streams(0))
    for arguments, match in (
        ({"steps": "8"}, "steps='8', wanted a whole number"),
        ({"steps": 2.5}, r"steps=2\.5, wanted a whole number"),
        ({"steps": 1, "ema": "0.9"}, r"ema='0\.9', wanted a number"),
        ({"steps": 1, "clip_norm": torch.ones(2)}, r"clip_norm=tensor\(\[1\., 1\.\]\), wanted a number"),
        ({"steps": 1, "spike": "inf"}, "spike='inf', wanted a number"),
    ):
        with pytest.raises(TypeError, match=match):
            run(**arguments)


def test_no_global_randomness_is_used():
    state = torch.get_rng_state()
    fit(mean_loss, {"mean": torch.zeros(2)}, data, steps=5, rng=Streams(0))
    assert torch.equal(state, torch.get_rng_state())


def compiled_equals_eager():
    """One graph for gradients, clipping, AdamW and the average; the rates change, the guard goes back, a second learner comes along."""
    assert not hasattr(torch.ops.popflow, "product")  # the operator of compiled steps is registered by the first of them
    loss, params, batches = problem()
    draws = []

    def mostly(rng):
        """Batches of which the 34th is poisoned."""
        x, t = batches(rng)
        draws.append(1)
        return (x * torch.nan if len(draws) == 34 else x), t

    records, results = {}, {}
    for compile in (False, True):
        records[compile] = []
        draws.clear()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", PopflowWarning)
            results[compile] = fit(
                loss, params, mostly, steps=60, optimizer=partial(torch.optim.AdamW, lr=0.02), ema=0.9, clip_norm=1.0, rng=Streams(3),
                schedule=cosine(60, 5), log_every=10, record=[records[compile].append], compile=compile,
            )  # fmt: skip
        assert sum(w.category is PopflowWarning for w in warned) == 1
        assert results[compile].rollbacks == 1
        assert results[compile].compiled is compile
    for name, p in results[False].params.items():
        torch.testing.assert_close(results[True].params[name], p, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(results[True].ema[name], results[False].ema[name], rtol=1e-3, atol=1e-4)
    for eager, compiled in zip(records[False], records[True], strict=True):
        assert compiled.metrics == pytest.approx(eager.metrics, rel=1e-3)
        assert compiled.lr == pytest.approx(eager.lr, rel=1e-6)
    assert hasattr(torch.ops.popflow, "product") == onednn_is_faster()
    # The same loss and shapes with another optimiser must not meet the graph of the first.
    for decay in (0.0, 10.0):
        run = partial(
            fit, mean_loss, {"mean": torch.ones(2)}, data, steps=9, optimizer=partial(torch.optim.SGD, lr=0.05, weight_decay=decay)
        )
        torch.testing.assert_close(run(rng=Streams(0), compile=True).params, run(rng=Streams(0)).params)


def test_compiled_equals_eager():
    process = in_a_process_of_its_own("compiled_equals_eager()")
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]


def test_a_loss_that_does_not_compile_is_named():
    def loss(params, batch):
        return params["mean"].square().sum() * (1.0 if params["mean"].sum().item() < 9 else 2.0), {}

    with pytest.raises(RuntimeError, match=r"does not compile as one graph.*compile=False"):
        fit(loss, {"mean": torch.zeros(2)}, data, steps=3, rng=Streams(0), compile=True)


def test_auto_does_not_compile_short_runs_and_the_loop_costs_little():
    """Processor time of the loop over that of its own step, which is as small as a step can be: two numbers."""
    params = {"mean": torch.zeros(2)}
    learner, rng = Learner(mean_loss, params, ADAM, False, None), Streams(0)
    for _ in range(20):
        learner(data(rng))
    start = time.process_time()
    for _ in range(500):
        learner(data(rng))
    bare = time.process_time() - start
    start = time.process_time()
    result = fit(mean_loss, params, data, steps=500, rng=Streams(0), optimizer=ADAM)
    assert not result.compiled
    assert time.process_time() - start < 2 * bare
