"""The only loop: take a population through a grid of times and show every state to the recorders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.core.errors import CheckpointError
from popflow.core.population import Population
from popflow.core.steps import Step
from popflow.core.streams import Streams


@dataclass(frozen=True, slots=True)
class State:
    """The state of a simulation: step number, time, population and random streams. Enough to resume from."""

    k: int
    t: float
    pop: Population
    rng: Streams

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, for a checkpoint (populations of tensors only)."""
        pop = self.pop
        named = {
            "k": torch.tensor(self.k),
            "t": torch.tensor(self.t, dtype=torch.float64),
            "x": pop.x,
            "log_w": pop.log_w,
            "log_z": pop.log_z,
        }
        named |= {f"aux.{name}": value for name, value in pop.aux.items()}
        return named | {f"rng.{name}": value for name, value in self.rng.state().items()}

    @staticmethod
    def of(tensors: Mapping[str, Tensor], rng: Streams) -> State:
        """Restore a state from `tensors`; the random streams are loaded into ``rng``.

        Raises:
            CheckpointError: when a tensor is missing, or a random state is damaged.
        """
        try:
            pop = Population(tensors["x"], tensors["log_w"], tensors["log_z"], _under(tensors, "aux."))
            k, t = int(tensors["k"]), float(tensors["t"])
        except KeyError as error:
            raise CheckpointError(
                f"the tensors lack {error} and are not the state of a simulation: they hold {sorted(tensors)}. Fix: give the checkpoint of this run."
            ) from None
        rng.load(_under(tensors, "rng."))
        return State(k, t, pop, rng)


Recorder = Callable[[State], None]
"""Called with every state of a simulation, the first one included. A checkpoint is a recorder."""


def simulate(
    step: Step, pop: Population, times: Sequence[float] | Tensor, *, rng: Streams, record: Iterable[Recorder] = (), start: int = 0
) -> Population:
    """Apply ``step`` from each time to the next and return the final population.

    Args:
        step: What happens between two times.
        pop: The population at ``times[start]``.
        times: Strictly monotone, up or down, in float64 (float32 loses small differences).
        rng: The random streams.
        record: Recorders, called with every state; after resuming, from the first new state on.
        start: Number of steps already done, when resuming from a checkpoint.

    Raises:
        ValueError: when the times are not strictly monotone, or ``start`` lies outside them.

    Example:
        >>> from popflow.core import euler, Rates
        >>> decay = euler(lambda t, pop: Rates(drift=-pop.x))
        >>> last = simulate(decay, Population.of(torch.ones(1, 1)), torch.linspace(0, 1, 1001, dtype=torch.float64), rng=Streams(0))
        >>> round(last.x.item(), 3)
        0.368
    """
    grid, record = monotone(times), tuple(record)
    if not 0 <= start < len(grid):
        raise ValueError(f"start={start}, wanted a step number in 0..{len(grid) - 1}: the checkpoint belongs to another grid.")
    if start == 0:
        for recorder in record:
            recorder(State(0, grid[0], pop, rng))
    for k in range(start, len(grid) - 1):
        pop = step(pop, grid[k], grid[k + 1], rng)
        for recorder in record:
            recorder(State(k + 1, grid[k + 1], pop, rng))
    return pop


def monotone(times: Sequence[float] | Tensor) -> list[float]:
    """Return the times as a list of floats.

    Raises:
        ValueError: naming the first place where they are not strictly monotone.
    """
    grid = [float(t) for t in (times.tolist() if isinstance(times, Tensor) else times)]
    if len(grid) < 2:
        raise ValueError(f"times holds {len(grid)} value(s), wanted at least two: a first and a last one.")
    if not all(map(math.isfinite, grid)):
        raise ValueError(f"times goes from {grid[0]!r} to {grid[-1]!r} and holds NaN or infinite values, wanted finite ones.")
    up = grid[-1] > grid[0]
    for k in range(len(grid) - 1):
        if not (grid[k] < grid[k + 1] if up else grid[k] > grid[k + 1]):
            raise ValueError(
                f"times[{k}]={grid[k]!r} and times[{k + 1}]={grid[k + 1]!r} are not strictly {'increasing' if up else 'decreasing'}: "
                "sort them, drop duplicates, and build them in float64."
            )
    return grid


class Trace:
    """A recorder that keeps ``name -> f(state)`` for every state, as CPU tensors stacked along the steps.

    Recording does not wait for an accelerator; reading the trace does.

    >>> trace = Trace(ess=lambda state: state.pop.ess())
    >>> trace(State(0, 0.0, Population.of(torch.zeros(4, 1)), Streams(0)))
    >>> trace["ess"].tolist(), trace["t"].tolist()
    ([4.0], [0.0])
    """

    def __init__(self, **functions: Callable[[State], Tensor | float]):
        self.functions = {"t": lambda state: state.t, **functions}
        self.rows: list[dict[str, Tensor]] = []

    def __call__(self, state: State) -> None:
        """Evaluate the functions and keep their values."""
        self.rows.append({name: _cpu(f(state)) for name, f in self.functions.items()})

    def __getitem__(self, name: str) -> Tensor:
        _wait()
        return torch.stack([row[name] for row in self.rows])

    def last(self) -> dict[str, Tensor]:
        """Return the values of the last recorded state."""
        _wait()
        return self.rows[-1]


def _wait() -> None:
    """Wait for pending copies from an accelerator."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _cpu(value: Tensor | float) -> Tensor:
    return value.detach().to("cpu", copy=True, non_blocking=True) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
