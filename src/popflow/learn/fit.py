"""The one training loop: a pure loss, batches drawn from named streams, any optimiser, exact resume, a guard against divergence."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace as _replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from popflow.core.checkpoint import load_tensors, save_tensors
from popflow.core.checks import at_least_one, real
from popflow.core.errors import CheckpointError, DivergenceError, PopflowWarning
from popflow.core.streams import Streams
from popflow.learn.distributed import Shard, processes, shard_rows
from popflow.learn.ema import ema_weight
from popflow.learn.learner import Learner, Loss, MakeOptimizer

Batches = Callable[[Streams], Any]
"""Draws one batch: tensors, or tuples and dicts of them. Everything random in a step (data, noise, times) comes from here."""

ADAMW = partial(torch.optim.AdamW, lr=1e-3)
"""The optimiser of `fit` unless another one is given."""
COMPILE_SECONDS = 30.0
"""What a first compilation costs, in seconds: 10 to 60 measured; a few once the cache on disk is warm."""
CHECKPOINT_SECONDS = 300.0
"""A record this long after the last checkpoint writes another one, however few steps have been done."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a recorder receives: the step just done, metrics averaged since the last record (``loss`` among them), the learning rate."""

    step: int
    metrics: Mapping[str, float]
    lr: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Result of `fit`.

    Attributes:
        params: Last parameters, detached: ``module.load_state_dict(fit.params, strict=False)`` puts them into the module they came from.
        ema: Their moving average; ``params`` without one.
        step: Steps done.
        rollbacks: How often the guard went back and halved the learning rate.
        compiled: Whether the last steps ran compiled.
    """

    params: dict[str, Tensor]
    ema: dict[str, Tensor]
    step: int
    rollbacks: int
    compiled: bool


@dataclass(frozen=True, slots=True)
class _Mark:
    """Progress of a run, apart from what the learner holds. ``sums`` of the metrics over ``count`` steps since the last record."""

    step: int = 0
    count: int = 0
    rollbacks: int = 0
    lowest: float = math.inf
    largest: float = 0.0
    compiled: bool | None = None
    sums: Tensor | None = None


_NUMBERS = ("step", "count", "rollbacks", "lowest", "largest")


def cosine(steps: int, warmup: int = 0, last: float = 0.0) -> Callable[[int], float]:
    """Learning-rate factor that rises linearly over ``warmup`` steps, then falls along half a cosine to ``last`` at ``steps``.

    >>> rate = cosine(100, warmup=10)
    >>> rate(0), rate(9), round(rate(55), 3), rate(100)
    (0.1, 1.0, 0.5, 0.0)
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup={warmup!r} with steps={steps!r}, wanted 0 <= warmup < steps.")

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup))))

    return rate


