"""Checks of counts, shapes and functions, and of values, immediate or deferred: reading a value from an accelerator means waiting for it.

`refuse` raises when values are bad. Inside `put_off` it only records the check; the first failure is raised at the end of the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any

from torch import Tensor

_PUT_OFF: ContextVar[list[tuple[Tensor, Callable[..., Exception]]] | None] = ContextVar("deferred checks", default=None)


def at_least_one(**counts: Any) -> None:
    """Check that counts are whole numbers, 1 or more.

    >>> at_least_one(shots=0)
    Traceback (most recent call last):
    ValueError: shots=0, wanted at least 1.
    >>> at_least_one(shots=2.5)
    Traceback (most recent call last):
    TypeError: shots=2.5, wanted a whole number.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name}={value!r}, wanted a whole number.")
        if value < 1:
            raise ValueError(f"{name}={value!r}, wanted at least 1.")


def real(**values: Any) -> None:
    """Check that values are real numbers (of Python or numpy) or None.

    >>> real(clip_norm=1.0, ema=None)
    >>> real(clip_norm="1.0")
    Traceback (most recent call last):
    TypeError: clip_norm='1.0', wanted a number.
    """
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{name}={value!r}, wanted a number.")


def function(name: str, value: Any, example: str) -> None:
    """Check that a function was passed, not its name: strings belong on the command line.

    >>> function("activation", "relu", "torch.relu")
    Traceback (most recent call last):
    TypeError: activation='relu', wanted a function such as torch.relu.
    """
    if not callable(value):
        raise TypeError(f"{name}={value!r}, wanted a function such as {example}.")


def shaped(name: str, value: Any, like: Tensor) -> Tensor:
    """Return what a user's function returned, or refuse another shape than that of ``like``, which would broadcast silently."""
    if not isinstance(value, Tensor) or value.shape != like.shape:
        seen = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} returned {seen}, wanted a tensor of shape {tuple(like.shape)}: one entry per row.")
    return value


def untouched(name: str, function: Callable[..., Any], *given: Any) -> Any:
    """Return ``function(*given)``, or refuse a function of the user's that changed a tensor it was given in place.

    What it is given are often the samples themselves. Nothing is copied: torch counts the changes of every tensor.

    >>> import torch
    >>> untouched("expert 'a'", lambda y: y.mul_(2), torch.ones(3))
    Traceback (most recent call last):
    ValueError: expert 'a' changed its input in place, wanted it left as it is: write y = 2 * y where y *= 2 stands, or begin with y = y.clone().
    """
    tensors = [one for one in given if isinstance(one, Tensor) and not one.is_inference()]
    before = [one._version for one in tensors]
    answer = function(*given)
    if before != [one._version for one in tensors]:
        raise ValueError(
            f"{name} changed its input in place, wanted it left as it is: write y = 2 * y where y *= 2 stands, or begin with y = y.clone()."
        )
    return answer


def refuse(bad: Tensor, error: Callable[..., Exception]) -> None:
    """Raise ``error(*counts)`` unless all counts of bad values are zero: now, or at the end of the surrounding `put_off` block.

    Args:
        bad: One count, or a vector of counts, on any device.
        error: Makes the exception. It should not keep large tensors alive.

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
    """Defer the checks of `refuse` to the end of the block, so that the CPU waits for an accelerator once rather than at every step.

    The first failure is raised, and replaces any exception that it led to.

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
    """Say whether checks are deferred; code must then not branch on values that live on an accelerator."""
    return _PUT_OFF.get() is not None
