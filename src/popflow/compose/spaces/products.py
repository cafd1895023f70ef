"""Products of spaces: one point has a part in each factor, one weight and one set of shares serves all of them.

Factors may have clocks of their own: ``sigma_f = clock_f(sigma)`` of the common level. Over a step the growth is
``sum_f 1/2 S_f^2 (|S^f|^2 - sum beta_i |s_i^f|^2)`` with ``S_f^2 = sigma_f^2 - sigma_f'^2``, and alike the tracked densities and the Gram matrix of AND.
In coordinates stretched by ``S_f / S`` all of this is the formula of one clock, which is how it is computed (`stretch`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.spaces.space import Clock, Space
from popflow.core import Streams


@dataclass(frozen=True)
class Proportional:
    """The clock ``factor * sigma``: the same noise in other units, or a factor that is noised more slowly.

    >>> Proportional(0.25)(2.0)
    0.5
    """

    factor: float = 1.0

    def __post_init__(self):
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor={self.factor}, wanted a number above 0.")

    def __call__(self, sigma: float) -> float:
        """Return the level of the factor."""
        return self.factor * sigma


@dataclass(frozen=True)
class ProductSpace:
    """Product of spaces. A point is one vector, the parts of the factors one after another; `split` and `join` go between the two.

    Attributes:
        factors: Spaces, none of them a product.
        clocks: One for each factor: its noise level as an increasing function of the common one; none at all for the common one everywhere.

    Raises:
        ValueError: for fewer than two factors, a product among them, or a number of clocks that does not fit.

    Example:
        >>> from popflow.compose import Euclidean, Rotations
        >>> space = ProductSpace((Rotations(4), Euclidean((4, 3))), (Proportional(0.3), Proportional()))
        >>> space.event, space.tangent
        ((48,), (24,))
        >>> [tuple(part.shape) for part in space.split(torch.zeros(7, 48))]
        [(7, 4, 3, 3), (7, 4, 3)]
    """

    factors: tuple[Space, ...]
    clocks: tuple[Clock, ...] = ()
    flat = False

    def __post_init__(self):
        if len(self.factors) < 2 or any(isinstance(one, ProductSpace) for one in self.factors):
            raise ValueError(
                f"factors={self.factors}, wanted at least two spaces, none of them a product: write their factors side by side."
            )
        if len(self.clocks) not in (0, len(self.factors)):
            raise ValueError(f"clocks holds {len(self.clocks)}, wanted one for each of {len(self.factors)} factors, or none.")

    @property
    def event(self) -> tuple[int, ...]:
        """As many numbers as the points of all factors hold."""
        return (sum(math.prod(one.event) for one in self.factors),)

    @property
    def tangent(self) -> tuple[int, ...]:
        """As many numbers as the tangent vectors of all factors hold."""
        return (sum(math.prod(one.tangent) for one in self.factors),)

    @property
    def dim(self) -> int:
        """The sum over the factors."""
        return sum(one.dim for one in self.factors)

    def split(self, x: Tensor) -> list[Tensor]:
        """Return the parts ``[..., *factor.event]`` of points ``[..., *event]``."""
        return self._parts(x, [one.event for one in self.factors])

    def split_tangent(self, vector: Tensor) -> list[Tensor]:
        """Return the parts ``[..., *factor.tangent]`` of tangent vectors."""
        return self._parts(vector, [one.tangent for one in self.factors])

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Put parts of points together: the inverse of `split`."""
        return self._whole(parts, [one.event for one in self.factors])

    def join_tangent(self, parts: Sequence[Tensor]) -> Tensor:
        """Put parts of tangent vectors together: the inverse of `split_tangent`."""
        return self._whole(parts, [one.tangent for one in self.factors])

    def levels(self, sigma: float) -> list[float]:
        """Noise levels of the factors at the common one."""
        return [clock(sigma) for clock in self._clocks]

    @property
    def _clocks(self) -> tuple[Clock, ...]:
        return self.clocks or (Proportional(),) * len(self.factors)

    def _parts(self, x: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        pieces = x.split([math.prod(shape) for shape in shapes], -1)
        return [piece.reshape(*x.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def _whole(self, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Tensor:
        flat = [part.reshape(*part.shape[: part.ndim - len(shape)], -1) for part, shape in zip(parts, shapes, strict=True)]
        return torch.cat(flat, -1)

    def check(self, x: Tensor) -> Tensor:
        """Return points whose parts are points of the factors, or raise an error."""
        if tuple(x.shape[-1:]) != self.event:
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted [..., {self.event[0]}]: make points with join(parts).")
        return self.join([one.check(part) for one, part in zip(self.factors, self.split(x), strict=True)])

    def check_levels(self, levels: Tensor) -> None:
        """Raise an error for clocks that do not fall with the common level, and for steps that a factor refuses.

        Raises:
            ValueError: naming the factor.
        """
        for one, clock in zip(self.factors, self._clocks, strict=True):
            own = torch.tensor([clock(float(level)) if level > 0 else 0.0 for level in levels], dtype=torch.float64)
            if not bool((own.diff() < 0).all()) or not bool(own.isfinite().all()) or own[-1] < 0:
                raise ValueError(
                    f"the clock of {one} goes from {float(own[0]):g} to {float(own[-1]):g} and does not fall with every level, "
                    "wanted an increasing function of the common level."
                )
            one.check_levels(own)

    def project(self, vector: Tensor) -> Tensor:
        """Project the parts."""
        return self.join_tangent([one.project(part) for one, part in zip(self.factors, self.split_tangent(vector), strict=True)])

    def move(self, x: Tensor, displacement: Tensor) -> Tensor:
        """Move the parts."""
        parts = zip(self.factors, self.split(x), self.split_tangent(displacement), strict=True)
        return self.join([one.move(part, shift) for one, part, shift in parts])

    def gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        """Convert the parts."""
        parts = zip(self.factors, self.split(x), self.split(slope), strict=True)
        return self.join_tangent([one.gradient(part, change) for one, part, change in parts])

    def start(self, like: Tensor, sigma: float, total: float, rng: Streams) -> Tensor:
        """Draw the parts, each at its own level."""
        parts = zip(self.factors, self.split(like), self.levels(sigma), strict=True)
        return self.join([one.start(part, level, total, rng) for one, part, level in parts])

    def log_start(self, x: Tensor, sigma: float, total: float) -> Tensor:
        """Sum over the factors."""
        return self._sum(x, sigma, lambda one, part, level: one.log_start(part, level, total))

    def log_reference(self, x: Tensor, sigma: float) -> Tensor:
        """Sum over the factors."""
        return self._sum(x, sigma, lambda one, part, level: one.log_reference(part, level))

    def _sum(self, x: Tensor, sigma: float, term: Callable[[Space, Tensor, float], Tensor]) -> Tensor:
        total = x.new_zeros(x.shape[:-1])
        for one, part, level in zip(self.factors, self.split(x), self.levels(sigma), strict=True):
            total = total + term(one, part, level)
        return total

    def stretch(self, size: Callable[[Clock], float], like: Tensor) -> Tensor | None:
        """Return ``S_f / S`` of every tangent coordinate, ``[*tangent]``; None where all factors run on the common clock."""
        if not self.clocks:
            return None
        whole = size(Proportional())
        return self.spread([math.sqrt(size(clock) / whole) for clock in self.clocks], like)

    def spread(self, values: Sequence[float], like: Tensor) -> Tensor:
        """Return one number for each factor as one for each tangent coordinate, ``[*tangent]``."""
        return torch.cat([like.new_full((math.prod(one.tangent),), value) for one, value in zip(self.factors, values, strict=True)])
