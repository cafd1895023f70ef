"""Spaces that samples live in: Euclidean space and particles without their centre of mass; rotations and products have files of their own.

A space is a manifold with an orthonormal frame at every point. Scores, noise and displacements are tangent vectors written in that frame, so inner
products are plain sums and every formula of the samplers holds unchanged: the growth ``-(|S|^2 - sum beta_i |s_i|^2)/2`` has no curvature term
where the noising process is Brownian motion, since its Laplacian is ``div grad``, which is linear, and the two of them cancel. All that a sampler asks
of a space is how a displacement moves a point, how noise is made to fit the tangent space, and where samples start.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from popflow.core import PopflowWarning, Streams

Clock = Callable[[float], float]
"""The noise level of one factor of a product as a function of the common one."""


@runtime_checkable
class Space(Protocol):
    """What a sampler asks of a space.

    Attributes:
        event: Shape of a point.
        tangent: Shape of a tangent vector.
        dim: Degrees of freedom.
        flat: Whether all experts are taken to start at ``N(0, sigma^2)``; if not, samples are weighted at the start.
    """

    @property
    def event(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def tangent(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def dim(self) -> int: ...  # noqa: D102

    @property
    def flat(self) -> bool: ...  # noqa: D102

    def check(self, x: Tensor) -> Tensor:
        """Return points ``[..., *event]`` as points of the space, or raise an error that says what is wrong with them."""
        ...

    def check_levels(self, levels: Tensor) -> None:
        """Raise an error if steps between noise levels are too large for the space."""
        ...

    def project(self, vector: Tensor) -> Tensor:
        """Project onto the tangent space; standard normal values become standard normal noise."""
        ...

    def move(self, x: Tensor, displacement: Tensor) -> Tensor:
        """Move points by tangent vectors."""
        ...

    def gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        """Turn derivatives with respect to the numbers of a point, ``[..., *event]``, into a gradient ``[..., *tangent]``."""
        ...

    def start(self, like: Tensor, sigma: float, total: float, rng: Streams) -> Tensor:
        """Draw points shaped like ``like`` at the first noise level, for exponents that sum to ``total``; stream ``start``."""
        ...

    def log_start(self, x: Tensor, sigma: float, total: float) -> Tensor:
        """Log-density of `start`."""
        ...

    def log_reference(self, x: Tensor, sigma: float) -> Tensor:
        """Log-density at the first noise level of an expert that does not know its own."""
        ...

    def stretch(self, size: Callable[[Clock], float], like: Tensor) -> Tensor | None:
        """Return ``sqrt(size(own clock) / size(common clock))`` of every tangent coordinate; None where there is one clock."""
        ...


class FlatSpace:
    """What flat spaces share: points and tangent vectors have one shape, there is one clock, and samples start from a Gaussian."""

    if TYPE_CHECKING:

        @property
        def event(self) -> tuple[int, ...]: ...  # noqa: D102

        @property
        def dim(self) -> int: ...  # noqa: D102

    flat = True

    @property
    def tangent(self) -> tuple[int, ...]:
        """The shape of a point."""
        return self.event

    def check(self, x: Tensor) -> Tensor:
        """Return the points: all are valid."""
        return x

    def check_levels(self, levels: Tensor) -> None:
        """Accept any levels."""

    def project(self, vector: Tensor) -> Tensor:
        """Return the vector."""
        return vector

    def move(self, x: Tensor, displacement: Tensor) -> Tensor:
        """Add, and stay in the space in spite of rounding."""
        return self.project(x + displacement)

    def gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        """Project the derivatives."""
        return self.project(slope)

    def start(self, like: Tensor, sigma: float, total: float, rng: Streams) -> Tensor:
        """Draw from ``N(0, sigma^2 / total)``."""
        return self.project(rng.normal("start", like)) * (sigma / math.sqrt(total))

    def log_start(self, x: Tensor, sigma: float, total: float) -> Tensor:
        """``log N(x; 0, sigma^2 / total)``."""
        return self.log_reference(x, sigma / math.sqrt(total))

    def log_reference(self, x: Tensor, sigma: float) -> Tensor:
        """``log N(x; 0, sigma^2)``, in as many dimensions as there are degrees of freedom."""
        event = len(self.event)
        square = x.flatten(x.ndim - event).square().sum(-1) if event else x.square()
        return -square / (2 * sigma**2) - self.dim / 2 * math.log(2 * math.pi * sigma**2)

    def stretch(self, size: Callable[[Clock], float], like: Tensor) -> None:
        """Return None: there is one clock."""


@dataclass(frozen=True)
class Euclidean(FlatSpace):
    """Samples of one shape in one latent space: the space of an expert that only has a label.

    >>> Euclidean((2, 3)).dim
    6
    """

    event: tuple[int, ...]  # pyright: ignore[reportIncompatibleMethodOverride]
    label: str = "data"

    @property
    def dim(self) -> int:
        """As many as a point has numbers."""
        return math.prod(self.event)


@dataclass(frozen=True)
class CentredParticles(FlatSpace):
    """``count`` particles in ``axes`` dimensions whose centre of mass is the origin: points ``[count, axes]`` with ``axes (count - 1)`` degrees of freedom.

    Everything lives in the subspace ``sum_i x_i = 0``: scores and noise lose their mean over the particles. Norms are sums over all numbers,
    log-densities and log Z count the degrees of freedom.

    Example:
        >>> import torch
        >>> space = CentredParticles(13)
        >>> space.dim, bool(space.project(torch.randn(4, 13, 3, generator=torch.Generator().manual_seed(0))).mean(1).abs().max() < 1e-6)
        (36, True)
    """

    count: int
    axes: int = 3

    def __post_init__(self):
        if self.count < 2 or self.axes < 1:
            raise ValueError(f"count={self.count}, axes={self.axes}, wanted at least 2 particles in at least 1 dimension.")

    @property
    def event(self) -> tuple[int, ...]:
        """``(count, axes)``."""
        return self.count, self.axes

    @property
    def dim(self) -> int:
        """``axes (count - 1)``."""
        return self.axes * (self.count - 1)

    def check(self, x: Tensor) -> Tensor:
        """Return configurations ``[..., count, axes]`` without their centres of mass, with a warning where they had one.

        Raises:
            ValueError: for another shape.
        """
        if tuple(x.shape[-2:]) != self.event:
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted [..., {self.count}, {self.axes}]: {self.count} particles.")
        centre = x.mean(-2, keepdim=True)
        limit = 1e-5 * float(x.square().mean().sqrt())
        off = int((centre.abs().amax((-2, -1)) > limit).sum())
        if off:
            warnings.warn(
                f"{off} of {math.prod(x.shape[:-2])} configurations have a centre of mass away from 0 (largest {float(centre.abs().max()):.3g}); it "
                "was subtracted. Subtract it yourself to silence this warning: x - x.mean(-2, keepdim=True).",
                PopflowWarning,
                stacklevel=2,
            )
        return x - centre

    def project(self, vector: Tensor) -> Tensor:
        """Subtract the mean over the particles."""
        return vector - vector.mean(-2, keepdim=True)
