"""Hamiltonian Monte Carlo and parallel tempering, for any energy whose gradient is known; all walkers of all temperatures in one batch.

A sweep is a Hamiltonian trajectory of every walker at its own temperature, for ``H = E(x)/T + |p|^2/2``, followed by an exchange of
configurations between neighbouring temperatures, accepted with probability ``min(1, exp((1/T_i - 1/T_j)(E_i - E_j)))``. Both leave
``prod_i exp(-E(x_i)/T_i)`` invariant. Low temperatures mix because their configurations come down from high ones.

Source: Duane et al., Phys. Lett. B 195 (1987); Swendsen and Wang, Phys. Rev. Lett. 57 (1986); Geyer (1991).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from popflow.core.checks import at_least_one
from popflow.core.population import Population
from popflow.core.simulate import State, Trace, simulate
from popflow.core.steps import Step, chain
from popflow.core.streams import Streams

Energy = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``energy(x)`` returns the energy ``[*rows]`` and the force ``-grad E`` ``[*rows, *event]`` of ``x [*rows, *event]``."""
Projection = Callable[[Tensor], Tensor]
"""Projects momenta onto the directions in which ``x`` may move, for example those that keep a centre of mass."""

ACCEPTANCE = 0.75
"""Acceptance rate that step sizes are tuned to during burn-in."""
JITTER = 0.2
"""Each trajectory varies its step size by up to this fraction, so that none is periodic."""


@dataclass(frozen=True, eq=False)
class Tempered:
    """What `parallel_tempering` returns, for temperatures ``T_1 < ... < T_R``.

    Attributes:
        temperatures: The ladder.
        x: Configurations kept, ``[R, kept * chains, *event]``; those of one sweep are adjacent.
        energies: Energies after every sweep, burn-in excluded, ``[sweeps, R, chains]``.
        acceptance: Fraction of trajectories accepted at each temperature, ``[R]``.
        exchanged: Fraction of exchanges accepted between neighbours, ``[R - 1]``.
        step_size: Tuned leapfrog step sizes, ``[R]``.
    """

    temperatures: tuple[float, ...]
    x: Tensor
    energies: Tensor
    acceptance: Tensor
    exchanged: Tensor
    step_size: Tensor

    def at(self, temperature: float) -> Tensor:
        """Return the configurations at one temperature of the ladder, ``[kept * chains, *event]``."""
        if temperature not in self.temperatures:
            raise ValueError(f"temperature={temperature!r}, wanted one of the ladder: {', '.join(map(repr, self.temperatures))}.")
        return self.x[self.temperatures.index(temperature)]


