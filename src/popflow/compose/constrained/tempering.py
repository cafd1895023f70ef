r"""The exact route: sequential Monte Carlo from the prior ``p(x)`` to ``pi(x)`` proportional to ``p(x) exp(-U(x))``, by values of ``U`` alone.

Particles start as draws from the prior. The inverse temperature ``lambda`` rises from 0 to 1; at each rise particles are weighted by
``exp(-(lambda' - lambda) U)``, with ``lambda'`` such that the effective sample size falls to a chosen share, resampled, and moved by noise-denoise moves
(`prior`), each accepted with probability

    min(1, exp(-lambda (U(x') - U(x))))

The move is reversible with respect to ``p``, so the acceptance needs no density, and the kernel leaves ``p exp(-lambda U)`` invariant. What error remains is that of
the prior: its network, and the steps of its reverse diffusion. ``U = inf`` rules a row out.

Source: Del Moral, Doucet and Jasra, *Sequential Monte Carlo samplers*, J. R. Stat. Soc. B 68 (2006); derivative-free variant of Kong et al., *Diffusion models
as constrained samplers for optimization with unknown constraints* (2025).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.constrained.prior import Prior
from popflow.core import PopflowWarning, Population, Recorder, State, Streams, ZeroWeightsError, chain, resample_if, simulate, temper
from popflow.core.checks import at_least_one

Potential = Callable[[Tensor], Tensor]
"""``U(x [rows, dim]) -> [rows]``; infinity for rows that are ruled out, never NaN."""

_LEAST, _MOST = 0.03, 5.0
_VISITED = ("visited", "visited_potential")


@dataclass(frozen=True, slots=True)
class Level:
    """One temperature.

    Attributes:
        fraction: ``lambda``.
        ess: Effective sample size before resampling, as a share of the particles; the least one of several populations.
        acceptance: Share of moves accepted, among those that changed the row.
        sigma: Noise level of the moves.
    """

    fraction: float
    ess: float
    acceptance: float
    sigma: float


@dataclass(frozen=True, eq=False)
class Tempered:
    """What `tempered` returns.

    Attributes:
        population: Particles ``[*batch, n, dim]`` with their weights; ``aux["potential"]`` holds ``U``, ``aux["ancestor"]`` the first particle of each line.
        levels: The temperatures passed.
        visited: The different rows of least ``U`` among all that were proposed, ``[*batch, n, dim]``, ascending in ``U``.
        visited_potential: Their ``U``, infinite where there are fewer rows than places.
    """

    population: Population
    levels: tuple[Level, ...]
    visited: Tensor
    visited_potential: Tensor

    @property
    def acceptance(self) -> float:
        """Acceptance at the last temperature."""
        return self.levels[-1].acceptance


def tempered(
    prior: Prior,
    potential: Potential | Sequence[Potential],
    start: Tensor,
    *,
    rng: Streams,
    ess: float = 0.5,
    moves: int = 3,
    last_moves: int = 6,
    steps: int = 20,
    record: Iterable[Recorder] = (),
    resume: State | None = None,
) -> Tempered:
    """Sample ``p exp(-U)`` by sequential Monte Carlo.

    Args:
        prior: The prior.
        potential: ``U``, or one for each of several populations; evaluated at the start and at every row proposed that is new.
        start: Draws from the prior, ``[*batch, n, dim]``: leading dimensions are independent populations, which share temperatures and noise levels.
        rng: Random streams.
        ess: Share of the particles to which the effective sample size may fall in one step.
        moves: Noise-denoise moves at each temperature.
        last_moves: Moves at the last one.
        steps: Steps of the reverse diffusion of a move.
        record: Recorders; the time of a state is ``lambda``.
        resume: A recorded state to go on from.

    Raises:
        ValueError: for a share outside (0, 1) or counts below one.
        ZeroWeightsError: when every particle of the start is ruled out.

    Example:
        >>> from popflow.compose import gaussian_mixture
        >>> x = Streams(0).normal("data", torch.empty(4000, 1))
        >>> prior = Prior.of(gaussian_mixture(torch.zeros(1, 1), 1.0), x, rng=Streams(0))
        >>> found = tempered(prior, lambda x: 4 * (x[:, 0] - 1).square() / 2, prior.draw(1000, Streams(0)), rng=Streams(0))
        >>> abs(float(found.population.mean()) - 0.8) < 0.05
        True
    """
    if not 0 < ess < 1:
        raise ValueError(f"ess={ess!r}, wanted a share of the particles in (0, 1): 0.5 is usual.")
    at_least_one(moves=moves, last_moves=last_moves, steps=steps)
    record, levels = tuple(record), []
    if resume is None:
        state = State(0, 0.0, _start(potential, start), rng)
        for recorder in record:
            recorder(state)
    else:
        state = resume
        levels = [Level(*row) for row in state.pop.aux["levels"].reshape(-1, state.pop.aux["levels"].shape[-1])[0].reshape(-1, 4).tolist()]
    while state.t < 1:
        bare = {name: value for name, value in state.pop.aux.items() if name not in _VISITED}
        pop = resample_if(1.0)(state.pop.replace(aux=bare), state.t, state.t, rng)
        pop = pop.replace(aux={**pop.aux, **{name: state.pop.aux[name] for name in _VISITED}})
        then = next_fraction(pop.aux["potential"], state.t, ess)
        count = last_moves if then == 1 else moves
        step = chain(temper(lambda pop, t0, t1: -(t1 - t0) * pop.aux["potential"]), _moves(prior, potential, count, steps))
        pop = simulate(step, pop, [state.t, then], rng=rng)
        changed, accepted = (float(pop.aux[name].sum()) for name in ("changed", "accepted"))
        share = float(pop.ess().min()) / len(pop)
        levels.append(Level(then, share, accepted / max(changed, 1.0), float(pop.aux["sigma"].flatten()[0])))
        history = torch.tensor(levels_as_rows(levels), dtype=torch.float64, device=pop.x.device).flatten()
        pop = pop.replace(aux={**pop.aux, "levels": history.expand(*pop.log_w.shape, len(history))})
        state = State(state.k + 1, then, pop, rng)
        for recorder in record:
            recorder(state)
    _tell(levels)
    aux = {name: value for name, value in state.pop.aux.items() if name not in ("levels", *_VISITED)}
    return Tempered(state.pop.replace(aux=aux), tuple(levels), *(state.pop.aux[name] for name in _VISITED))


def levels_as_rows(levels: Iterable[Level]) -> list[list[float]]:
    """Return levels as rows of numbers."""
    return [[one.fraction, one.ess, one.acceptance, one.sigma] for one in levels]


def next_fraction(potential: Tensor, fraction: float, ess: float) -> float:
    """Return the largest ``lambda'`` up to 1 at which every population keeps a share ``ess`` of its effective sample size; rows ruled out do not count.

    Args:
        potential: ``U`` of equally weighted particles, ``[*batch, n]``.
        fraction: ``lambda``.
        ess: The share.

    Raises:
        ZeroWeightsError: when all particles of a population are ruled out.

    >>> next_fraction(torch.tensor([1.0, 1.0]), 0.25, 0.5)
    1.0
    """
    rows = potential.double().reshape(-1, potential.shape[-1])
    alive = rows.isfinite().sum(1)
    if not bool((alive > 0).all()):
        raise ZeroWeightsError(
            f"potential: all {rows.shape[1]} particles of a population are ruled out, wanted at least one that is feasible. Fix: check is_feasible and the "
            "objective on rows of the data, use more particles, or give the constraint as an energy, which leads there gradually."
        )
    low = rows.masked_fill(~rows.isfinite(), math.inf).amin(1, keepdim=True)

    def holds(step: float) -> bool:
        weights = (-(step) * (rows - low)).exp()
        return bool((weights.sum(1).square() / weights.square().sum(1) >= ess * alive).all())

    rest = 1.0 - fraction
    if holds(rest):
        return 1.0
    inside, outside = 0.0, rest
    for _ in range(60):
        middle = math.sqrt(max(inside, 1e-12) * outside) if inside < 1e-3 * outside else (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return min(1.0, fraction + max(inside, 1e-9))


def _start(potential: Potential | Sequence[Potential], x: Tensor) -> Population:
    batch = x.ndim - 2
    value = _values(potential, x, torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device))
    pop = Population.of(x, batch, potential=value)
    zero = torch.zeros_like(pop.log_w)
    ancestor = torch.arange(len(pop), device=x.device).expand(pop.log_w.shape).clone()
    aux = {"potential": value.to(pop.log_w), "sigma": zero + 1.0, "accepted": zero, "changed": zero, "ancestor": ancestor}
    return pop.replace(aux={**aux, **dict(zip(_VISITED, _least(x, aux["potential"], len(pop)), strict=True))})


def _least(x: Tensor, value: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The ``n`` different rows of least ``U`` among ``x [*batch, m, dim]``, and their ``U``; padded with the first row at infinity."""
    rows, values = [], []
    for one, u in zip(x.reshape(-1, *x.shape[-2:]), value.reshape(-1, value.shape[-1]), strict=True):
        order = u.argsort(stable=True)[: 4 * n]
        found, where = torch.unique(one[order], dim=0, return_inverse=True)
        best = torch.full((len(found),), math.inf, dtype=u.dtype, device=u.device).scatter_reduce(0, where, u[order], "amin")
        kept = best.argsort(stable=True)[:n]
        pad = n - len(kept)
        rows.append(torch.cat([found[kept], found[kept[:1]].expand(pad, -1)]))
        values.append(torch.cat([best[kept], best.new_full((pad,), math.inf)]))
    return torch.stack(rows).reshape(*x.shape[:-2], n, x.shape[-1]), torch.stack(values).reshape(*value.shape[:-1], n)


