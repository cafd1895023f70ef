"""What a costly call gives: a value, or one of four other things that are not a value.

    value        one finite number, or a vector of them
    error        the function raised, returned what is no number, or its process died
    timeout      it took longer than it was allowed, and was ended
    not finite   it returned NaN or an infinite number
    infeasible   it raised `Infeasible`

This module runs in the processes that make the calls, and imports no torch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal["value", "error", "timeout", "not finite", "infeasible"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LONGEST_MESSAGE = 500


class Infeasible(Exception):
    """Raised by an objective for an input that it has no value for; the message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call gave.

    Attributes:
        kind: One of `KINDS`.
        value: One number, or several; None unless ``kind`` is ``"value"``.
        message: What went wrong, in one line; empty for values.
        seconds: How long the call took.

    Example:
        >>> ask(lambda x: 1 / x, 4.0).value, ask(lambda x: 1 / x, 0.0).message
        (0.25, 'ZeroDivisionError: float division by zero (<doctest popflow.runs.outcomes.Outcome[0]>:1)')
    """

    kind: Kind
    value: float | tuple[float, ...] | None = None
    message: str = ""
    seconds: float = 0.0


def ask(function: Callable[[Any], Any], item: Any, values: int | None = None) -> Outcome:
    """Call a function and say what it gave.

    Args:
        function: ``item -> value``.
        item: Its input.
        values: Length of the vector that it returns; None for one number.
    """
    start, process = time.perf_counter(), os.getpid()
    try:
        value = numbers(function(item), values)
        bad = not all(map(math.isfinite, value if isinstance(value, tuple) else (value,)))
        kind, message = ("not finite", f"returned {value}") if bad else ("value", "")
    except Infeasible as error:
        value, kind, message = None, "infeasible", _text(error)
    except (Exception, SystemExit) as error:
        value, kind, message = None, "error", f"{type(error).__name__}: {_text(error)}{_where(error)}"
    if os.getpid() != process:  # forked by the objective, and not ended there: it must not go on in the place of this process
        os._exit(int(kind != "value"))
    return Outcome(kind, value if kind == "value" else None, message[:LONGEST_MESSAGE], time.perf_counter() - start)


def numbers(value: Any, values: int | None = None) -> float | tuple[float, ...]:
    """Return what a function gave as one float, or as a tuple of ``values`` floats.

    Python's and numpy's real numbers, arrays, tensors on any device, and sequences of numbers are understood.

    Raises:
        TypeError: for text, None, complex numbers and other things that are not real numbers.
        ValueError: for another count.

    >>> import numpy as np
    >>> numbers(np.float32(0.5)), numbers([1, 2.5], 2)
    (0.5, (1.0, 2.5))
    >>> numbers("0.5")
    Traceback (most recent call last):
    TypeError: the objective returned text '0.5', wanted one number
    """
    wanted = "one number" if values is None else f"{values} numbers"
    if isinstance(value, str | bytes) or value is None:
        kind = "None" if value is None else f"text {value[:40]!r}"
        raise TypeError(f"the objective returned {kind}, wanted {wanted}")
    if isinstance(value, int | float) and values is None:
        return float(value)
    import numpy as np

    detach = getattr(value, "detach", None)  # a tensor
    array = np.asarray(value if detach is None else detach().cpu().tolist())
    if array.dtype.kind not in "biuf":
        raise TypeError(f"the objective returned {type(value).__name__} of {array.dtype}, wanted {wanted}, real")
    if array.size != (1 if values is None else values) or array.ndim > 1:
        raise ValueError(f"the objective returned {type(value).__name__} of shape {array.shape}, wanted {wanted}")
    return float(array.reshape(-1)[0]) if values is None else tuple(map(float, array.reshape(-1)))


def _text(error: BaseException) -> str:
    try:
        return " ".join(str(error)[:LONGEST_MESSAGE].split())
    except Exception:
        return "(its message cannot be read)"


def _where(error: BaseException) -> str:
    """The innermost line of the traceback, unless it is one of this module."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_filename == __file__:
        return ""
    return f" ({trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno})"