def parallel_tempering(
    energy: Energy,
    temperatures: Sequence[float],
    start: Tensor,
    *,
    sweeps: int,
    burn: int,
    rng: Streams,
    chains: int = 32,
    keep_every: int = 10,
    leapfrogs: int = 12,
    step_size: float = 0.025,
    project: Projection | None = None,
) -> Tempered:
    """Sample ``exp(-E/T)`` at a ladder of temperatures.

    Args:
        energy: Energy and force, see `Energy`.
        temperatures: Increasing, and close enough that 20 to 50 percent of exchanges are accepted. A single temperature is plain HMC.
        start: Where every walker starts, shaped like one configuration.
        sweeps: Sweeps after burn-in.
        burn: Burn-in sweeps, which tune the step sizes to an acceptance of 0.75.
        rng: Random streams ``momentum``, ``accept`` and ``exchange``.
        chains: Walkers at each temperature.
        keep_every: Sweeps between kept configurations.
        leapfrogs: Leapfrog steps of a trajectory.
        step_size: Initial leapfrog step size.
        project: Projection of the momenta; None for none.

    Raises:
        ValueError: for a ladder that does not increase, a count below one, or a step size that is not positive.

    Example:
        >>> found = parallel_tempering(lambda x: (x.square().sum(-1) / 2, -x), (1.0, 2.0), torch.zeros(2), sweeps=400, burn=100, rng=Streams(0),
        ...     chains=64, step_size=0.3)
        >>> [round(value, 1) for value in found.energies.mean((0, 2)).tolist()]  # two degrees of freedom: mean energy T
        [1.0, 2.0]
    """
    ladder = tuple(float(t) for t in temperatures)
    if not ladder or any(b <= a for a, b in pairwise(ladder)):
        raise ValueError(f"temperatures={ladder}, wanted at least one, strictly increasing.")
    for name, value in {"temperatures[0]": ladder[0], "step_size": step_size}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r}, wanted a finite number above 0.")
    at_least_one(sweeps=sweeps, chains=chains, keep_every=keep_every, leapfrogs=leapfrogs)
    x = start.expand(len(ladder), chains, *start.shape).clone()
    e, force = energy(x)
    none = torch.zeros_like(e)
    pop = Population.of(x, 1, energy=e, force=force, step_size=none + step_size, accepted=none.clone(), exchanged=none.clone())
    swap = replica_exchange(ladder)
    if burn:
        pop = simulate(chain(hmc(energy, ladder, leapfrogs, adapt=0.1, project=project), swap), pop, range(burn + 1), rng=rng)
        pop = pop.replace(aux={**pop.aux, "accepted": none.clone(), "exchanged": none.clone()})
    trace, kept = Trace(energy=lambda state: state.pop.aux["energy"]), []

    def keep(state: State) -> None:
        if state.k:
            trace(state)
            if state.k % keep_every == 0:
                kept.append(state.pop.x)

    pop = simulate(chain(hmc(energy, ladder, leapfrogs, project=project), swap), pop, range(sweeps + 1), rng=rng, record=[keep])
    tries = torch.tensor([(sweeps + 1 - i % 2) // 2 for i in range(len(ladder))], dtype=torch.float64)
    return Tempered(
        ladder,
        torch.stack(kept, 1).flatten(1, 2) if kept else pop.x[:, :0],
        trace["energy"],
        pop.aux["accepted"].mean(1) / sweeps,
        (pop.aux["exchanged"].mean(1) / tries)[:-1],
        pop.aux["step_size"].mean(1),
    )


def hmc(
    energy: Energy, temperatures: Sequence[float], leapfrogs: int = 12, *, adapt: float = 0.0, project: Projection | None = None
) -> Step:
    """One Hamiltonian trajectory of every walker ``x [R, chains, *event]`` at its temperature; exactly invariant for ``adapt = 0``.

    The population carries ``energy`` and ``force`` of ``x``, ``step_size``, and ``accepted``, a count.

    Args:
        energy: Energy and force.
        temperatures: One for each of the ``R`` rows.
        leapfrogs: Leapfrog steps.
        adapt: Gain of ``log step_size += adapt (acceptance - 0.75)``, with the acceptance of the row; 0 leaves step sizes alone.
        project: Projection of the momenta; None for none.
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        event = tuple(range(-len(pop.event), 0))
        beta = pop.x.new_tensor(temperatures).reciprocal()[:, None]
        slope = _over(beta, event)
        x, old, force, size = pop.x, pop.aux["energy"], pop.aux["force"], pop.aux["step_size"]
        p = rng.normal("momentum", x)
        p = p if project is None else project(p)
        h = _over(size * (1 - JITTER + 2 * JITTER * rng.uniform("accept", tuple(size.shape), size.dtype)), event)
        before = beta * old + p.square().sum(event) / 2
        y, e, f = x, old, force
        p = p + h / 2 * slope * f
        for k in range(leapfrogs):
            y = y + h * p
            e, f = energy(y)
            p = p + (h if k < leapfrogs - 1 else h / 2) * slope * f
        gain = before - beta * e - p.square().sum(event) / 2
        accept = rng.uniform("accept", tuple(size.shape), size.dtype).log() < gain  # an infinite energy gives NaN: rejected
        mask = _over(accept, event)
        if adapt:
            rate = gain.clamp_max(0).exp().nan_to_num(0.0).mean(-1, keepdim=True)
            size = size * (adapt * (rate - ACCEPTANCE)).exp()
        moved = {
            "energy": torch.where(accept, e, old),
            "force": torch.where(mask, f, force),
            "step_size": size,
            "accepted": pop.aux["accepted"] + accept,
        }
        return pop.replace(x=torch.where(mask, y, x), aux={**pop.aux, **moved})

    return step


def replica_exchange(temperatures: Sequence[float]) -> Step:
    """Exchange the configurations of neighbouring temperatures: rows (0, 1), (2, 3), ... at even times, (1, 2), (3, 4), ... at odd ones.

    ``exchanged`` counts in the lower row of a pair.
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        first = int(t0) % 2
        if first >= len(temperatures) - 1:
            return pop
        low = torch.arange(first, len(temperatures) - 1, 2)
        beta, energy = pop.x.new_tensor(temperatures).reciprocal(), pop.aux["energy"]
        gain = (beta[low] - beta[low + 1])[:, None] * (energy[low] - energy[low + 1])
        accept = rng.uniform("exchange", tuple(gain.shape), gain.dtype).log() < gain

        def swapped(value: Tensor) -> Tensor:
            mask = accept.reshape(*accept.shape, *[1] * (value.ndim - 2))
            lower, upper, out = value[low], value[low + 1], value.clone()
            out[low], out[low + 1] = torch.where(mask, upper, lower), torch.where(mask, lower, upper)
            return out

        counted = pop.aux["exchanged"].clone()
        counted[low] += accept
        companions = {"energy": swapped(energy), "force": swapped(pop.aux["force"]), "exchanged": counted}
        return pop.replace(x=swapped(pop.x), aux={**pop.aux, **companions})

    return step


def autocorrelation_time(values: Tensor) -> float:
    """Integrated autocorrelation time of ``[sweeps, chains]``, in sweeps: ``tau = 1 + 2 sum_k rho_k``, summed up to the first ``k > 5 tau``.

    ``sweeps * chains / tau`` is the effective number of independent values.

    Example:
        >>> white = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
        >>> abs(autocorrelation_time(white) - 1) < 0.1
        True

    Source: Sokal, *Monte Carlo methods in statistical mechanics* (1996).
    """
    moving = values.double() - values.double().mean()
    n = len(moving)
    spectrum = torch.fft.rfft(moving, 2 * n, dim=0)
    covariance = torch.fft.irfft(spectrum.abs().square(), 2 * n, dim=0)[:n].mean(1) / torch.arange(n, 0, -1)
    tau = 1.0
    for k in range(1, n):
        tau += 2 * float(covariance[k] / covariance[0])
        if k > 5 * tau:
            break
    return tau


def _over(value: Tensor, event: tuple[int, ...]) -> Tensor:
    """Append one dimension for each event dimension."""
    return value[(..., *[None] * len(event))]
