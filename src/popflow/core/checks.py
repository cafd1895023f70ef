"""Checks of values, at once or put off: to look at a value is to wait for an accelerator.

`refuse` raises where values are bad. Inside of `put_off` it only takes note, and the first failure is raised at the end of the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_PUT_OFF: ContextVar[list[tuple[Tensor, Callable[..., Exception]]] | None] = ContextVar("checks that are put off", default=None)


def refuse(bad: Tensor, error: Callable[..., Exception]) -> None:
    """Raise ``error(*counts)`` when one of some counts of bad values is not zero: at once, or where the surrounding `put_off` ends.

    Args:
        bad: A count, or several in one dimension, on any device. To look at them is to wait for an accelerator.
        error: Makes the exception; it should hold on to nothing large.

    >>> import torch
    >>> from popflow.core import NonFiniteError
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
    >>> from popflow.core import NonFiniteError
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