def fit(
    loss: Loss,
    params: Mapping[str, Tensor],
    batches: Batches,
    *,
    steps: int,
    rng: Streams,
    optimizer: MakeOptimizer = ADAMW,
    schedule: Callable[[int], float] = lambda step: 1.0,
    clip_norm: float | None = None,
    ema: float | None = None,
    record: Iterable[Callable[[Progress], None]] = (),
    log_every: int = 50,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    compile: bool | Literal["auto"] = "auto",
    max_rollbacks: int = 3,
    spike: float = 100.0,
    shard: Shard = shard_rows,
    bar: bool = True,
) -> Fit:
    """Minimise ``E[loss(params, batch)]`` over batches.

    Nothing waits for the device between two records. A run that was killed resumes from its checkpoint and ends with the same bytes as
    one that was not; Ctrl-C writes a checkpoint first (a second Ctrl-C stops at once).

    Divergence guard: at every record and checkpoint the mean loss since the last record and all parameters must be finite, and that mean
    below ``lowest + spike * largest`` (lowest mean so far, largest in absolute value). If not, the last good state is put back, the
    learning rate halved, and new batches are drawn.

    Launched by ``torchrun``, all processes learn as one (`popflow.learn.distributed`): with the same arguments in each, gradients and metrics are
    averaged, and the result is that of one process with the same batches, to rounding.

    Args:
        loss: Pure ``loss(params, batch) -> (scalar, metrics)``, metrics a mapping of scalar tensors. It draws nothing at random. Buffers and
            frozen parameters are constants that it closes over (`torch.func.functional_call` takes from the module what ``params`` lacks);
            once compiled it does not see them change.
        params: Named tensors to learn, ``dict(module.named_parameters())``; they are copied, the module stays as it is.
        batches: ``batches(rng) -> batch``; shapes must not vary if the step is to be compiled.
        steps: Number of steps, those of a resumed checkpoint included.
        rng: Named streams; their states are part of the checkpoint.
        optimizer: Class of `torch.optim` or partial of one, called with pairs (name, tensor); ``partial(popflow.optim.SINGD, module)`` for the
            module that ``loss`` calls (its steps are never compiled).
        schedule: Factor of the learning rate as a function of the step, see `cosine`; 1 unless given.
        clip_norm: Longest joint gradient; the norm before clipping is recorded as ``grad_norm``.
        ema: Decay of the parameter average, for example 0.999.
        record: Called with a `Progress` every ``log_every`` steps and at the end. A resumed run repeats records after its checkpoint.
        log_every: Steps between records.
        checkpoint: File to write and, when it exists, to resume from.
        checkpoint_every: Steps between checkpoints. One more is written at the end, and at a record when five minutes have passed since the last.
        compile: One graph for gradients, clipping, optimiser and average. ``"auto"`` compiles when the steps left would take longer than
            three compilations (90 s); a resumed run keeps the decision. Compiled and eager agree to rounding, not bit by bit.
        max_rollbacks: How often the guard may restore an earlier state.
        spike: Height of a loss that counts as divergence, see above; ``math.inf`` leaves only the check for finite values (min-max losses).
        shard: Takes each process's part of a batch, when there are several processes.
        bar: Show a progress bar on stderr, when that is a terminal; False if a recorder shows progress.

    Raises:
        DivergenceError: when the guard has gone back ``max_rollbacks`` times and the loss diverges again.
        CheckpointError: when the checkpoint cannot be written (the one before is whole) or belongs to another run.
        RuntimeError: with ``compile=True``, when the loss does not compile; when several processes no longer hold the same parameters.
        ValueError: when a batch cannot be shared among the processes.

    Example:
        >>> def loss(params, batch):
        ...     return (params["mean"] - batch).square().mean(), {}
        >>> result = fit(loss, {"mean": torch.zeros(2)}, lambda rng: 3 + rng.normal("data", torch.empty(64, 2)), steps=300,
        ...              rng=Streams(0), optimizer=partial(torch.optim.Adam, lr=0.05), ema=0.9)
        >>> [round(value, 1) for value in result.ema["mean"].tolist()]
        [3.0, 3.0]
    """
    _check(params, steps=steps, log_every=log_every, checkpoint_every=checkpoint_every, ema=ema, clip_norm=clip_norm, spike=spike)
    device = next(iter(params.values())).device
    team = processes(device)
    learner = Learner(loss, params, optimizer, ema is not None, clip_norm, team.mean if team.size > 1 else None)
    mark = _Mark(compiled=compile if isinstance(compile, bool) else False if learner.listens else None)
    if checkpoint is not None and team.first(Path(checkpoint).exists(), device):
        mark = _load(Path(checkpoint), learner, rng, mark, steps)
    team.same(learner.params, rng.seed)
    recorders = tuple(record) if team.rank == 0 else ()
    save = partial(_save, checkpoint, learner, rng) if checkpoint is not None and team.rank == 0 else lambda mark: None
    good, clock, agreed, saved = _snapshot(learner, mark), None, False, time.monotonic()

    def take_step(mark: _Mark) -> _Mark:
        learner.set(schedule(mark.step) * 0.5**mark.rollbacks, ema_weight(mark.step + 1, ema) if ema is not None else 1.0)
        batch = shard(batches(rng), team.rank, team.size) if team.size > 1 else batches(rng)
        values, compiled = _values(learner, batch, mark.compiled, required=compile is True)
        sums = values if mark.sums is None else mark.sums + values
        return _replace(mark, step=mark.step + 1, count=mark.count + 1, sums=sums, compiled=compiled)

    with closing(learner), _bar(mark.step, steps, bar and team.rank == 0) as show, _interrupts() as interrupted:

        def stop() -> bool:
            return interrupted.is_set() if team.size == 1 else agreed  # several processes stop together, between two stretches

        while mark.step < steps and not stop():
            end = min(steps, *(mark.step - mark.step % every + every for every in (log_every, checkpoint_every)))
            while mark.step < end and not stop():
                mark = take_step(mark)
                clock = clock or (mark.step, time.perf_counter())
            if mark.sums is None:  # interrupted before the first step
                break
            sums = team.mean([mark.sums])[0]
            mark = _replace(mark, sums=sums)
            means = [total / mark.count for total in sums.tolist()]  # the one place that waits for the device
            agreed = team.any(interrupted.is_set(), device)
            team.same(learner.params, rng.seed)
            exploded = means[0] - mark.lowest > spike * mark.largest > 0
            if exploded or not math.isfinite(means[0]) or not learner.finite():
                good = _roll_back(learner, good, mark, means[0], max_rollbacks)
                mark = good[0]
                continue
            if mark.compiled is None and clock is not None and mark.step - clock[0] >= 10:
                seconds = (time.perf_counter() - clock[1]) / (mark.step - clock[0])
                mark = _replace(mark, compiled=team.first((steps - mark.step) * seconds > 3 * COMPILE_SECONDS, device))
            if mark.step == steps or (mark.step % log_every == 0 and not stop()):
                progress = Progress(mark.step, dict(zip(learner.names, means, strict=True)), float(learner.optimizer.param_groups[0]["lr"]))
                for recorder in (*recorders, show):
                    recorder(progress)
                lowest, largest = min(mark.lowest, means[0]), max(mark.largest, abs(means[0]))
                mark = _replace(mark, count=0, sums=None, lowest=lowest, largest=largest)
            good = _snapshot(learner, mark)
            if mark.step == steps or mark.step % checkpoint_every == 0 or stop() or time.monotonic() - saved > CHECKPOINT_SECONDS:
                save(mark)
                saved = time.monotonic()
    team.any(False, device)  # no process continues before the last checkpoint is written
    if stop():
        raise KeyboardInterrupt(f"stopped at step {mark.step} of {steps}" + (f"; resume from {checkpoint}" if checkpoint else ""))
    final = {name: p.detach().clone() for name, p in learner.params.items()}
    return Fit(final, learner.ema or final, mark.step, mark.rollbacks, learner.compiled)


