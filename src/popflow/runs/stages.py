"""Stages of a run: what is recorded while one runs, where it is checkpointed, and how it resumes.

    flow.fit(..., **training(run, "fit", steps))
    sample(..., **simulation(run, "sample", rng, last=steps, trace=trace))
    table = once(run, "table", lambda: {"cost": cost.table()})["cost"]

Stages have readable names; the checkpoint of one is the file ``NAME.safetensors`` of the run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

from torch import Tensor

from popflow.core.checks import at_least_one
from popflow.core.errors import CheckpointError
from popflow.core.population import Population
from popflow.core.simulate import Recorder, State, Trace, simulate
from popflow.core.steps import Step
from popflow.core.streams import Streams
from popflow.runs.run import Run


@runtime_checkable
class Trained(Protocol):
    """What a training loop reports: the step just taken and its metrics."""

    @property
    def step(self) -> int:
        """Steps done."""
        ...

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Name -> number."""
        ...


class Training(TypedDict):
    """Keyword arguments of `popflow.learn.fit` and of methods built on it."""

    record: list[Callable[[Trained], None]]
    checkpoint: Path
    bar: bool


class Simulation(TypedDict):
    """Keyword arguments of a sampler that simulates, such as `popflow.compose.sample`."""

    record: list[Recorder]
    resume: State | None


def training(run: Run, stage: str, total: int) -> Training:
    """Train as a stage of the run: progress, metrics, checkpoints, resume.

    Args:
        run: The run.
        stage: Name of the stage.
        total: Training steps, for the progress line.
    """

    def record(trained: Trained) -> None:
        run.metrics.add(stage, trained.step, trained.metrics)
        run.progress(stage, trained.step, total)

    return {"record": [record], "checkpoint": run.path / f"{slug(stage)}.safetensors", "bar": False}  # the run shows progress


def simulation(
    run: Run,
    stage: str,
    rng: Streams,
    *,
    last: int,
    every: int = 25,
    trace: Trace | None = None,
    **metrics: Callable[[State], Tensor | float],
) -> Simulation:
    """Simulate as a stage of the run: progress, metrics, a checkpoint at every ``every``-th state and at the last, resume.

    A run that was killed and started again returns the same population, and leaves the same files, as one that was not.

    Args:
        run: The run.
        stage: Name of the stage.
        rng: The random streams; put back to where the checkpoint left them.
        last: Number of the last state.
        every: States between two checkpoints.
        trace: A trace that sees each state before this recorder does; its last row is written to ``metrics.jsonl``.
        **metrics: Further functions of the state for ``metrics.jsonl``.

    Raises:
        CheckpointError: when a checkpoint cannot be written or read; the one before is whole.
        ValueError: unless ``every >= 1``.
    """
    at_least_one(every=every)
    name, state = slug(stage), None

    def record(state: State) -> None:
        row = {"t": state.t, **({} if trace is None else trace.last()), **{key: f(state) for key, f in metrics.items()}}
        if len(row) > 1:
            run.metrics.add(stage, state.k, row)
        if state.k == last or (state.k and state.k % every == 0):
            run.save(name, state.tensors(), {"stage": stage, "k": state.k})
        run.progress(stage, state.k, last)

    if run.has(name):
        state = State.of(run.load(name)[0], rng)
        state = State(state.k, state.t, state.pop.to(run.device), state.rng)
        if (trace is not None or metrics) and not any(row["step"] >= state.k for row in run.metrics.rows(stage)):
            raise CheckpointError(
                f"{run.metrics.path} is damaged: it lacks step {state.k} of {stage}, which {name}.safetensors has reached. Fix: restore it, or give "
                "another --out."
            )
        run.log(f"{stage}: resuming from step {state.k}")
    return {"record": [record], "resume": state}


def simulated(
    run: Run,
    stage: str,
    step: Step,
    pop: Population,
    times: Sequence[float] | Tensor,
    *,
    rng: Streams,
    every: int = 25,
    record: Iterable[Recorder] = (),
    **metrics: Callable[[State], Tensor | float],
) -> Population:
    """`popflow.core.simulate` as a stage of the run; the arguments are those of `simulate` and of `simulation`."""
    stages = simulation(run, stage, rng, last=len(times) - 1, every=every, trace=None, **metrics)
    state = stages["resume"]
    start, pop = (0, pop) if state is None else (state.k, state.pop)
    return simulate(step, pop, times, rng=rng, record=[*record, *stages["record"]], start=start)


def once(run: Run, stage: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Compute named tensors and save them, or read them back if an earlier process did; on the CPU."""
    name = slug(stage)
    if not run.has(name):
        run.save(name, compute())
    return run.load(name)[0]


def slug(stage: str) -> str:
    """Name of the file of a stage.

    >>> slug("exact FKC + Langevin")
    'exact-fkc-langevin'
    """
    return re.sub(r"\W+", "-", stage.lower())