def _values(potential: Potential | Sequence[Potential], x: Tensor, where: Tensor) -> Tensor:
    """``U`` of the rows ``x [*batch, n, dim]`` chosen by ``where [*batch, n]``, in float64; zero elsewhere."""
    found = torch.zeros(where.shape, dtype=torch.float64, device=x.device)
    if isinstance(potential, Sequence):
        for one, rows, chosen, value in zip(potential, x, where, found, strict=True):
            if bool(chosen.any()):
                value[chosen] = one(rows[chosen]).double()
    elif bool(where.any()):
        found[where] = potential(x[where]).double()
    if bool((found.isnan() | (found == -math.inf)).any()):
        raise ValueError("potential: a value is NaN or minus infinity, wanted finite numbers, or infinity for rows that are ruled out.")
    return found


def _moves(
    prior: Prior, potential: Potential | Sequence[Potential], count: int, steps: int
) -> Callable[[Population, float, float, Streams], Population]:
    """Noise-denoise moves at the new temperature, at half, one and two times a noise level, which is tuned to the squared jumps."""

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        x, value, sigma = pop.x, pop.aux["potential"], float(pop.aux["sigma"].flatten()[0])
        accepted, changed = torch.zeros_like(pop.log_w), torch.zeros_like(pop.log_w)
        tried: list[tuple[float, float]] = []
        visited, known = (pop.aux[name] for name in _VISITED)
        for k in range(count):
            level = min(max(sigma * 2.0 ** (k % 3 - 1), _LEAST), _MOST)
            proposal = prior.renoise(x, level, steps, rng)
            new = (proposal != x).any(-1)
            u = rng.uniform("accept", tuple(value.shape), value.dtype).log()
            other = torch.where(new, _values(potential, proposal, new).to(value), value)
            seen = torch.where(new, other, math.inf)
            visited, known = _least(torch.cat([visited, proposal], -2), torch.cat([known, seen], -1), len(pop))
            accept = new & (u < -t1 * (other - value))  # two rows ruled out give NaN: rejected
            tried.append((math.log(level), float(torch.where(accept, (proposal - x).square().sum(-1), 0.0).mean())))
            x, value = torch.where(accept[..., None], proposal, x), torch.where(accept, other, value)
            accepted, changed = accepted + accept, changed + new
            if len(tried) == 3 or k == count - 1:
                sigma, tried = _tuned(sigma, tried), []
        told = {
            **dict(zip(_VISITED, (visited, known), strict=True)),
            "potential": value,
            "accepted": accepted,
            "changed": changed,
            "sigma": torch.full_like(accepted, sigma),
        }
        return pop.replace(x=x, aux={**pop.aux, **told})

    return step


def _tuned(sigma: float, tried: list[tuple[float, float]]) -> float:
    """The mean of the noise levels tried, in their logarithm, weighted by the mean squared jump of each (Pasarica and Gelman, 2010).

    Fewer than three levels do not lie about ``sigma``: it moves by what their weights say, and stays where they say nothing.

    >>> _tuned(1.0, [(math.log(0.5), 0.1)])
    1.0
    """
    total = sum(jump for _, jump in tried)
    if not total > 0:
        return max(sigma / 2, _LEAST)
    offset = 0.0 if len(tried) == 3 else math.log(sigma) - sum(log for log, _ in tried) / len(tried)
    return min(max(math.exp(sum(log * jump for log, jump in tried) / total + offset), _LEAST), _MOST)


def _tell(levels: list[Level]) -> None:
    last = levels[-1]
    if last.acceptance < 0.02:
        warnings.warn(
            f"the acceptance of moves fell to {last.acceptance:.3g} at the last temperature (noise level {last.sigma:.2g}): beta is so large that particles no "
            "longer move, and copies of few rows remain. Fix: a smaller beta, more particles, or more moves.",
            PopflowWarning,
            stacklevel=3,
        )
