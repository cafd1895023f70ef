"""Stages: a simulation that was cut off anywhere ends as if it had not been."""

import sys
from types import SimpleNamespace

import pytest
import torch

from popflow.core import CheckpointError, Population, Rates, State, Streams, Trace, chain, euler, resample_if, simulate, temper
from popflow.runs import Run, once, simulated, simulation, training

TIMES = torch.linspace(0, 1, 21, dtype=torch.float64)
STEP = chain(
    resample_if(0.7),
    euler(lambda t, pop: Rates(drift=-pop.x, diffusion=1.0)),
    temper(lambda pop, t0, t1: -(t1 - t0) * pop.x.square().sum(-1)),
)


class CutError(Exception):
    """The power went."""


def run_to(path, cut=None, batch=(), every=4):
    rng = Streams(7)
    pop = Population.of(rng.normal("start", torch.empty(*batch, 32, 2)), batch=len(batch))

    def power(state):
        if state.k == cut:
            raise CutError

    with Run.open(path, {"seed": 7}, job="test") as run:
        return simulated(
            run, "sample", STEP, pop, TIMES, rng=rng, every=every, record=[power], ess=lambda s: s.pop.ess(), log_z=lambda s: s.pop.log_z
        )


def files(path):
    return {name: (path / name).read_bytes() for name in ("metrics.jsonl", "sample.safetensors", "config.json")}


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_run_cut_off_twice_equals_one_that_was_not(tmp_path, batch):
    whole = run_to(tmp_path / "whole", batch=batch)
    for cut in (3, 11):
        with pytest.raises(CutError):
            run_to(tmp_path / "cut", cut, batch)
    last = run_to(tmp_path / "cut", batch=batch)
    assert torch.equal(last.x, whole.x)
    assert torch.equal(last.log_normalizer(), whole.log_normalizer())
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_it_is_the_simulation_itself(tmp_path):
    rng = Streams(7)
    pop = Population.of(rng.normal("start", torch.empty(32, 2)))
    assert torch.equal(simulate(STEP, pop, TIMES, rng=rng).x, run_to(tmp_path).x)


def test_a_finished_stage_is_read_not_done_again(tmp_path):
    whole = run_to(tmp_path)
    before = files(tmp_path)
    with Run.open(tmp_path, {"seed": 7}, job="test") as run:

        def never(*_):
            pytest.fail("the stage was done again")

        again = simulated(run, "sample", never, whole, TIMES, rng=Streams(7), every=4)
    assert torch.equal(again.x, whole.x)
    assert files(tmp_path) == before


def test_metrics_that_end_one_row_before_the_checkpoint_are_damaged(tmp_path):
    run_to(tmp_path)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged: it lacks step 20 of sample"):
        run_to(tmp_path)


def test_checkpoints_fall_where_they_should(tmp_path):
    with Run.open(tmp_path, {}, job="test") as run:
        seen = []
        (recorder,) = simulation(run, "s", Streams(0), last=10, every=4)["record"]
        for k in range(11):
            before = (tmp_path / "s.safetensors").read_bytes() if run.has("s") else b""
            recorder(State(k, float(k), Population.of(torch.full((2, 1), float(k))), Streams(0)))
            if run.has("s") and (tmp_path / "s.safetensors").read_bytes() != before:
                seen.append(k)
    assert seen == [4, 8, 10]


def test_every_must_be_positive(tmp_path):
    with Run.open(tmp_path, {}, job="test") as run, pytest.raises(ValueError, match="every=0, wanted at least 1"):
        simulation(run, "s", Streams(0), last=10, every=0)


def test_no_checkpoint_and_a_foreign_one(tmp_path):
    with Run.open(tmp_path, {}, job="test") as run:
        assert simulation(run, "s", Streams(0), last=10)["resume"] is None
        run.save("s", {"weights": torch.ones(2)})
        with pytest.raises(CheckpointError, match="lack 'x' and are not the state of a simulation"):
            simulation(run, "s", Streams(0), last=10)


def test_a_trace_is_written_and_not_computed_again(tmp_path):
    calls = []
    trace = Trace(ess=lambda state: calls.append(state.k) or state.pop.ess())
    with Run.open(tmp_path, {}, job="test") as run:
        (recorder,) = simulation(run, "s", Streams(0), last=1, trace=trace)["record"]
        for k in range(2):
            state = State(k, float(k), Population.of(torch.zeros(4, 1)), Streams(0))
            trace(state)
            recorder(state)
        assert run.metrics.rows("s") == [{"stage": "s", "step": k, "t": float(k), "ess": 4.0} for k in range(2)]
    assert calls == [0, 1]


