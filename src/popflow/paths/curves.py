"""Functions of time that paths are made of: a clock, curves through images, widths that meet both end laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from popflow.core.checks import at_least_one

Curve = Callable[[Tensor], Tensor]
"""A path of chart coordinates, ``s [rows] in [0, 1] -> [rows, M]``, differentiable in s."""
Widths = Callable[[Tensor, Tensor, tuple[float, float], Tensor], Tensor]
"""Standard deviations ``(s [rows, 1, 1], h [rows, K, D], (start, end), xi sqrt(T)) -> [rows, K, D]``."""

CLOCK = 1e-3
"""Where the clock ``log((s + d) / (1 - s + d)) / 4`` changes from linear to logarithmic."""


def bridge(s: Tensor, h: Tensor, ends: tuple[float, float], spread: Tensor) -> Tensor:
    """``sqrt((1 - s) sa^2 + s sb^2 + spread^2 s (1 - s) exp(h))``: grows from its ends like the square root of time, as diffusions do.

    >>> bridge(torch.tensor(0.5), torch.tensor(0.0), (0.0, 0.0), torch.tensor(2.0)).item()
    1.0
    """
    return ((1 - s) * ends[0] ** 2 + s * ends[1] ** 2 + spread**2 * s * (1 - s) * h.clamp(-15, 15).exp()).sqrt()


def log_linear(s: Tensor, h: Tensor, ends: tuple[float, float], spread: Tensor) -> Tensor:
    """``sa^(1 - s) sb^s exp(s (1 - s) h)``: may be narrower than its ends, as between states in a narrow valley.

    >>> round(log_linear(torch.tensor(0.5), torch.tensor(-4.0), (1.0, 1.0), torch.tensor(1.0)).item(), 3)
    0.368
    """
    return ((1 - s) * math.log(ends[0]) + s * math.log(ends[1]) + s * (1 - s) * h.clamp(-60, 60)).exp()


def through(images: Tensor) -> Curve:
    """Curve through images ``[P, M]`` at equal distances of s, by cubic Hermite segments; the images at both ends are met exactly.

    >>> curve = through(torch.tensor([[0.0], [1.0], [0.0]]))
    >>> curve(torch.tensor([0.0, 0.5, 1.0])).flatten().tolist()
    [0.0, 1.0, 0.0]
    """
    if images.ndim != 2 or len(images) < 2:
        raise ValueError(f"images of shape {tuple(images.shape)}, wanted [P, M] with at least two images.")
    slopes = torch.cat([images[1:2] - images[:1], (images[2:] - images[:-2]) / 2, images[-1:] - images[-2:-1]])

    def curve(s: Tensor) -> Tensor:
        points, rates = images.to(s), slopes.to(s)
        place = s * (len(images) - 1)
        left = place.detach().floor().clamp(0, len(images) - 2).long()
        f = (place - left)[:, None]
        return (
            (1 + 2 * f) * (1 - f) ** 2 * points[left]
            + f * (1 - f) ** 2 * rates[left]
            + f**2 * (3 - 2 * f) * points[left + 1]
            + f**2 * (f - 1) * rates[left + 1]
        )

    return curve


def clock_grid(time: float, steps: int, delta: float = CLOCK) -> Tensor:
    """Times that are dense at both ends, where narrow laws make drifts stiff: uniform in ``3 s / 2 + log((s + d) / (1 - s + d)) / 8``, about.

    >>> bool(clock_grid(1.0, 100).diff()[0] < clock_grid(1.0, 100).diff()[50] / 4)
    True
    """
    at_least_one(steps=steps)
    s = torch.linspace(0, 1, 20001, dtype=torch.float64)
    ends = math.log((1 + delta) / delta)
    clock = s / 2 + (((s + delta) / (1 - s + delta)).log() + ends) / (4 * ends)
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    right = torch.searchsorted(clock, even).clamp(1, len(s) - 1)
    share = (even - clock[right - 1]) / (clock[right] - clock[right - 1])
    times = time * (s[right - 1] + share * (s[right] - s[right - 1]))
    times[0], times[-1] = 0.0, time
    return times
