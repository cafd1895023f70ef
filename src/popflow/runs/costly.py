"""Costly functions: objectives, oracles, force calls. Each input is asked for once, in parallel, and written into a ledger before its value is used.

Calls go through joblib, so its backends (processes, threads, and a user's dask or ray cluster) are the user's choice without code of ours.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from popflow.core.checks import at_least_one
from popflow.core.errors import PopflowWarning, unknown
from popflow.runs.isolation import Portable, call
from popflow.runs.ledger import Ledger, key_of
from popflow.runs.outcomes import KINDS, Outcome

Policy = Literal["raise", "skip", "worst"]
POLICIES = ("raise", "skip", "worst")


class CallError(RuntimeError):
    """A costly call gave no value, and the policy is to raise. Its outcome is in the ledger.

    Attributes:
        key: Key of the input.
        outcome: What the call gave.
    """

    def __init__(self, key: str, outcome: Outcome):
        super().__init__(
            f"the call for {key[:80]!r} gave no value: {outcome.kind}: {outcome.message}. Fix: mend the objective and let the ledger forget "
            f"{outcome.kind!r}, or use on_error='skip' or 'worst'."
        )
        self.key, self.outcome = key, outcome


class CostlyFunction:
    """A function of one input, ``costly(items) -> values [n]`` in float64 (or ``[n, values]``), whose calls are recorded, counted and made once.

    Values come in the order of the inputs, and do not depend on the number of workers. Each outcome is written as its call finishes. A repeated
    input costs no call, and neither does one that an earlier process recorded.

    Args:
        function: ``item -> value``: one number, or a vector of ``values`` numbers. It may raise `Infeasible`.
        ledger: Where outcomes are recorded; a path opens it, None keeps them in memory.
        key: ``item -> text`` that identifies an input, such as its canonical SMILES.
        values: Numbers that the function returns, for several objectives or for forces; None for a single one.
        workers: Calls made at once; None for what ``joblib.parallel_config`` says, else 1.
        backend: Name of a joblib backend: "loky" (processes), "threading", "sequential", or "dask", "ray" and others once they are registered. None for
            what ``joblib.parallel_config`` says, else "loky".
        timeout: Seconds after which a call is ended, under any backend; None for never. Calls are then made in processes of their own.
        budget: The most inputs asked for, those that the ledger knew included; None for any number.
        on_error: What an input without value gives, once everything is recorded: ``"raise"``, ``"skip"`` (NaN) or ``"worst"``.
        worst: The value for ``"worst"``, one number or one for each objective; by default the worst of the values requested before and in this batch.
        maximize: Whether high values are good, for the default of ``worst``.

    Attributes:
        requests: Inputs requested, repeated ones included.
        made: Calls that this object made.

    Raises:
        CallError: by ``"raise"``. Calls already handed to workers (two for each at most) are finished and recorded, no others are begun.
        CheckpointError: when an outcome cannot be written; its value is not used.
        TypeError: when the function or an input cannot be sent to a worker. No call was made.
        ValueError: by ``"worst"``, when there is no value that could be the worst.

    Example:
        >>> def yield_of(temperature):
        ...     if temperature > 400:
        ...         raise Infeasible("it burns")
        ...     return temperature / 400
        >>> from popflow.runs import Infeasible
        >>> costly = CostlyFunction(yield_of, on_error="worst", maximize=True)
        >>> costly([300.0, 500.0, 300.0, 200.0]).tolist()
        [0.75, 0.5, 0.75, 0.5]
        >>> costly.requests, costly.made, costly.ledger.counts()["infeasible"]
        (4, 3, 1)
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        ledger: Ledger | str | Path | None = None,
        *,
        key: Callable[[Any], str] = key_of,
        values: int | None = None,
        workers: int | None = None,
        backend: str | None = None,
        timeout: float | None = None,
        budget: int | None = None,
        on_error: Policy = "raise",
        worst: float | Sequence[float] | None = None,
        maximize: bool = False,
    ):
        at_least_one(**{name: one for name, one in (("values", values), ("budget", budget)) if one is not None})
        if workers == 0:
            raise ValueError("workers=0, wanted 1 or more, or -1 for all cores.")
        if timeout is not None and not 0 < timeout < float("inf"):
            raise ValueError(f"timeout={timeout!r}, wanted seconds above 0, or None.")
        if on_error not in POLICIES:
            raise ValueError(unknown("on_error", on_error, POLICIES))
        self.function, self.key, self.values = function, key, values
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
        self.workers, self.backend, self.timeout, self.budget = workers, backend, timeout, budget
        self.on_error, self.worst, self.maximize = on_error, worst, maximize
        self.requests = self.made = 0
        self._portable = Portable(function)
        self._alone = False
        self._requested: dict[str, None] = {}

    @property
    def left(self) -> float:
        """Inputs that may still be asked for; infinite without a budget."""
        return float("inf") if self.budget is None else max(0, self.budget - len(self.ledger))

    def __call__(self, items: Iterable[Any], notes: Sequence[Mapping[str, Any]] | None = None) -> Tensor:
        """Return the values of inputs, by the policy for those that have none; NaN for inputs beyond the budget.

        Args:
            items: Inputs; the rows of an array or a tensor.
            notes: What is written beside the outcome of each input.
        """
        items = _listed(items)
        keys = self._keys(items)
        outcomes = self.outcomes(items, notes)
        bad = [place for place, outcome in enumerate(outcomes) if outcome is not None and outcome.kind != "value"]
        if bad and self.on_error == "raise":
            raise CallError(keys[bad[0]], outcomes[bad[0]])  # type: ignore[arg-type]
        table = np.full((len(items), self.values or 1), np.nan)
        for place, outcome in enumerate(outcomes):
            if outcome is not None and outcome.kind == "value":
                table[place] = self._checked(keys[place], outcome)
        if bad and self.on_error == "worst":
            table[bad] = self._worst()
        found = torch.from_numpy(table)
        return found[:, 0] if self.values is None else found

    def outcomes(self, items: Iterable[Any], notes: Sequence[Mapping[str, Any]] | None = None) -> list[Outcome | None]:
        """Return the outcome of each input, made now or known; None for inputs beyond the budget, the last of the batch first.

        With ``on_error="raise"``, no call is begun after one that gave no value.
        """
        items = _listed(items)
        keys = self._keys(items)
        if notes is not None and len(notes) != len(items):
            raise ValueError(f"notes has {len(notes)} entries for {len(items)} inputs, wanted one each.")
        fresh: dict[str, int] = {}
        left = self.left
        lost = self.on_error == "raise" and any(self.ledger.known(key) and self.ledger[key].kind != "value" for key in keys)
        for place, key in enumerate([] if lost else keys):
            if not self.ledger.known(key) and key not in fresh:
                if key in self.ledger:  # forgotten: it was counted before
                    fresh[key] = place
                elif left > 0:
                    fresh[key], left = place, left - 1
        numbers = dict(zip(fresh, self.ledger.free(list(fresh)), strict=True))
        for key, outcome in self._calls({key: items[place] for key, place in fresh.items()}):
            self.ledger.record(key, outcome, numbers[key], notes[fresh[key]] if notes is not None else None)
            self.made += 1
        self.requests += len(items)
        self._requested.update(dict.fromkeys(key for key in keys if key in self.ledger))
        return [self.ledger.get(key) for key in keys]

    def _keys(self, items: list[Any]) -> list[str]:
        keys = [self.key(item) for item in items]
        for item, key in zip(items, keys, strict=True):
            if not isinstance(key, str):
                raise TypeError(f"key returned {type(key).__name__} for {str(item)[:60]}, wanted text.")
        return keys

    def _calls(self, items: dict[str, Any]) -> Iterator[tuple[str, Outcome]]:
        """Make calls, and give each outcome as it comes."""
        waiting, stop = dict(items), Event()
        while waiting and not stop.is_set():
            try:
                for key, outcome in self._parallel(waiting, stop):
                    del waiting[key]
                    if self.on_error == "raise" and outcome.kind != "value":
                        stop.set()
                    yield key, outcome
                return
            except BrokenProcessPool:
                self._alone = True
                warnings.warn(
                    "a worker died during a call. What was recorded is safe; from now on each call is made in a process of its own, so that the "
                    "one that ends its process is found.",
                    PopflowWarning,
                    stacklevel=4,
                )

    def _parallel(self, items: Mapping[str, Any], stop: Event) -> Iterator[tuple[str, Outcome]]:
        from joblib import Parallel, cpu_count, delayed, parallel_config

        def tasks() -> Iterator[Any]:
            for number, item in enumerate(inputs):
                if stop.is_set():
                    return
                yield delayed(call)(number, self._portable, item, self.values, self.timeout, self._alone)

        keys, inputs, waiting = list(items), list(items.values()), tasks()
        settings: dict[str, Any] = {"n_jobs": self.workers, "batch_size": 1, "max_nbytes": None}
        with parallel_config(backend=self.backend) if self.backend else nullcontext():
            try:
                parallel, size = Parallel(**settings, return_as="generator_unordered"), None
            except ValueError:  # multiprocessing and ray give outcomes together: in rounds of one call a worker
                parallel = Parallel(**settings)
                size = parallel.n_jobs if parallel.n_jobs > 0 else cpu_count()
        try:
            with parallel if size else nullcontext():
                for some in iter(lambda: list(islice(waiting, size)), []) if size else [waiting]:
                    results: Any = parallel(some)
                    for number, outcome in results:
                        yield keys[number], outcome
        except pickle.PicklingError as error:
            self._portable.content()  # raises when the function is to blame
            raise TypeError(f"an input cannot be sent to a worker: {error.__cause__ or error}. Fix: give plain data.") from error

    def _checked(self, key: str, outcome: Outcome) -> float | tuple[float, ...]:
        seen = len(outcome.value) if isinstance(outcome.value, tuple) else None
        if seen != self.values or outcome.value is None:
            raise ValueError(
                f"the ledger holds {'one number' if seen is None else f'{seen} numbers'} for {key[:80]!r}, wanted "
                f"{'one number' if self.values is None else f'{self.values} numbers'}. Fix: give the ledger of this objective, or another file."
            )
        return outcome.value

    def _worst(self) -> np.ndarray:
        if self.worst is not None:
            return np.broadcast_to(np.asarray(self.worst, dtype=float), (self.values or 1,))
        known = [self._checked(key, self.ledger[key]) for key in self._requested if self.ledger[key].kind == "value"]
        if not known:
            counts = {kind: count for kind, count in self.ledger.counts().items() if count and kind in KINDS}
            raise ValueError(f"on_error='worst', and no input has a value yet ({counts}). Fix: give worst=, or mend the objective.")
        table = np.array(known).reshape(len(known), -1)
        return table.min(0) if self.maximize else table.max(0)


def _listed(items: Iterable[Any]) -> list[Any]:
    """Inputs one by one; rows of a tensor are copied, because a view is sent to a worker with all that it is a view of."""
    return [row.clone() for row in items.detach().cpu()] if isinstance(items, Tensor) else list(items)
