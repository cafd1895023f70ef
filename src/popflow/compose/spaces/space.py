"""Where samples live: Euclidean space, particles without their centre of mass, rotations, and products of these.

A space is a manifold with an orthonormal frame at every point. Scores, noise and displacements are tangent vectors written in that frame, so inner
products are plain sums and every formula of the samplers holds as it stands: the growth ``-(|S|^2 - sum beta_i |s_i|^2)/2`` has no curvature term
where the noising process is Brownian motion, since its Laplacian is ``div grad``, which is linear, and the two of them cancel. All that a sampler asks
of a space is how a displacement moves a point, how noise is made to fit the tangent space, and where the noise levels start.

`follow` takes a step: the core's `advance` moves a population that stands at the zero of its tangent spaces, and the space moves the points by the
displacement that comes out. Growth and tracked integrals ``<dx, dX>`` are paired in the frame, as they must.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from popflow.core import PopflowWarning, Population, Rates, Step, Streams, advance, langevin
from popflow.core.kernels import Refresh

Clock = Callable[[float], float]
"""The noise level of one factor of a product as a function of the common one."""


@runtime_checkable
class Space(Protocol):
    """What a sampler asks of a space.

    Attributes:
        event: Shape of a point.
        tangent: Shape of a tangent vector.
        dim: Degrees of freedom.
        flat: Whether all experts are taken to start at ``N(0, sigma^2)``; if not, samples are weighed at the start.
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
        """Return points ``[..., *event]`` as points of the space, or say why they are none."""
        ...

    def check_levels(self, levels: Tensor) -> None:
        """Refuse steps between noise levels that are too large."""
        ...

    def project(self, vector: Tensor) -> Tensor:
        """Project onto the tangent space; standard normal values become standard normal noise."""
        ...

    def move(self, x: Tensor, displacement: Tensor) -> Tensor:
        """Move points by tangent vectors."""
        ...

    def gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        """Turn derivatives by the numbers of a point, ``[..., *event]``, into a gradient ``[..., *tangent]``."""
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


@dataclass(frozen=True)
class Euclidean:
    """Samples of one shape, of one latent space: the space of an expert that only has a label.

    >>> Euclidean((2, 3)).dim
    6
    """

    event: tuple[int, ...]
    label: str = "data"
    flat = True

    @property
    def tangent(self) -> tuple[int, ...]:
        """The shape of a point."""
        return self.event

    @property
    def dim(self) -> int:
        """As many as a point has numbers."""
        return math.prod(self.event)

    def check(self, x: Tensor) -> Tensor:
        """Return the points: all are."""
        return x

    def check_levels(self, levels: Tensor) -> None:
        """Accept any levels."""

    def project(self, vector: Tensor) -> Tensor:
        """Return the vector."""
        return vector

    def move(self, x: Tensor, displacement: Tensor) -> Tensor:
        """Add."""
        return x + displacement

    def gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        """Return the derivatives."""
        return slope

    def start(self, like: Tensor, sigma: float, total: float, rng: Streams) -> Tensor:
        """Draw from ``N(0, sigma^2 / total)``."""
        return rng.normal("start", like) * (sigma / math.sqrt(total))

    def log_start(self, x: Tensor, sigma: float, total: float) -> Tensor:
        """``log N(x; 0, sigma^2 / total)``."""
        return self.log_reference(x, sigma / math.sqrt(total))

    def log_reference(self, x: Tensor, sigma: float) -> Tensor:
        """``log N(x; 0, sigma^2)``."""
        return _log_normal(x, sigma, len(self.event), self.dim)

    def stretch(self, size: Callable[[Clock], float], like: Tensor) -> None:
        """Return None: there is one clock."""


@dataclass(frozen=True)
class CentredParticles:
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
    flat = True

    def __post_init__(self):
        if self.count < 2 or self.axes < 1:
            raise ValueError(f"count={self.count}, axes={self.axes}, wanted at least 2 particles in at least 1 dimension.")

    @property
    def event(self) -> tuple[int, ...]:
        """``(count, axes)``."""
        return self.count, self.axes

    @property
    def tangent(self) -> tuple[int, ...]:
        """The shape of a point."""
        return self.event

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
                f"{off} of {math.prod(x.shape[:-2])} configurations have a centre of mass away from 0 (largest {float(centre.abs().max()):.3g}): it "
                "was subtracted. Subtract it yourself to be rid of this warning: x - x.mean(-2, keepdim=True).",
                PopflowWarning,
                stacklevel=2,
            )
        return x - centre

    def check_levels(self, levels: Tensor) -> None:
        """Accept any levels."""

    def project(self, vector: Tensor) -> Tensor:
        """Subtract the mean over the particles."""
        return vector - vector.mean(-2, keepdim=True)

    def move(self, x: Tensor, displacement: Tensor) -> Tensor:
        """Add, and keep the centre of mass at the origin whatever rounding does to it."""
        return self.project(x + displacement)

    def gradient(self, x: Tensor, slope: Tensor) -> Tensor:
        """Subtract the mean force."""
        return self.project(slope)

    def start(self, like: Tensor, sigma: float, total: float, rng: Streams) -> Tensor:
        """Draw from the centred ``N(0, sigma^2 / total)``."""
        return self.project(rng.normal("start", like)) * (sigma / math.sqrt(total))

    def log_start(self, x: Tensor, sigma: float, total: float) -> Tensor:
        """``log N(x; 0, sigma^2 / total)`` in the subspace."""
        return self.log_reference(x, sigma / math.sqrt(total))

    def log_reference(self, x: Tensor, sigma: float) -> Tensor:
        """``log N(x; 0, sigma^2)`` in the subspace."""
        return _log_normal(x, sigma, 2, self.dim)

    def stretch(self, size: Callable[[Clock], float], like: Tensor) -> None:
        """Return None: there is one clock."""


