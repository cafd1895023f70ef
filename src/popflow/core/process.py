"""The rates of a process (drift, diffusion, growth) and `advance`, the one function that follows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from popflow.core.population import Population, add


@dataclass(frozen=True, slots=True)
class Ito:
    """A scalar integrated along each particle's path: ``dA = dt * h + <dx, dX>``.

    The integral is left-point (Ito); ``dX`` is the particle's actual displacement, drift and noise together.

    Attributes:
        dt: Coefficient of time, ``[*batch, n, *k]`` or a number.
        dx: Coefficient of the displacement, ``[*batch, n, *k, *event]``, contracted with it over the event; None for no such term.
    """

    dt: Tensor | float = 0.0
    dx: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """The three terms of ``d_t p = -div(p v) + 1/2 sigma^2 lap p + p (g - E[g])``, and quantities tracked along the path.

    Attributes:
        drift: ``v``, ``[*batch, n, *event]``, per unit of signed time.
        diffusion: ``sigma``, per square root of time: a number or a tensor that broadcasts against ``x``; None draws no noise.
        growth: ``g`` as an `Ito` integral into ``log_w``; None leaves the weights alone.
        track: Name -> `Ito` integral into ``aux[name]``: log-densities, Girsanov weights, likelihoods.

    Raises:
        TypeError: when growth or a tracked quantity is no `Ito`.
    """

    drift: Tensor
    diffusion: Tensor | float | None = None
    growth: Ito | None = None
    track: Mapping[str, Ito] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, rate in {"growth": self.growth, **{f"track[{key!r}]": one for key, one in self.track.items()}}.items():
            if not isinstance(rate, Ito) and not (rate is None and name == "growth"):
                raise TypeError(f"{name} is a {type(rate).__name__}, wanted an Ito integral. Fix: Ito(dt=...) for a rate per time.")


Process = Callable[[float, Population], Rates]
"""The rates at a time. A process receives the whole population, so a drift may depend on all of it."""


def advance(pop: Population, rates: Rates, h: float, noise: Tensor | None = None) -> Population:
    """Follow the rates for a signed time ``h``: one displacement updates ``x``, ``log_w`` and ``aux``. Pure; the unit to compile.

    ``dX = drift h + diffusion sqrt|h| noise``, then ``x += dX``, ``log_w += growth``, ``aux[name] += track[name]``.

    Args:
        pop: The population.
        rates: Its rates at the current time.
        h: Signed step; noise scales with ``sqrt|h|``.
        noise: Standard normal values shaped like ``x``; required when ``rates.diffusion`` is given.

    Raises:
        ValueError: when noise is required and missing, a tracked quantity has no entry in ``aux``, or a rate has the wrong shape.

    Example:
        >>> import torch
        >>> pop = Population.of(torch.ones(3, 2))
        >>> rates = Rates(drift=-pop.x, growth=Ito(dt=1.0, dx=pop.x))
        >>> moved = advance(pop, rates, 0.5)
        >>> moved.x[0].tolist(), moved.log_w[0].item()
        ([0.5, 0.5], -0.5)
    """
    displacement = rates.drift * h
    if rates.diffusion is not None:
        if noise is None:
            raise ValueError("noise is None but rates.diffusion is given: pass standard normal values shaped like x, or diffusion=None.")
        displacement = displacement + rates.diffusion * math.sqrt(abs(h)) * noise
    event = len(pop.event)
    log_w = pop.log_w
    if rates.growth is not None:
        log_w = add("growth", log_w, integrate(rates.growth, h, displacement, event))
    aux = pop.aux
    if rates.track:
        missing = rates.track.keys() - aux.keys()
        if missing:
            raise ValueError(
                f"track names {sorted(missing)} are absent from the population's aux {sorted(aux)}: add them there, for example as zeros [*batch, n]."
            )
        moved = {name: add(f"track {name!r}", aux[name], integrate(ito, h, displacement, event)) for name, ito in rates.track.items()}
        aux = {**aux, **moved}
    return Population(add("drift", pop.x, displacement), log_w, pop.log_z, aux)


def integrate(ito: Ito, h: float, displacement: Tensor, event: int) -> Tensor | float:
    """Return the left-point increment ``dt h + <dx, dX>``; the last ``event`` dimensions are contracted."""
    total = ito.dt * h
    if ito.dx is None:
        return total
    companions = ito.dx.ndim - displacement.ndim
    if companions:
        particles = displacement.ndim - event
        displacement = displacement.reshape(*displacement.shape[:particles], *[1] * companions, *displacement.shape[particles:])
    paired = ito.dx * displacement
    return total + (paired.flatten(-event).sum(-1) if event else paired)
