"""Steps in a space: follow rates, draw noise, apply a Langevin kernel.

`follow` takes a step: the core's `advance` moves a population that stands at the zero of its tangent spaces, and the space moves the points by the
displacement that comes out. Growth and tracked integrals ``<dx, dX>`` are thus paired in the frame. Where the factors of a product have clocks of
their own, tangent vectors are *stretched*: written in coordinates in which every factor runs on the common clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from popflow.compose.spaces.space import Euclidean, Space
from popflow.core import Population, Rates, Step, Streams, advance, langevin
from popflow.core.kernels import Refresh


def between(space: Space, sigma: float, lower: float, like: Tensor) -> Tensor | None:
    """Stretch of a step from one noise level to a lower one: ``sqrt(S_f^2 / S^2)`` for every factor f; a step to 0 denoises all of them fully."""
    return space.stretch(lambda clock: clock(sigma) ** 2 - (clock(lower) ** 2 if lower > 0 else 0.0), like)


def stretched(vector: Tensor, stretch: Tensor | None) -> Tensor:
    """Write a tangent vector in coordinates in which every factor of a product runs on the common clock."""
    return vector if stretch is None else vector * stretch


def step_length(v0: float, v1: float, straight: bool, stretch: Tensor | None) -> float:
    """Signed step on the clock ``v = sigma^2``; a straight one goes in sigma, ``dv = 2 sigma (sigma' - sigma)``.

    Without noise paths are nearly straight in sigma (the step of DDIM). Factors with clocks of their own have no common sigma: they step in v.
    """
    if straight and stretch is None:
        v1 = v0 + 2 * math.sqrt(v0) * (math.sqrt(v1) - math.sqrt(v0))
    return v1 - v0


def at_zero(space: Space, pop: Population) -> Population:
    """Put a population at the zero of its tangent spaces: `advance` then tracks what a step tracks, without moving the points."""
    if isinstance(space, Euclidean):
        return pop
    return pop.replace(x=pop.x.new_zeros(*pop.log_w.shape, *space.tangent))


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
        >>> from popflow.compose import CentredParticles
        >>> pop = Population.of(torch.zeros(1, 2, 1))  # one configuration of two particles on a line
        >>> rates = Rates(drift=torch.tensor([[[1.0], [-1.0]]]))
        >>> follow(CentredParticles(2, 1), pop, rates, 0.5, None).x.flatten().tolist()
        [0.5, -0.5]
    """
    if isinstance(space, Euclidean):
        return advance(pop, rates, h, noise)
    moved = advance(at_zero(space, pop), rates, h, noise)
    return moved.replace(x=space.move(pop.x, stretched(moved.x, stretch)))


def noise_for(space: Space, pop: Population, rng: Streams) -> Tensor:
    """Draw the noise of a step from the stream ``noise``, ``[*batch, n, *tangent]``."""
    if isinstance(space, Euclidean):
        return rng.normal("noise", pop.x)
    return space.project(rng.normal("noise", pop.x.new_empty(*pop.log_w.shape, *space.tangent)))


def kernel(
    space: Space,
    score: Callable[[float, Population], Tensor],
    step_size: Callable[[float], float],
    steps: int,
    *,
    tracked: tuple[str, ...] = (),
    refresh: Refresh | None = None,
    precision: Callable[[float, Population], float | Tensor] | None = None,
) -> Step:
    """Langevin kernel of a space at the new level: ``steps`` moves by ``eta s + sqrt(2 eta - eta^2 P) z``, ``eta = step_size(sigma)`` at each factor's own level.

    In Euclidean space this is `popflow.core.langevin`, whose arguments ``tracked``, ``refresh`` and ``precision`` are.
    """

    def size(v: float) -> float:
        return step_size(math.sqrt(v))

    if isinstance(space, Euclidean):
        return langevin(score, size, steps, tracked=tracked, refresh=refresh, precision=precision)

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        stretch = space.stretch(lambda clock: step_size(clock(math.sqrt(t1))), pop.x)
        before = pop
        for _ in range(steps):

            def pull(v: float, still: Population, here: Population = pop) -> Tensor:
                return stretched(score(v, here), stretch)

            def stiff(v: float, still: Population, here: Population = pop) -> float | Tensor:
                own = 0.0 if precision is None else precision(v, here)
                return own if stretch is None else own * stretch.square()

            one = langevin(pull, size, 1, tracked=tracked if refresh is None else (), precision=stiff)
            moved = one(at_zero(space, pop), t0, t1, rng)
            pop = moved.replace(x=space.move(pop.x, space.project(stretched(moved.x, stretch))))
        return pop if refresh is None else refresh(t1, before, pop)

    return step
