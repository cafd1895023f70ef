"""From a model and an objective to candidates: the three routes, and what is reported of each candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from popflow.compose.constrained.langevin import corrected, guided
from popflow.compose.constrained.model import Model
from popflow.compose.constrained.objective import Constraint, Objective, Potential
from popflow.compose.constrained.tempering import Level, tempered
from popflow.core import Population, Streams, systematic

Route = Literal["exact", "langevin", "guided"]
Sampling = Callable[[str, Streams, int], Mapping[str, Any]]
"""``sampling(name, rng, last)`` returns recorders and a state to resume from."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rows proposed.

    Attributes:
        rows: In the user's form.
        z: Their coordinates, ``[n, dim]``.
        value: Their values in the user's units, ``[n, out]``: predicted, or from calls of the objective.
        uncertainty: One standard deviation of predictions, ``[n, out]``; NaN for values that are known.
        feasibility: Share of held-out rows that are no more typical of the data, ``[n]``.
    """

    rows: Any
    z: Tensor
    value: Tensor
    uncertainty: Tensor
    feasibility: Tensor


@dataclass(frozen=True, eq=False)
class Found:
    """The particles of a route, and how it went.

    Attributes:
        population: Particles ``[n, dim]``, or ``[weights, n, dim]``; ``aux["potential"]`` holds ``U``.
        acceptance: Share of moves accepted at the end; NaN for guidance alone, which has none.
        ess: Effective sample size of the last weights, of the least population.
        levels: Temperatures of the exact route; empty for the others.
        visited: Different rows of least ``U`` among all that were proposed, and their ``U``; the particles, for the approximate routes.
    """

    population: Population
    acceptance: float
    ess: float
    levels: tuple[Level, ...] = ()
    visited: tuple[Tensor, Tensor] | None = None

    def draw(self, n: int, rng: Streams) -> Tensor:
        """Draw rows ``[n, dim]`` by their weights, from all populations alike."""
        pop = self.population
        x, weights = pop.x.reshape(-1, pop.x.shape[-1]), pop.weights().reshape(-1)
        weights = weights / weights.sum()
        if n > len(weights):
            return x[torch.multinomial(weights, n, replacement=True, generator=rng("draw"))]
        order = torch.randperm(len(weights), generator=rng("draw"), device=weights.device)[:n]
        return x[
            systematic(weights, rng("draw"))[order]
        ]  # without replacement among the particles themselves, light ones would come too often

    def best(self, n: int) -> Tensor:
        """Return ``n`` different rows of least ``U`` among all that were proposed, the best first; fewer when fewer have a value.

        Several populations take turns: the best row of each, then the second of each.
        """
        pop = self.population
        x, value = (pop.x, pop.aux["potential"]) if self.visited is None else self.visited
        order = value.argsort(dim=-1, stable=True)
        x, value = x.gather(-2, order[..., None].expand_as(x)), value.gather(-1, order)
        if x.ndim == 3:
            x, value = x.transpose(0, 1).flatten(0, 1), value.T.flatten()
        x = x[value.isfinite()]
        rows, where = torch.unique(x, dim=0, return_inverse=True)
        first = torch.full((len(rows),), len(x), device=x.device).scatter_reduce(0, where, torch.arange(len(x), device=x.device), "amin")
        return x[first.sort().values[:n]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a route computes.

    Attributes:
        particles: Rows that are moved together.
        moves: Moves at each temperature.
        last_moves: Moves at the last one; for ``langevin``, steps are 20 times as many.
        reverse_steps: Steps of a reverse diffusion.
        ess: Share to which the effective sample size may fall.
    """

    particles: int = 1024
    moves: int = 3
    last_moves: int = 8
    reverse_steps: int = 30
    ess: float = 0.5


def explore(
    model: Model,
    objective: Objective,
    *,
    beta: float,
    route: Route,
    effort: Effort,
    constraints: Sequence[Constraint] = (),
    weights: Tensor | None = None,
    seed: int = 0,
    sampling: Sampling = lambda name, rng, last: {},
) -> Found:
    """Sample ``p exp(-beta h)`` by a route.

    Args:
        model: What was learned.
        objective: What is optimised.
        beta: Inverse temperature, in units of one over the standard deviation of the values.
        route: ``exact``: sequential Monte Carlo; ``guided``: stage 1 of Kong et al.; ``langevin``: both stages.
        effort: Sizes.
        constraints: Known constraints.
        weights: Weights of the objectives, ``[out]``, or ``[populations, out]`` for one population of ``effort.particles`` each (exact route).
        seed: Random seed.
        sampling: Recorders and states to resume from.

    Raises:
        ValueError: for a route that the objective does not admit.
    """
    rng = Streams(seed, model.rows.device)
    if route == "exact":
        many = weights is not None and weights.ndim == 2
        rows = list(weights) if many and weights is not None else [weights]
        each = [Potential(objective, beta, model.schema, constraints, one) for one in rows]
        potential = each if many else each[0]
        options, start = sampling("tempering", rng, 30), torch.empty(0)
        if options.get("resume") is None:
            start = model.prior.draw(effort.particles * len(each), rng, 2 * effort.reverse_steps)
            start = start.unflatten(0, (-1, effort.particles)) if many else start
        found = tempered(
            model.prior,
            potential,
            start,
            rng=rng,
            ess=effort.ess,
            moves=effort.moves,
            last_moves=effort.last_moves,
            steps=effort.reverse_steps,
            **options,
        )
        ess = float(found.population.ess().min())
        return Found(found.population, found.acceptance, ess, found.levels, (found.visited, found.visited_potential))
    potential = Potential(objective, beta, model.schema, constraints, weights)

    def noisy(y: Tensor, sigma: float) -> Tensor:
        if model.guide is None:
            return potential.gradient(y)
        with torch.enable_grad():
            point = y.detach().requires_grad_()
            h = model.guide(point, sigma)
            value = h[:, 0] if weights is None else h @ weights.to(h)
            (slope,) = torch.autograd.grad(value.sum(), point)
        return beta * slope

    if not objective.gradient and model.guide is None:
        potential.gradient(model.rows[:1])  # says what to do
    x = guided(
        model.prior,
        noisy,
        effort.particles,
        rng=rng,
        steps=4 * effort.reverse_steps,
        clip=2.0,
        **sampling("guidance", rng, 4 * effort.reverse_steps),
    )
    if route == "guided":
        pop = Population.of(x, 0, potential=potential(x).to(x))
        return Found(pop, float("nan"), float(effort.particles))
    moved = corrected(model.prior, potential.gradient, potential, x, rng=rng, steps=20 * effort.last_moves, **sampling("langevin", rng, 4))
    snapped = model.prior.snap(moved.x)
    moved = moved.replace(x=snapped, aux={**moved.aux, "potential": potential(snapped).to(moved.log_w)})
    return Found(moved, float(moved.aux["accepted"].mean()), float(effort.particles), ())


def describe(model: Model, objective: Objective, z: Tensor) -> Candidates:
    """Report rows ``z [n, dim]``: predictions with their uncertainty where there is a surrogate, else values of the objective."""
    if model.surrogate is not None:
        value, uncertainty = model.surrogate.predict(z)
    else:
        with torch.no_grad():
            value = objective.values(z).double() / model.units.sign * model.units.scale + model.units.shift
        uncertainty = torch.full_like(value, torch.nan)
    return Candidates(model.schema.decode(z), z, value, uncertainty, model.feasibility(z))
