"""Noise schedules in sigma coordinates, and grids of noise levels.

Every diffusion or flow model noises data as ``x = alpha x_0 + s eps``. Dividing by ``alpha`` gives ``y = x_0 + sigma eps`` with
``sigma = s / alpha``: in these coordinates all schedules are one, and a schedule is only the pair ``alpha(sigma)`` (how to scale ``y`` into what
the network saw) and ``time(sigma)`` (the clock value the network expects), with its inverse ``sigma(time)``.

Values may be floats or tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Level = Any
"""A number, or a tensor of them; what goes in comes out."""


@runtime_checkable
class Schedule(Protocol):
    """The noising process that a network was trained under."""

    def alpha(self, sigma: Level) -> Level:
        """Return the signal scale: ``x = alpha y``, and ``s = alpha sigma``."""
        ...

    def time(self, sigma: Level) -> Level:
        """Return the value the network takes as time or noise level."""
        ...

    def sigma(self, time: Level) -> Level:
        """Invert `time`."""
        ...


@dataclass(frozen=True)
class VP:
    """Variance preserving: ``alpha^2 + s^2 = 1``, ``log alpha = -t^2 (b1 - b0)/4 - t b0/2``, t in [0, 1] (Song et al. 2021).

    >>> vp = VP()
    >>> round(vp.sigma(vp.time(3.0)), 9), round(vp.alpha(3.0), 6)
    (3.0, 0.316228)
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def alpha(self, sigma: Level) -> Level:
        """Return ``1 / sqrt(1 + sigma^2)``."""
        return (1 + sigma**2) ** -0.5

    def time(self, sigma: Level) -> Level:
        """Solve ``log(1 + sigma^2) = t^2 (b1 - b0)/2 + t b0`` for t."""
        slope = self.beta_max - self.beta_min
        log = torch.log1p(sigma**2) if isinstance(sigma, Tensor) else math.log1p(sigma**2)
        return 2 * log / (self.beta_min + (self.beta_min**2 + 2 * slope * log) ** 0.5)

    def sigma(self, time: Level) -> Level:
        """Return ``sqrt(1/alpha^2 - 1)``."""
        exponent = time**2 * (self.beta_max - self.beta_min) / 2 + time * self.beta_min
        return (torch.expm1(exponent) if isinstance(exponent, Tensor) else math.expm1(exponent)) ** 0.5


@dataclass(frozen=True)
class VE:
    """Variance exploding: ``alpha = 1``, the network takes sigma itself."""

    def alpha(self, sigma: Level) -> Level:
        """Return one."""
        return sigma**0

    def time(self, sigma: Level) -> Level:
        """Return sigma."""
        return sigma

    def sigma(self, time: Level) -> Level:
        """Return time."""
        return time


@dataclass(frozen=True)
class EDM(VE):
    """Karras et al. (2022): ``alpha = 1``, the network takes ``log(sigma)/4``.

    >>> round(EDM().sigma(EDM().time(0.5)), 9)
    0.5
    """

    def time(self, sigma: Level) -> Level:
        """Return ``log(sigma) / 4``."""
        return (sigma.log() if isinstance(sigma, Tensor) else math.log(sigma)) / 4

    def sigma(self, time: Level) -> Level:
        """Return ``exp(4 time)``."""
        return (4 * time).exp() if isinstance(time, Tensor) else math.exp(4 * time)


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight paths: ``alpha = 1 - t``, ``s = t``, t from data (0) to noise (1); the network takes ``scale * t``.

    >>> RectifiedFlow().time(1.0), RectifiedFlow(scale=1000.0).sigma(500.0)
    (0.5, 1.0)
    """

    scale: float = 1.0

    def alpha(self, sigma: Level) -> Level:
        """Return ``1 / (1 + sigma)``."""
        return 1 / (1 + sigma)

    def time(self, sigma: Level) -> Level:
        """Return ``scale * sigma / (1 + sigma)``."""
        return self.scale * sigma / (1 + sigma)

    def sigma(self, time: Level) -> Level:
        """Return ``t / (1 - t)``; infinite at pure noise."""
        return time / (self.scale - time) if isinstance(time, Tensor) or time < self.scale else math.inf


@dataclass(frozen=True, eq=False)
class DDPM:
    """A table of ``alphas_cumprod`` (discrete-time models); times are table positions, ``log sigma`` interpolated in between.

    Args:
        alphas_cumprod: ``[T]`` strictly decreasing in (0, 1): the table a published model was trained with.

    Example:
        >>> ddpm = DDPM(alphas_cumprod(scaled_linear_betas(1000, 0.00085, 0.012)))
        >>> round(ddpm.sigma(999.0), 2), round(ddpm.time(ddpm.sigma(10.5)), 6)
        (14.61, 10.5)
    """

    alphas_cumprod: Tensor

    def __post_init__(self):
        table = self.alphas_cumprod.double()
        if table.ndim != 1 or len(table) < 2 or not bool(((table > 0) & (table < 1)).all()) or not bool((table.diff() < 0).all()):
            raise ValueError(
                f"alphas_cumprod of shape {tuple(table.shape)} is not a strictly decreasing 1-D table in (0, 1): give cumprod(1 - betas)."
            )
        object.__setattr__(self, "_log_sigma", ((1 - table) / table).log() / 2)

    def alpha(self, sigma: Level) -> Level:
        """Return ``1 / sqrt(1 + sigma^2)``."""
        return (1 + sigma**2) ** -0.5

    def time(self, sigma: Level) -> Level:
        """Return the position in the table, clamped to its ends."""
        table: Tensor = self._log_sigma  # pyright: ignore[reportAttributeAccessIssue]
        log = torch.as_tensor(sigma, dtype=torch.float64).log().to(table.device)
        low = (torch.searchsorted(table, log) - 1).clamp(0, len(table) - 2)
        share = ((log - table[low]) / (table[low + 1] - table[low])).clamp(0, 1)
        return _like(low + share, sigma)

    def sigma(self, time: Level) -> Level:
        """Return ``exp`` of the interpolated ``log sigma``."""
        table: Tensor = self._log_sigma  # pyright: ignore[reportAttributeAccessIssue]
        position = torch.as_tensor(time, dtype=torch.float64).clamp(0, len(table) - 1).to(table.device)
        low = position.floor().long().clamp(max=len(table) - 2)
        return _like(torch.lerp(table[low], table[low + 1], position - low).exp(), time)


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Betas of DDPM (Ho et al. 2020): equally spaced. Shape ``[steps]``, float64."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Betas of latent diffusion (Rombach et al. 2022): square roots equally spaced. Shape ``[steps]``, float64."""
    return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64).square()


