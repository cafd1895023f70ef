"""The only loop: what recorders see, which grids it takes, and going on after a kill as if nothing had happened."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from popflow.core import (
    CheckpointError,
    Ito,
    Population,
    Rates,
    State,
    Step,
    Streams,
    Trace,
    chain,
    euler,
    langevin,
    metropolis,
    resample_if,
    simulate,
)
from popflow.core.checkpoint import load_tensors, save_tensors
from popflow.core.simulate import monotone


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def busy() -> Step:
    """A step that uses every stream, weights, companions and resampling."""

    def process(t: float, pop: Population) -> Rates:
        return Rates(-pop.x, 0.5, Ito(-pop.x.square().sum(-1), pop.x), {"path": Ito(t, pop.x)})

    return chain(
        resample_if(0.9),
        euler(process),
        langevin(lambda t, pop: -pop.x, 0.01),
        metropolis(lambda t, pop: -pop.x.square().sum(-1) / 2, 0.1),
    )


def start(batch: tuple[int, ...], n: int) -> Population:
    path, accepted = torch.zeros(*batch, n, dtype=torch.float64), torch.zeros(*batch, n, dtype=torch.long)
    return Population.of(normal(*batch, n, 2), batch=len(batch), path=path, accepted=accepted)


TIMES = torch.linspace(0, 1, 13, dtype=torch.float64)


@pytest.mark.parametrize(("batch", "n"), [((), 1), ((), 20), ((2, 3), 6)])
@pytest.mark.parametrize("killed_after", [0, 1, 7, 12])
def test_kill_and_resume_gives_identical_bytes(tmp_path: Path, batch: tuple[int, ...], n: int, killed_after: int) -> None:
    whole = Streams(3)
    through = State(12, 1.0, simulate(busy(), start(batch, n), TIMES, rng=whole), whole)
    wanted = save_tensors(tmp_path / "whole", through.tensors()).read_bytes()

    class Killed(Exception):
        pass

    def checkpoint(state: State) -> None:
        save_tensors(tmp_path / "last", state.tensors())
        if state.k == killed_after:
            raise Killed

    with pytest.raises(Killed):
        simulate(busy(), start(batch, n), TIMES, rng=Streams(3), record=[checkpoint])
    rng = Streams(3)
    state = State.of(load_tensors(tmp_path / "last")[0], rng)
    assert (state.k, state.t) == (killed_after, TIMES[killed_after].item())
    resumed = State(12, 1.0, simulate(busy(), state.pop, TIMES, rng=rng, start=state.k), rng)
    assert save_tensors(tmp_path / "resumed", resumed.tensors()).read_bytes() == wanted


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    runs = [simulate(busy(), start((), 5), TIMES, rng=Streams(seed)).x.numpy().tobytes() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_recorders_see_every_state_once() -> None:
    seen: list[tuple[int, float]] = []
    step = euler(lambda t, pop: Rates(-pop.x))
    pop = Population.of(torch.ones(1, 1, dtype=torch.float64))
    simulate(step, pop, [0.0, 0.5, 2.0], rng=Streams(0), record=(lambda state: seen.append((state.k, state.t)) for _ in range(2)))
    assert seen == [(0, 0.0)] * 2 + [(1, 0.5)] * 2 + [(2, 2.0)] * 2
    seen.clear()
    simulate(step, pop, [0.0, 0.5, 2.0], rng=Streams(0), start=1, record=[lambda state: seen.append((state.k, state.t))])
    assert seen == [(2, 2.0)]


def test_nothing_is_left_to_do_at_the_end_of_the_grid() -> None:
    pop = Population.of(torch.ones(1, 1))
    assert simulate(busy(), pop, [0.0, 1.0], rng=Streams(0), start=1) is pop


def test_decreasing_times_give_negative_steps() -> None:
    steps: list[float] = []

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        steps.append(t1 - t0)
        return pop

    simulate(step, Population.of(torch.ones(1, 1)), [4.0, 1.0, 0.5], rng=Streams(0))
    assert steps == [-3.0, -0.5]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0], "holds 1 value"),
        ([], "holds 0 value"),
        ([0.0, 1.0, 1.0], r"times\[1\]=1.0 and times\[2\]=1.0 .* strictly increasing"),
        ([1.0, 0.5, 0.7, 0.0], r"times\[1\]=0.5 and times\[2\]=0.7 .* strictly decreasing"),
        ([0.0, math.nan, 1.0], "goes from 0.0 to 1.0 and holds NaN or infinite"),
        ([math.inf, 0.0], "goes from inf to 0.0 and holds NaN or infinite"),
        (torch.linspace(1, 1 + 1e-6, 100), "build them in float64"),
    ],
)
def test_times_that_are_not_monotone_are_named(times, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(busy(), start((), 2), times, rng=Streams(0))


def test_times_may_be_integers_or_tensors() -> None:
    assert monotone([0, 1, 3]) == [0.0, 1.0, 3.0]
    assert monotone(torch.tensor([1, 0])) == [1.0, 0.0]


@pytest.mark.parametrize("first", [-1, 2, 100])
def test_a_start_outside_the_grid_is_named(first: int) -> None:
    with pytest.raises(ValueError, match=rf"start={first}, wanted a step number in 0..1"):
        simulate(busy(), start((), 2), [0.0, 1.0], rng=Streams(0), start=first)


def test_tensors_of_something_else_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"lack 'log_w' and are not the state of a simulation: they hold \['x'\]"):
        State.of({"x": torch.zeros(1)}, Streams(0))


def test_trace_keeps_copies_of_every_state() -> None:
    shared = torch.zeros(2)
    trace = Trace(shared=lambda state: shared, mean=lambda state: state.pop.mean(), number=lambda state: 2.0)
    pop = Population.of(torch.ones(3, 2, dtype=torch.float64))

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        shared.add_(1)
        return pop.replace(x=pop.x + t1 - t0)

    simulate(step, pop, [0.0, 1.0, 4.0], rng=Streams(0), record=[trace])
    assert trace["shared"].tolist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    assert trace["mean"].tolist() == [[1.0, 1.0], [2.0, 2.0], [5.0, 5.0]]
    assert trace["t"].tolist() == [0.0, 1.0, 4.0]
    assert trace["number"].tolist() == [2.0] * 3
