"""Recorders that write to a run: checkpoints and metrics of a simulation, metrics of a training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from popflow.core.population import Population
from popflow.core.simulate import Recorder, State, simulate
from popflow.core.steps import Step
from popflow.core.streams import Streams
from popflow.runs.run import Run


@runtime_checkable
class Trained(Protocol):
    """What a training loop reports: the step it has done and what it measured there."""

    @property
    def step(self) -> int:
        """Steps done."""
        ...

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Name -> number."""
        ...


def checkpointed(
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
    """`popflow.core.simulate` inside a run: goes on from the last checkpoint of the stage, records metrics, checkpoints as it goes.

    A run that was killed and started again returns the same population, and leaves the same files, as one that was not.

    Args:
        run: The run.
        stage: Name of this simulation within the run; its checkpoints are ``STAGE.safetensors``.
        step: What happens between two times.
        pop: The population at ``times[0]``.
        times: Monotone times.
        rng: The random streams; put back to where the checkpoint left them.
        every: States between two checkpoints; the last state is always one.
        record: Further recorders (they see the states of this process only).
        **metrics: Functions of the state, written to ``metrics.jsonl`` at every state.

    Raises:
        CheckpointError: when a checkpoint cannot be written or read; the one before is whole.
        ValueError: unless ``every >= 1``.
    """
    state = last_checkpoint(run, stage, rng)
    if state is not None:
        run.log(f"{stage}: going on from step {state.k}")
    start, pop = (state.k, state.pop) if state is not None else (0, pop)
    recorder = checkpoint(run, stage, last=len(times) - 1, every=every, **metrics)
    return simulate(step, pop, times, rng=rng, record=[*record, recorder], start=start)


def checkpoint(run: Run, stage: str, *, last: int, every: int = 25, **metrics: Callable[[State], Tensor | float]) -> Recorder:
    """A recorder: metrics of every state, the state itself at every ``every``-th and at the last."""
    if every < 1:
        raise ValueError(f"every={every}, wanted at least 1: the number of states between two checkpoints.")

    def record(state: State) -> None:
        if metrics:
            run.metrics.add(stage, state.k, {"t": state.t, **{name: f(state) for name, f in metrics.items()}})
        if state.k == last or (state.k and state.k % every == 0):
            run.save(stage, state.tensors(), {"stage": stage, "k": state.k})
        run.progress(stage, state.k, last)

    return record


def last_checkpoint(run: Run, stage: str, rng: Streams) -> State | None:
    """The last checkpointed state of a stage, on the device of the run, with ``rng`` put back; None when there is none."""
    if not run.has(stage):
        return None
    state = State.of(run.load(stage)[0], rng)
    return State(state.k, state.t, state.pop.to(run.device), state.rng)


def training(run: Run, stage: str, total: int) -> Callable[[Trained], None]:
    """A recorder for a training loop: each report becomes a row of ``metrics.jsonl``."""

    def record(trained: Trained) -> None:
        run.metrics.add(stage, trained.step, trained.metrics)
        run.progress(stage, trained.step, total)

    return record