def alphas_cumprod(betas: Tensor) -> Tensor:
    """Return ``cumprod(1 - betas)``, the table of `DDPM`."""
    return (1 - betas.double()).cumprod(0)


Grid = Callable[[int, float, float], Tensor]
"""``grid(steps, sigma_min, sigma_max)``: ``steps + 1`` noise levels, decreasing, float64."""


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Levels whose ``1/rho`` powers are equally spaced (Karras et al. 2022, equation 5).

    >>> karras(2, 0.1, 10.0).tolist()[::2]
    [10.0, 0.1]
    """
    _check_ends(steps, sigma_min, sigma_max)
    levels = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps + 1, dtype=torch.float64) ** rho
    return _exact_ends(levels, sigma_min, sigma_max)


def linear(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Equally spaced levels."""
    _check_ends(steps, sigma_min, sigma_max)
    return torch.linspace(sigma_max, sigma_min, steps + 1, dtype=torch.float64)


def geometric(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Levels with a constant ratio."""
    _check_ends(steps, sigma_min, sigma_max)
    return _exact_ends(torch.linspace(math.log(sigma_max), math.log(sigma_min), steps + 1, dtype=torch.float64).exp(), sigma_min, sigma_max)


def levels_of(schedule: Schedule, steps: int, first: float, last: float) -> Tensor:
    """Levels equally spaced in a schedule's own time, from time ``first`` (noise) to ``last`` (data): the grid that its own samplers use."""
    return schedule.sigma(torch.linspace(first, last, steps + 1, dtype=torch.float64))


def check_levels(sigmas: Tensor) -> Tensor:
    """Return noise levels as a float64 tensor on the CPU.

    Raises:
        ValueError: unless the levels are finite, positive (the last may be zero) and strictly decreasing.
    """
    try:
        levels = torch.as_tensor(sigmas, dtype=torch.float64).cpu()
    except (TypeError, ValueError) as error:
        raise TypeError(f"sigmas is a {type(sigmas).__name__}, wanted noise levels, e.g. karras(200, 0.01, 20.0).") from error
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(
            f"sigmas has shape {tuple(levels.shape)}, wanted at least two levels in one dimension, e.g. karras(200, 0.01, 20.0)."
        )
    if not bool(levels.square().isfinite().all()):
        raise ValueError(
            "sigmas holds a value whose square is not finite: a flow's pure-noise end (t = 1) is sigma = inf, start a little below it."
        )
    if not bool((levels.diff() < 0).all()):
        k = int((levels.diff() >= 0).nonzero()[0])
        raise ValueError(
            f"sigmas[{k}]={levels[k]:g} is followed by {levels[k + 1]:g}, wanted strictly decreasing levels from noise to data: sort them."
        )
    if levels[-1] < 0 or levels[-2] <= 0:
        raise ValueError(f"sigmas end in {levels[-2]:g}, {levels[-1]:g}, wanted positive levels; only the last may be 0.")
    return levels


def _check_ends(steps: int, sigma_min: float, sigma_max: float) -> None:
    if steps < 1:
        raise ValueError(f"steps={steps}, wanted at least 1.")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}, wanted 0 < sigma_min < sigma_max < inf.")


def _exact_ends(levels: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    levels[0], levels[-1] = sigma_max, sigma_min
    return levels


def _like(value: Tensor, argument: Level) -> Level:
    return value.to(argument.device, argument.dtype) if isinstance(argument, Tensor) else float(value)
