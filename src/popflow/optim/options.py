"""The numeric options of a SINGD parameter group, and their ranges."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

BELOW_ONE = math.nextafter(1.0, 0.0)


class Range(NamedTuple):
    """What a number may be: ``usual`` is a good first value, named in errors; ``above`` excludes the lowest itself."""

    usual: float
    low: float = 0
    high: float = math.inf
    above: bool = False
    whole: bool = False
    or_none: bool = False
    or_function: bool = False
    or_tensor: bool = False


RANGES = {
    "lr": Range(3e-3, or_tensor=True),
    "damping": Range(1e-4, above=True),
    "momentum": Range(0.9, high=BELOW_ONE),
    "alpha1": Range(0.0, high=BELOW_ONE),
    "lr_cov": Range(0.3, high=BELOW_ONE, above=True, or_function=True),
    "weight_decay": Range(0.01),
    "kl_clip": Range(1e-3, above=True, or_none=True),
    "update_rms": Range(1.0, above=True, or_none=True),
    "fallback_lr": Range(1e-3, or_none=True),
    "interval": Range(10, low=1, whole=True, or_function=True),
    "every": Range(5, low=1, whole=True),
    "max_side": Range(512, low=1, whole=True),
    "spare": Range(0, whole=True),
    "max_rows": Range(1024, low=1, whole=True, or_none=True),
    "seed": Range(0, whole=True),
}


def check(group: dict[str, Any]) -> None:
    """Turn the numbers of a group into plain ones, in place, but for a tensor as ``lr``, which may be filled later; raise ValueError for one out of range.

    >>> check({"lr": 0.5, "damping": 0.0})
    Traceback (most recent call last):
    ValueError: damping=0.0, wanted a finite number above 0. Fix: 0.0001 is usual.
    """
    for name, value in group.items():
        if name in RANGES:
            number = in_range(name, value)
            if not (RANGES[name].or_tensor and isinstance(value, Tensor)):
                group[name] = number


def in_range(name: str, value: Any) -> Any:
    """Return ``value`` as a plain number (numbers of numpy and tensors of one element become one), or raise ValueError unless it is in the range of that name.

    >>> in_range("interval", Tensor([3]).int()), in_range("kl_clip", None)
    (3, None)
    """
    usual, low, high, above, whole, or_none, or_function, _ = RANGES[name]
    if (value is None and or_none) or (callable(value) and or_function):
        return value
    number: Any = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, numbers.Integral if whole else numbers.Real):
        number = math.nan
    elif not isinstance(number, int | float):  # of numpy
        number = int(number) if isinstance(number, numbers.Integral) else float(number)
    if not (math.isfinite(number) and number <= high and (number > low if above else number >= low)):
        most = " and below 1" if high == BELOW_ONE else ""
        raise ValueError(
            f"{name}={value!r}, wanted {'an integer' if whole else 'a finite number'} {'above' if above else 'at least'} {low:g}{most}. "
            f"Fix: {usual:g} is usual."
        )
    return number


def growing(to: int = 10, every: int = 5) -> Callable[[int], int]:
    """Return intervals that grow from 1 to ``to``, by one every ``every`` steps: factors change most at the start.

    >>> [growing(4)(step) for step in (1, 5, 10, 15, 1000)]
    [1, 2, 3, 4, 4]
    """
    in_range("interval", to)
    in_range("every", every)
    return partial(_grown, to, every)


def _grown(to: int, every: int, step: int) -> int:
    return min(to, 1 + step // every)
