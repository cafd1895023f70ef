"""The named errors and warnings of the library, and the one way to say that a name is unknown.

Most bad input is a plain `ValueError` or `TypeError`. The names below exist where a caller may want to catch one case.
Every message names the argument, the value seen, the value wanted and the fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor


class PopflowWarning(UserWarning):
    """Something was done that the user probably did not mean; the message says what to change."""


class ZeroWeightsError(ValueError):
    """No particle of a population carries weight (all log weights are -inf), or a log weight is not a number."""


class NonFiniteError(ArithmeticError):
    """A drift, growth, expert or loss produced a value that is not finite; the message says which one and when."""


class StaleTrackingError(ValueError):
    """A kernel would move particles and leave quantities tracked along the path (log-densities) behind."""


class DivergenceError(RuntimeError):
    """Training diverged more often than the guard was allowed to roll back."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, read, or does not belong to this run. Earlier checkpoints are untouched."""


class MissingExtraError(ImportError):
    """An optional dependency is absent; the message says which extra brings it."""


_PUT_OFF: ContextVar[list[tuple[Tensor, Callable[..., Exception]]] | None] = ContextVar("checks that are put off", default=None)


def refuse(bad: Tensor, error: Callable[..., Exception]) -> None:
    """Raise ``error(*counts)`` when one of some counts of bad values is not zero: at once, or where the surrounding `put_off` ends.

    Args:
        bad: A count, or several in one dimension, on any device. To look at them is to wait for an accelerator.
        error: Makes the exception; it should hold on to nothing large.

    >>> import torch
    >>> refuse(torch.tensor(2), lambda count: NonFiniteError(f"{count} values are not finite"))
    Traceback (most recent call last):
    popflow.core.errors.NonFiniteError: 2 values are not finite
    """
    checks = _PUT_OFF.get()
    if checks is not None:
        checks.append((bad, error))
    else:
        _look(bad, error)


@contextmanager
def put_off(on: bool = True) -> Iterator[None]:
    """Put off what `refuse` looks at to the end of the block, so that an accelerator is waited for once and not at every step.

    The first failure is raised, also in the place of an exception that it has led to.

    >>> import torch
    >>> with put_off():
    ...     refuse(torch.tensor(0), NonFiniteError)
    """
    if not on:
        yield
        return
    checks: list[tuple[Tensor, Callable[..., Exception]]] = []
    token = _PUT_OFF.set(checks)
    try:
        yield
    finally:
        _PUT_OFF.reset(token)
        for bad, error in checks:
            _look(bad, error)


def _look(bad: Tensor, error: Callable[..., Exception]) -> None:
    counts = bad.reshape(-1).tolist()
    if any(counts):
        raise error(*counts)


def is_put_off() -> bool:
    """Whether checks are put off: then code takes no branch on a value that an accelerator has to be waited for."""
    return _PUT_OFF.get() is not None


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name, with the closest known one.

    >>> unknown("method", "compse", ["compose", "transport"])
    "unknown method 'compse': did you mean 'compose'? Known: compose, transport."
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind} {name!r}: {hint}Known: {', '.join(known) or 'none'}."
