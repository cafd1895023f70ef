r"""Proportions with confidence intervals.

For ``k`` successes in ``n`` independent trials, ``p = k / n`` and ``z = 1.96``, the 95 % Wilson score interval is

    (p + z^2 / 2n  ±  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

It keeps its coverage for few trials and for shares near 0 and 1, where the interval ``p ± z sqrt(p (1 - p) / n)`` has length zero.

Sources: Wilson, *Probable inference, the law of succession, and statistical inference*, J. Am. Stat. Assoc. 22, 209 (1927); `tail_shape`: Vehtari, Simpson,
Gelman, Yao and Gabry, *Pareto smoothed importance sampling*, J. Mach. Learn. Res. 25 (2024); Zhang and Stephens, Technometrics 51, 316 (2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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


def tail_shape(log_w: Tensor) -> float:
    """Shape k of the generalised Pareto law of the largest importance weights, from log-weights ``[n]``; NaN for fewer than 25.

    Moments of order ``1 / k`` and above do not exist. Below 0.5 weights have a variance; above 0.7 means and their standard errors cannot be trusted at
    any affordable n. The largest ``min(n / 5, 3 sqrt(n))`` weights enter.

    >>> u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    >>> round(tail_shape(-0.3 * u.log()), 1), round(tail_shape(-u.log()), 1)  # w = u^-k
    (0.3, 1.0)
    """
    log_w = log_w.double().sort().values
    m = min(len(log_w) // 5, int(3 * len(log_w) ** 0.5))
    if m < 5:
        return math.nan
    w = (log_w[-m - 1 :] - log_w[-1]).exp()
    x = (w[1:] - w[0]).clamp_min(1e-300)
    grid = 30 + int(m**0.5)
    b = 1 / x[-1] + (1 - (grid / (torch.arange(grid, dtype=torch.float64) + 0.5)).sqrt()) / (3 * x[max(0, (m + 2) // 4 - 1)])
    k = torch.log1p(-b[:, None] * x).mean(1)
    mixed = ((m * ((-b / k).log() - k - 1)).softmax(0) * b).sum()
    return float((m * torch.log1p(-mixed * x).mean() + 5) / (m + 10))  # ten observations at 0.5 steady it