def test_what_was_computed_once_is_read_afterwards(tmp_path):
    with Run.open(tmp_path, {}, job="test") as run:
        first = once(run, "The table", lambda: {"cost": torch.arange(3)})
    with Run.open(tmp_path, {}, job="test") as run:
        again = once(run, "The table", lambda: pytest.fail("it was computed again"))
    assert torch.equal(first["cost"], again["cost"])
    assert (tmp_path / "the-table.safetensors").exists()


def test_progress_is_told(tmp_path):
    told = []
    with Run.open(tmp_path, {}, job="test", progress=lambda *where: told.append(where)) as run:
        (record,) = training(run, "fit", 2)["record"]
        record(SimpleNamespace(step=1, metrics={"loss": torch.tensor(0.5)}))
        record(SimpleNamespace(step=2, metrics={"loss": torch.tensor(0.25)}))
        rows = run.metrics.rows("fit")
    assert told == [("fit", 1, 2), ("fit", 2, 2)]
    assert rows == [{"stage": "fit", "step": 1, "loss": 0.5}, {"stage": "fit", "step": 2, "loss": 0.25}]


def test_a_composition_that_was_cut_off_goes_on(tmp_path):
    """The recorders serve `popflow.compose.sample` as they are: samples, weights and random streams go on bit for bit."""
    from popflow.compose import feynman_kac, gaussian_mixture, karras, sample

    expert = gaussian_mixture(torch.tensor([[-1.0], [1.0]]), std=0.5)
    sampler, sigmas = feynman_kac(expert**2, kernel_steps=1), karras(15, 0.05, 10.0)

    def go(path, cut=None):
        def power(state):
            if state.k == cut:
                raise CutError

        with Run.open(path, {"seed": 3}, job="sample") as run:
            rng = Streams(3)
            stage = simulation(run, "sample", rng, last=len(sigmas) - 1, every=4, ess=lambda s: s.pop.ess())
            record = [power, *stage["record"]]
            return sample(sampler, sigmas, particles=16, runs=2, rng=rng, record=record, resume=stage["resume"]).population

    with pytest.raises(CutError):
        go(tmp_path / "cut", 10)
    ends = go(tmp_path / "cut"), go(tmp_path / "whole")
    assert torch.equal(ends[0].x, ends[1].x)
    assert torch.equal(ends[0].log_normalizer(), ends[1].log_normalizer())
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_training_that_was_cut_off_goes_on(tmp_path):
    """The rows of an interrupted `popflow.learn.fit` are those of an uninterrupted one."""
    from popflow.learn import fit

    def loss(params, batch):
        return (params["mean"] - batch).square().mean(), {}

    def go(path, cut=None):
        def power(progress):
            if progress.step == cut:
                raise CutError

        with Run.open(path, {"seed": 0}, job="test") as run:
            stage = training(run, "fit", 40)
            record = [*stage["record"], power]
            batches = lambda rng: rng.normal("data", torch.empty(8, 2))  # noqa: E731
            done = fit(
                loss,
                {"mean": torch.ones(2)},
                batches,
                steps=40,
                rng=Streams(0),
                record=record,
                log_every=4,
                checkpoint=stage["checkpoint"],
                checkpoint_every=10,
            )
            return done.params["mean"], run.metrics.path.read_bytes()

    with pytest.raises(CutError):
        go(tmp_path / "cut", 28)
    (mean, rows), (whole, whole_rows) = go(tmp_path / "cut"), go(tmp_path / "whole")
    assert torch.equal(mean, whole)
    assert rows == whole_rows
    assert rows.count(b"\n") == 10


def test_progress_of_training_is_shown_once(tmp_path, monkeypatch, capsys):
    """On a terminal `popflow.learn.fit` has a bar of its own, unless the run shows progress."""
    from popflow.learn import fit

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    arguments = (lambda params, batch: (params["mean"].square().sum(), {}), {"mean": torch.ones(2)}, lambda rng: torch.ones(1))
    told = []
    with Run.open(tmp_path / "run", {"seed": 0}, job="test", progress=lambda *where: told.append(where)) as run:
        fit(*arguments, steps=4, rng=Streams(0), **training(run, "fit", 4))
    assert told == [("fit", 4, 4)]
    assert capsys.readouterr().err == ""
    fit(*arguments, steps=4, rng=Streams(0))
    assert "4/4" in capsys.readouterr().err
