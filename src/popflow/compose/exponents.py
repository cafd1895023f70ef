"""Exponents of a product: numbers, or functions of the noise level."""

from __future__ import annotations

import math
from collections.abc import Callable

Exponent = float | Callable[[float], float]
"""A number, or a function of the noise level sigma."""


def at(value: Exponent, sigma: float) -> float:
    """Value of an exponent at a noise level.

    Raises:
        ValueError: if it is not finite there.
    """
    number = float(value(sigma)) if callable(value) else float(value)
    if not math.isfinite(number):
        raise ValueError(f"an exponent is {number} at sigma={sigma:g}, wanted a finite number.")
    return number


def times(a: Exponent, b: Exponent) -> Exponent:
    """Product of two exponents."""
    if callable(a) or callable(b):
        return lambda sigma: at(a, sigma) * at(b, sigma)
    return a * b


def plus(a: Exponent, b: Exponent) -> Exponent:
    """Sum of two exponents."""
    if callable(a) or callable(b):
        return lambda sigma: at(a, sigma) + at(b, sigma)
    return a + b
