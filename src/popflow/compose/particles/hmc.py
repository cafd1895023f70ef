"""Ground truth for particle systems: parallel-tempered Hamiltonian Monte Carlo, all walkers of all temperatures in one batch.

A sweep is a Hamiltonian trajectory of every walker at its own temperature, for ``H = E(x)/T + |p|^2/2`` with centred momenta, followed by
an exchange of configurations between neighbouring temperatures, accepted with probability ``min(1, exp((1/T_i - 1/T_j)(E_i - E_j)))``. Both
leave ``prod_i exp(-E(x_i)/T_i)`` invariant. Low temperatures mix because their configurations come down from high ones.

Source: Duane et al., Phys. Lett. B 195 (1987); Swendsen and Wang, Phys. Rev. Lett. 57 (1986); Geyer (1991).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from popflow.compose.particles.energies import Cluster, apart, positive
from popflow.core import Population, State, Step, Streams, Trace, chain, simulate

ACCEPTANCE = 0.75
"""Acceptance that step sizes are adapted to while burning in."""
JITTER = 0.2
"""Step sizes of single trajectories vary by this share, so that none is periodic."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What `tempered` returns, for temperatures ``T_1 < ... < T_R``.

    Attributes:
        temperatures: The ladder.
        x: Kept configurations ``[R, kept * chains, n, d]``, centred; rows of one sweep stand together.
        energies: Of every sweep after burning in, ``[sweeps, R, chains]``.
        acceptance: Share of accepted trajectories at each temperature, ``[R]``.
        exchanged: Share of accepted exchanges of neighbours, ``[R - 1]``.
        step_size: Adapted leapfrog steps, ``[R]``.
    """

    temperatures: tuple[float, ...]
    x: Tensor
    energies: Tensor
    acceptance: Tensor
    exchanged: Tensor
    step_size: Tensor

    def at(self, temperature: float) -> Tensor:
        """Return the configurations of one temperature of the ladder, ``[kept * chains, n, d]``."""
        if temperature not in self.temperatures:
            raise ValueError(f"temperature={temperature!r}, wanted one of the ladder: {', '.join(map(repr, self.temperatures))}.")
        return self.x[self.temperatures.index(temperature)]


def tempered(
    system: Cluster,
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
) -> Reference:
    """Sample ``exp(-E/T)`` at a ladder of temperatures.

    Args:
        system: Whose energy.
        temperatures: Increasing; near enough that exchanges are accepted (20 to 50 percent). One temperature is plain HMC.
        start: Where every walker starts, ``[n, d]``; it is centred.
        sweeps: Sweeps after burning in.
        burn: Sweeps before, in which step sizes are adapted to an acceptance of 0.75.
        rng: Random streams ``momentum``, ``accept`` and ``exchange``.
        chains: Walkers at each temperature.
        keep_every: Sweeps between kept configurations.
        leapfrogs: Leapfrog steps of a trajectory.
        step_size: Of a leapfrog step at first.

    Raises:
        ValueError: for a ladder that does not increase, counts below one, or particles that start on one another.

    Example:
        >>> from popflow.compose.particles import Cluster
        >>> trap = Cluster("trap", 3, 1, lambda r2: (0 * r2, 0 * r2), trap=1.0)  # n - 1 = 2 degrees of freedom: mean energy T
        >>> found = tempered(trap, (1.0, 2.0), torch.tensor([[-1.0], [0.0], [1.0]]), sweeps=400, burn=100, rng=Streams(0), chains=64, step_size=0.3)
        >>> [round(value, 1) for value in found.energies.mean((0, 2)).tolist()]
        [1.0, 2.0]
    """
    ladder = tuple(float(t) for t in temperatures)
    if not ladder or any(b <= a for a, b in pairwise(ladder)):
        raise ValueError(f"temperatures={ladder}, wanted at least one, strictly increasing.")
    positive("temperatures[0]", ladder[0])
    for name, value in {"sweeps": sweeps, "chains": chains, "keep_every": keep_every, "leapfrogs": leapfrogs}.items():
        if value < 1:
            raise ValueError(f"{name}={value!r}, wanted at least 1.")
    first = apart(system, system.space.check(start.double()), what="start")
    x = first.expand(len(ladder), chains, *system.event).clone()
    energy, force = system.energy_and_force(x)
    like = torch.zeros_like(energy)
    pop = Population.of(
        x, 1, energy=energy, force=force, step_size=like + positive("step_size", step_size), accepted=like.clone(), exchanged=like.clone()
    )
    if burn:
        adapting = chain(trajectories(system, ladder, leapfrogs, adapt=0.1), exchange(ladder))
        pop = simulate(adapting, pop, range(burn + 1), rng=rng)
        pop = pop.replace(aux={**pop.aux, "accepted": like.clone(), "exchanged": like.clone()})
    trace, kept = Trace(energy=lambda state: state.pop.aux["energy"]), []

    def keep(state: State) -> None:
        if state.k:
            trace(state)
            if state.k % keep_every == 0:
                kept.append(state.pop.x)

    pop = simulate(chain(trajectories(system, ladder, leapfrogs), exchange(ladder)), pop, range(sweeps + 1), rng=rng, record=[keep])
    configurations = torch.stack(kept, 1).flatten(1, 2) if kept else pop.x[:, :0]
    tries = torch.tensor([(sweeps + 1 - i % 2) // 2 for i in range(len(ladder))], dtype=torch.float64)
    return Reference(
        ladder,
        configurations,
        trace["energy"],
        pop.aux["accepted"].mean(1) / sweeps,
        (pop.aux["exchanged"].mean(1) / tries)[:-1],
        pop.aux["step_size"].mean(1),
    )


def trajectories(system: Cluster, temperatures: Sequence[float], leapfrogs: int = 12, adapt: float = 0.0) -> Step:
    """One Hamiltonian trajectory of every walker ``x [R, chains, n, d]`` at its temperature; exactly invariant for ``adapt = 0``.

    Companions: ``energy`` and ``force`` of ``x``, ``step_size``, and ``accepted``, which counts.

    Args:
        system: Whose energy.
        temperatures: One for each of the ``R`` rows.
        leapfrogs: Leapfrog steps.
        adapt: Gain of ``log step_size += adapt (acceptance - 0.75)``, with the acceptance of the row; 0 leaves the step alone.
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        beta = pop.x.new_tensor(temperatures).reciprocal()[:, None]
        slope = beta[..., None, None]
        x, energy, force, size = pop.x, pop.aux["energy"], pop.aux["force"], pop.aux["step_size"]
        p = system.space.project(rng.normal("momentum", x))
        h = (size * (1 - JITTER + 2 * JITTER * rng.uniform("accept", tuple(size.shape), size.dtype)))[..., None, None]
        before = beta * energy + p.square().sum((-1, -2)) / 2
        y, e, f = x, energy, force
        p = p + h / 2 * slope * f
        for k in range(leapfrogs):
            y = y + h * p
            e, f = system.energy_and_force(y)
            p = p + (h if k < leapfrogs - 1 else h / 2) * slope * f
        gain = before - beta * e - p.square().sum((-1, -2)) / 2
        accept = rng.uniform("accept", tuple(size.shape), size.dtype).log() < gain  # a trajectory onto another particle gives NaN: refused
        mask = accept[..., None, None]
        if adapt:
            rate = gain.clamp_max(0).exp().nan_to_num(0.0).mean(-1, keepdim=True)
            size = size * (adapt * (rate - ACCEPTANCE)).exp()
        moved = {
            "energy": torch.where(accept, e, energy),
            "force": torch.where(mask, f, force),
            "step_size": size,
            "accepted": pop.aux["accepted"] + accept,
        }
        return pop.replace(x=torch.where(mask, y, x), aux={**pop.aux, **moved})

    return step


def exchange(temperatures: Sequence[float]) -> Step:
    """Exchange the configurations of neighbouring temperatures: rows (0, 1), (2, 3), ... at even times, (1, 2), (3, 4), ... at odd ones.

    ``exchanged`` counts, in the lower row of a pair.
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

    ``sweeps * chains / tau`` is the number of effectively independent values.

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
