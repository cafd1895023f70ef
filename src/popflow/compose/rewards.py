"""Rewards: factors ``exp(gamma(sigma) r(y))`` of a target, their values over a population and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.exponents import Exponent, at
from popflow.compose.spaces.space import Space
from popflow.core import NonFiniteError, Population
from popflow.core.checks import refuse, untouched


@dataclass(frozen=True, eq=False)
class Reward:
    """A factor ``exp(gamma(sigma) r(y))``.

    Attributes:
        function: ``r(y [rows, *event]) -> [rows]``.
        gamma: Its strength at each noise level.
        gradient: Whether ``r`` is differentiable: then its gradient guides the move. If not, it only weighs.
        name: Name in errors.
    """

    function: Callable[[Tensor], Tensor]
    gamma: Exponent
    gradient: bool = True
    name: str = "reward"

    def __call__(self, y: Tensor) -> Tensor:
        """Evaluate at ``y [rows, *event]``.

        Raises:
            ValueError: unless the function returns one number per row and leaves ``y`` as it is.
        """
        value = untouched(f"reward {self.name!r}", self.function, y)
        if not isinstance(value, Tensor) or value.shape != y.shape[:1]:
            seen = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"reward {self.name!r} returned {seen} for {len(y)} samples, wanted one value per sample: shape ({len(y)},).")
        return value


def reward_gradient(reward: Reward, y: Tensor, space: Space) -> Tensor:
    """Gradient of a reward at ``y [*rows, *event]``, ``[*rows, *tangent]``; rewards do not couple rows, so one backward pass serves all.

    Raises:
        ValueError: for a reward that torch cannot differentiate.
        NonFiniteError: if the gradient is not finite.
    """
    with torch.enable_grad():
        point = y.detach().flatten(0, y.ndim - len(space.event) - 1).requires_grad_()
        value = reward(point)
        if not value.requires_grad:
            raise ValueError(
                f"reward {reward.name!r} has no gradient: write it with torch operations, or say that it has none: tilt(..., gradient=False), "
                "or for a pipeline reward_gradient=False."
            )
        (slope,) = torch.autograd.grad(value.sum(), point)
    total = len(slope)

    def error(bad: int) -> NonFiniteError:
        return NonFiniteError(
            f"reward {reward.name!r} has a gradient that is not finite for {bad} of {total} samples: make it smooth (add a small constant "
            "under roots and logarithms), or pass tilt(..., gradient=False), or for a pipeline reward_gradient=False."
        )

    refuse((~slope.isfinite()).reshape(total, -1).any(1).sum(), error)
    return space.gradient(y, slope.reshape(y.shape))


def over_rows(reward: Reward, pop: Population) -> Tensor:
    """Reward of every particle, ``[*batch, n]``; -inf rules a particle out.

    Raises:
        NonFiniteError: for NaN and +inf.
    """
    with torch.no_grad():
        value = reward(pop.x.flatten(0, len(pop.batch))).to(pop.log_w.dtype).reshape(pop.log_w.shape)
    total = value.numel()

    def error(bad: int) -> NonFiniteError:
        return NonFiniteError(f"reward {reward.name!r} is NaN or +inf for {bad} of {total} samples, wanted finite numbers, or -inf.")

    refuse((value.isnan() | (value == math.inf)).sum(), error)
    return value


def sum_of_rewards(rewards: Sequence[Reward], pop: Population, sigma: float) -> Tensor:
    """Return ``sum_j gamma_j(sigma) r_j(y)``, ``[*batch, n]``."""
    total = torch.zeros_like(pop.log_w)
    for reward in rewards:
        gamma = at(reward.gamma, sigma)
        if gamma:
            total = total + gamma * over_rows(reward, pop)
    return total