def _log_normal(x: Tensor, sigma: float, event: int, dim: int) -> Tensor:
    square = x.flatten(x.ndim - event).square().sum(-1) if event else x.square()
    return -square / (2 * sigma**2) - dim / 2 * math.log(2 * math.pi * sigma**2)


def follow(space: Space, pop: Population, rates: Rates, h: float, noise: Tensor | None, stretch: Tensor | None = None) -> Population:
    """Follow rates given in the frame of a space for a signed time ``h``; in Euclidean space this is `popflow.core.advance`.

    Args:
        space: Where the population lives.
        pop: The population, ``x [*batch, n, *space.event]``.
        rates: Drift, noise scale and coefficients ``Ito.dx`` shaped like tangent vectors, of stretched scores where there is a stretch.
        h: Signed step.
        noise: From `noise_for`; None where the rates have no diffusion.
        stretch: From `between`.

    Example:
        >>> import torch
        >>> pop = Population.of(torch.zeros(1, 2, 1))  # one configuration of two particles on a line
        >>> rates = Rates(drift=torch.tensor([[[1.0], [-1.0]]]))
        >>> follow(CentredParticles(2, 1), pop, rates, 0.5, None).x.flatten().tolist()
        [0.5, -0.5]
    """
    if isinstance(space, Euclidean):
        return advance(pop, rates, h, noise)
    moved = advance(at_zero(space, pop), rates, h, noise)
    displacement = moved.x if stretch is None else moved.x * stretch
    return moved.replace(x=space.move(pop.x, displacement))


def noise_for(space: Space, pop: Population, rates: Rates, rng: Streams, stream: str = "noise") -> Tensor | None:
    """Draw the noise of a step, ``[*batch, n, *tangent]``; None where the rates have no diffusion."""
    if rates.diffusion is None:
        return None
    if isinstance(space, Euclidean):
        return rng.normal(stream, pop.x)
    return space.project(rng.normal(stream, pop.x.new_empty(*pop.log_w.shape, *space.tangent)))


def between(space: Space, sigma: float, lower: float, like: Tensor) -> Tensor | None:
    """Stretch of a step from one noise level to a lower one: ``sqrt(S_f^2 / S^2)`` of every factor f; a step to 0 denoises all of them whole."""
    return space.stretch(lambda clock: clock(sigma) ** 2 - (clock(lower) ** 2 if lower > 0 else 0.0), like)


def kernel(
    space: Space,
    score: Callable[[float, Population], Tensor],
    step_size: Callable[[float], float],
    steps: int,
    *,
    tracked: tuple[str, ...] = (),
    refresh: Refresh | None = None,
) -> Step:
    """Langevin kernel of a space at the new level, ``steps`` moves by ``eta s + sqrt(2 eta) z``, ``eta = step_size(sigma)`` of each factor's own level.

    As `popflow.core.langevin`, which it is in Euclidean space.
    """

    def size(v: float) -> float:
        return step_size(math.sqrt(v))

    if isinstance(space, Euclidean):
        return langevin(score, size, steps, tracked=tracked, refresh=refresh)

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        stretch = space.stretch(lambda clock: step_size(clock(math.sqrt(t1))), pop.x)
        before = pop
        for _ in range(steps):

            def pull(v: float, still: Population, here: Population = pop) -> Tensor:
                s = score(v, here)
                return s if stretch is None else s * stretch

            moved = langevin(pull, size, 1, tracked=tracked if refresh is None else ())(at_zero(space, pop), t0, t1, rng)
            displacement = space.project(moved.x if stretch is None else moved.x * stretch)
            pop = moved.replace(x=space.move(pop.x, displacement))
        return pop if refresh is None else refresh(t1, before, pop)

    return step


def at_zero(space: Space, pop: Population) -> Population:
    """Put a population at the zero of its tangent spaces: what `advance` tracks there is what a step tracks, without moving the points."""
    if isinstance(space, Euclidean):
        return pop
    return pop.replace(x=pop.x.new_zeros(*pop.log_w.shape, *space.tangent))