_Good = tuple[_Mark, dict[str, Tensor], Any]


def _snapshot(learner: Learner, mark: _Mark) -> _Good:
    tensors, structure = learner.state()
    return mark, {name: value.clone() for name, value in tensors.items()}, structure


def _roll_back(learner: Learner, good: _Good, mark: _Mark, mean: float, max_rollbacks: int) -> _Good:
    """Restore the last good state with half the learning rate, or raise an error with advice."""
    before, tensors, structure = good
    seen = f"the mean loss is {mean:.6g} at step {mark.step}, it was {mark.lowest:.6g} at best"
    if mark.rollbacks >= max_rollbacks:
        raise DivergenceError(
            f"training diverged: {seen}, and the learning rate has been halved {mark.rollbacks} times (max_rollbacks={max_rollbacks}). "
            "Fix: start with a lower learning rate, warm it up (schedule=cosine(steps, warmup)), clip gradients (clip_norm=1.0), or look "
            "for data and times at which the loss is singular. For a loss that may rise by design pass spike=math.inf."
        )
    warnings.warn(f"{seen}: back to step {before.step} with half the learning rate.", PopflowWarning, stacklevel=3)
    learner.load(tensors, structure)
    return _replace(before, rollbacks=mark.rollbacks + 1, compiled=mark.compiled), tensors, structure


def _values(learner: Learner, batch: Any, compiled: bool | None, required: bool) -> tuple[Tensor, bool | None]:
    """Take a step, compiling it first when ``compiled`` is set; return its values, and whether later steps are compiled."""
    if not compiled or learner.compiled or not learner.names:
        return learner(batch), compiled
    try:
        return learner.compile(batch), True
    except RuntimeError as error:
        if required:
            raise
        warnings.warn(f"continuing without compilation: {error}", PopflowWarning, stacklevel=4)
        return learner(batch), False


def _save(path: str | Path, learner: Learner, rng: Streams, mark: _Mark) -> None:
    tensors, structure = learner.state()
    tensors = dict(tensors) | {f"rng.{name}": value for name, value in rng.state().items()}
    if mark.sums is not None:
        tensors["sums"] = mark.sums
    about = {"compiled": mark.compiled, "names": learner.names, "optimizer": structure, "seed": rng.seed}
    save_tensors(path, tensors, about | {name: getattr(mark, name) for name in _NUMBERS})


def _load(path: Path, learner: Learner, rng: Streams, mark: _Mark, steps: int) -> _Mark:
    """Load a checkpoint into the learner and the streams."""
    tensors, about = load_tensors(path)
    if "optimizer" not in about:
        raise CheckpointError(f"{path} holds {sorted(tensors)[:3]} ... and is not a checkpoint of fit. Fix: give another file.")
    if about["seed"] != rng.seed:
        raise CheckpointError(f"{path} was written with seed {about['seed']}, rng has seed {rng.seed}: use that seed, or another file.")
    if about["step"] > steps:
        raise CheckpointError(f"{path} is at step {about['step']}, past steps={steps}: ask for more steps, or give another file.")
    learner.load(tensors, about["optimizer"])
    learner.names = tuple(about["names"])
    rng.load({name.removeprefix("rng."): value for name, value in tensors.items() if name.startswith("rng.")})
    compiled = about["compiled"] if mark.compiled is None else mark.compiled
    sums = tensors.get("sums")
    return _Mark(**{name: about[name] for name in _NUMBERS}, compiled=compiled, sums=sums if sums is None else sums.to(learner.device))


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event that the loop checks between steps; the second stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def handler(*_: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handler)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bar(start: int, steps: int, wanted: bool) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr, when one is wanted and stderr is a terminal."""
    if not wanted or not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task("", total=steps, completed=start)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.step, description=f"loss {progress.metrics['loss']:.4g}", refresh=True)

        yield show


def _check(params: Mapping[str, Tensor], *, ema: float | None, clip_norm: float | None, spike: float, **counts: int) -> None:
    if not params:
        raise ValueError("params is empty, wanted named tensors to learn: pass dict(module.named_parameters()).")
    at_least_one(**counts)
    real(ema=ema, clip_norm=clip_norm, spike=spike)
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"ema={ema!r}, wanted a decay in [0, 1): 0.999 is usual, None for no average.")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm={clip_norm!r}, wanted a positive norm: 1.0 is usual, None for no clipping.")
