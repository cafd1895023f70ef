"""The space of rotations, SO(3), for samplers: points are rotation matrices, tangent vectors are written in the body frame.

Source: Yim et al., *SE(3) diffusion model with application to protein backbone generation*, ICML 2023, for diffusion on rotations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.spaces.igso3 import igso3_draws, log_igso3
from popflow.compose.spaces.so3 import exp, from_quaternion, vee
from popflow.compose.spaces.space import Clock
from popflow.core import Streams

LARGEST_STEP = 0.5
"""Largest ``S = sqrt(sigma^2 - sigma'^2)`` of one step: Exp of a Gaussian is Brownian motion to 0.3 % of the mean trace there, 9 % at 1."""


@dataclass(frozen=True)
class Rotations:
    """Rotation matrices: points ``[3, 3]``, or ``[count, 3, 3]`` for several; tangent vectors ``[3]`` or ``[count, 3]`` in the body frame.

    Attributes:
        count: How many rotations make one point; None for a single one without a dimension of its own.
        uniform: Experts are taken to be uniform at the first noise level (right for sigma of 2.5 and more). False: Brownian motion from the
            identity, as published protein models start. Experts that know their density need neither: samples are weighed by it.

    Example:
        >>> Rotations(4).event, Rotations(4).dim
        ((4, 3, 3), 12)
    """

    count: int | None = None
    uniform: bool = True
    flat = False

    def __post_init__(self):
        if self.count is not None and self.count < 1:
            raise ValueError(f"count={self.count}, wanted at least 1 rotation, or None for one without a dimension of its own.")

    @property
    def event(self) -> tuple[int, ...]:
        """``(3, 3)`` or ``(count, 3, 3)``."""
        return (*self.tangent, 3)

    @property
    def tangent(self) -> tuple[int, ...]:
        """``(3,)`` or ``(count, 3)``."""
        return (3,) if self.count is None else (self.count, 3)

    @property
    def dim(self) -> int:
        """Three for each rotation."""
        return math.prod(self.tangent)

    def check(self, x: Tensor) -> Tensor:
        """Return rotations as they are.

        Raises:
            ValueError: for the wrong shape, matrices that are not orthonormal to 1e-3, and reflections.
        """
        if tuple(x.shape[x.ndim - len(self.event) :]) != self.event:
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted [..., {', '.join(map(str, self.event))}]: rotation matrices.")
        eye = torch.eye(3, dtype=x.dtype, device=x.device)
        error = float((x.mT @ x - eye).abs().max()) if x.numel() else 0.0
        if not error < 1e-3:
            raise ValueError(
                f"x holds matrices that are not orthonormal: |R^T R - 1| is up to {error:.3g}, wanted less than 1e-3. Fix: take the nearest "
                "rotations, popflow.compose.spaces.so3.nearest(x)."
            )
        mirrors = int((torch.linalg.det(x) < 0).sum())
        if mirrors:
            raise ValueError(f"x holds {mirrors} mirrored matrices (determinant -1), wanted rotations: swap two axes of the frames.")
        return x

    def check_levels(self, levels: Tensor) -> None:
        """Raise an error for steps with ``S = sqrt(sigma^2 - sigma'^2)`` above 0.5: a Gaussian in the tangent space is not Brownian motion there.

        Raises:
            ValueError: naming the step.
        """
        steps = (levels[:-1].square() - levels[1:].square()).clamp(min=0).sqrt()
        k = int(steps.argmax())
        if float(steps[k]) > LARGEST_STEP:
            raise ValueError(
                f"the step of rotations from noise level {float(levels[k]):g} to {float(levels[k + 1]):g} has S = sqrt(sigma^2 - sigma'^2) = "
                f"{float(steps[k]):.3g} radians, wanted at most {LARGEST_STEP}, better 0.3 or less. Fix: take more levels, equally spaced (linear), or a "
                "first level not far above 2.5, where rotations are uniform."
            )

    def project(self, vector: Tensor) -> Tensor:
        """Return the vector: all are tangent."""
        return vector

    def move(self, x: Tensor, displacement: Tensor) -> Tensor:
        """``R Exp(xi)``."""
        return x @ exp(displacement)

    def gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        """``<slope, R hat(e_a)>``."""
        return vee(x.mT @ slope)

    def start(self, like: Tensor, sigma: float, total: float, rng: Streams) -> Tensor:
        """Draw uniform rotations, or Brownian motion of variance ``sigma^2`` from the identity."""
        if self.uniform:
            return from_quaternion(rng.normal("start", like.new_empty(*like.shape[:-2], 4)))
        return igso3_draws(torch.eye(3, dtype=like.dtype, device=like.device).expand(like.shape), sigma, rng)

    def log_start(self, x: Tensor, sigma: float, total: float) -> Tensor:
        """Zero, or ``log f(omega; sigma^2)``; the same for every sum of exponents."""
        return self.log_reference(x, sigma)

    def log_reference(self, x: Tensor, sigma: float) -> Tensor:
        """Zero (uniform), or ``log f(omega; sigma^2)`` summed over the rotations."""
        rows = x.shape[: x.ndim - len(self.event)]
        if self.uniform:
            return x.new_zeros(rows)
        return log_igso3(x, sigma**2).reshape(*rows, -1).sum(-1)

    def stretch(self, size: Callable[[Clock], float], like: Tensor) -> None:
        """Return None: there is one clock."""
