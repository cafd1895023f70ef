"""The numeric options of a SINGD parameter group, and their ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

BELOW_ONE = math.nextafter(1.0, 0.0)
RANGES: dict[str, tuple[float, float, bool]] = {
    "lr": (0, math.inf, False),
    "damping": (0, math.inf, True),
    "momentum": (0, BELOW_ONE, False),
    "alpha1": (0, BELOW_ONE, False),
    "lr_cov": (0, BELOW_ONE, True),
    "weight_decay": (0, math.inf, False),
    "kl_clip": (0, math.inf, True),
    "update_rms": (0, math.inf, True),
    "fallback_lr": (0, math.inf, False),
}
"""Name -> lowest, highest, whether the lowest itself is excluded."""
USUAL = {
    "lr": 3e-3,
    "damping": 1e-4,
    "momentum": 0.9,
    "alpha1": 0.0,
    "lr_cov": 0.3,
    "weight_decay": 0.01,
    "kl_clip": 1e-3,
    "update_rms": 1.0,
    "fallback_lr": 1e-3,
    "interval": 10,
    "every": 5,
    "max_rows": 1024,
    "seed": 0,
}
"""Name -> a good first value, named in errors."""
MAY_BE_NONE = ("kl_clip", "update_rms", "fallback_lr", "max_rows")
MAY_BE_FUNCTIONS = ("lr_cov", "interval")


def check(group: Mapping[str, Any]) -> None:
    """Raise ValueError for a number of a group that is out of range.

    >>> check({name: 0.5 for name in RANGES})
    >>> check({name: 0.5 for name in RANGES} | {"damping": 0.0})
    Traceback (most recent call last):
    ValueError: damping=0.0, wanted a finite number above 0. Fix: 0.0001 is usual.
    """
    for name, (low, high, above) in RANGES.items():
        in_range(name, group[name], low, high, above)


def in_range(name: str, value: Any, low: float, high: float, above: bool = False, whole: bool = False) -> None:
    """Raise ValueError unless ``value`` is a number in ``[low, high]`` (without ``low`` if ``above``), or None or a function where that is allowed."""
    if (value is None and name in MAY_BE_NONE) or (callable(value) and name in MAY_BE_FUNCTIONS):
        return
    number: Any = value if isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number <= high and (number > low if above else number >= low)):
        most = f" and {'below 1' if high == BELOW_ONE else f'at most {high:g}'}" if high < math.inf else ""
        raise ValueError(
            f"{name}={value!r}, wanted {'an integer' if whole else 'a finite number'} {'above' if above else 'at least'} {low:g}{most}. "
            f"Fix: {USUAL[name]:g} is usual."
        )


def growing(to: int = 10, every: int = 5) -> Callable[[int], int]:
    """Return intervals that grow from 1 to ``to``, by one every ``every`` steps: factors change most at the start.

    >>> [growing(4)(step) for step in (1, 5, 10, 15, 1000)]
    [1, 2, 3, 4, 4]
    """
    in_range("interval", to, 1, math.inf, whole=True)
    in_range("every", every, 1, math.inf, whole=True)
    return partial(_grown, to, every)


def _grown(to: int, every: int, step: int) -> int:
    return min(to, 1 + step // every)
