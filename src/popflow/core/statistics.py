r"""Proportions with confidence intervals.

For ``k`` successes in ``n`` independent trials, ``p = k / n`` and ``z = 1.96``, the 95 % Wilson score interval is

    (p + z^2 / 2n  ±  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

It keeps its coverage for few trials and for shares near 0 and 1, where the interval ``p ± z sqrt(p (1 - p) / n)`` has length zero.

Source: Wilson, *Probable inference, the law of succession, and statistical inference*, J. Am. Stat. Assoc. 22, 209 (1927).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share of successes with its 95 % interval.

    >>> print(Proportion(value=0.8, low=0.49, high=0.943, trials=10))
    0.800 [0.490, 0.943]
    """

    value: float
    low: float
    high: float
    trials: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(successes: float, trials: int) -> Proportion:
    """Return the share of successes with its 95 % Wilson score interval.

    ``successes`` may be a fraction: an expected number of successes, known exactly.

    Raises:
        ValueError: unless ``0 <= successes <= trials`` and there is at least one trial.

    Example:
        >>> print(wilson(8, 10))
        0.800 [0.490, 0.943]
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes={successes}, trials={trials}: wanted 0 <= successes <= trials and at least one trial.")
    share, shrink = successes / trials, 1 + Z_95 * Z_95 / trials
    middle = (share + Z_95 * Z_95 / (2 * trials)) / shrink
    half = Z_95 / shrink * math.sqrt(share * (1 - share) / trials + Z_95 * Z_95 / (4 * trials * trials))
    return Proportion(share, max(0.0, middle - half), min(1.0, middle + half), trials)
