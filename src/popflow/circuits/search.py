"""Classical searches over the same bit strings with the same number of cost calls: the baselines of a quantum hypernetwork.

Every search is a function ``search(oracle, *, calls, runs, generator) -> Found``. It makes ``runs`` independent searches side by side, each
with its own budget of ``calls``; a network evaluated twice counts twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from popflow.circuits.cost import Cost
from popflow.circuits.oracle import Oracle
from popflow.circuits.space import bits_of
from popflow.core.checks import at_least_one


@dataclass(frozen=True, slots=True)
class Found:
    """The best network of each run.

    Attributes:
        bits: ``[runs, n]``.
        cost: ``[runs]``.
        calls: ``[runs]`` cost calls made.
    """

    bits: Tensor
    cost: Tensor
    calls: Tensor


class _Ledger:
    """Keeps each run within its budget, and its best network."""

    def __init__(self, oracle: Oracle | Cost, calls: int, runs: int):
        at_least_one(calls=calls, runs=runs)
        self.oracle, self.budget = oracle, calls
        self.used = torch.zeros(runs, dtype=torch.long)
        n = oracle.n if isinstance(oracle, Oracle) else oracle.space.n
        self.found = Found(torch.zeros(runs, n, dtype=torch.uint8), torch.full((runs,), torch.inf).double(), self.used)

    @property
    def open(self) -> bool:
        return bool((self.used < self.budget).any())

    def ask(self, bits: Tensor, who: Tensor | None = None) -> Tensor:
        """Return the costs ``[runs, m]`` of networks ``[runs, m, n]``, infinite beyond the budget of a run and for runs not in ``who``."""
        runs, m, _ = bits.shape
        wanted = (self.used.unsqueeze(1) + torch.arange(m) < self.budget) & (
            torch.ones(runs, 1, dtype=torch.bool) if who is None else who[:, None]
        )
        costs = torch.full((runs, m), torch.inf, dtype=torch.float64)
        costs[wanted] = self.oracle(bits[wanted])
        best, where = costs.min(1)
        self.keep(bits[torch.arange(runs), where], best)
        self.used += wanted.sum(1)
        return costs

    def keep(self, bits: Tensor, cost: Tensor) -> None:
        """Keep networks ``[runs, n]`` that are the best so far."""
        better = cost < self.found.cost
        self.found.cost[better] = cost[better]
        self.found.bits[better] = bits[better].to(torch.uint8)


def random_search(oracle: Oracle, *, calls: int, runs: int, generator: Generator) -> Found:
    """Draw networks uniformly and independently, with repetitions."""
    ledger = _Ledger(oracle, calls, runs)
    while ledger.open:
        ledger.ask(_random(generator, runs, 256, oracle.n))
    return ledger.found


def local_search(oracle: Oracle, *, calls: int, runs: int, generator: Generator) -> Found:
    """Steepest descent with restarts: take the best of the n single flips until none improves, then start from another random network."""
    ledger, n = _Ledger(oracle, calls, runs), oracle.n
    state, cost = torch.zeros(runs, n, dtype=torch.uint8), torch.full((runs,), torch.inf, dtype=torch.float64)
    restart = torch.ones(runs, dtype=torch.bool)
    flips = torch.eye(n, dtype=torch.uint8)
    while ledger.open:
        if bool(restart.any()):
            state = torch.where(restart.unsqueeze(1), _random(generator, runs, n), state)
            cost = torch.where(restart, ledger.ask(state.unsqueeze(1), restart)[:, 0], cost)
        best, where = ledger.ask(state.unsqueeze(1) ^ flips).min(1)
        restart = best >= cost
        state = torch.where(restart.unsqueeze(1), state, state ^ flips[where])
        cost = torch.where(restart, cost, best)
    return ledger.found


def annealing(
    oracle: Oracle, *, calls: int, runs: int, generator: Generator, hot: float = 0.3, cold: float = 0.01, probes: int = 16
) -> Found:
    """Simulated annealing: Metropolis flips of one bit at temperatures falling from ``hot`` to ``cold`` standard deviations of the cost.

    Each run estimates the standard deviation from ``probes`` random networks, which count as calls, and starts from the best of them. The
    temperature falls geometrically.
    """
    ledger, n = _Ledger(oracle, calls, runs), oracle.n
    start = _random(generator, runs, min(probes, calls), n)
    costs = ledger.ask(start)
    spread = costs.std(1, correction=0).clamp_min(1e-300)
    cost, where = costs.min(1)
    every = torch.arange(runs)
    state, steps = start[every, where], calls - start.shape[1]
    for step in range(steps):
        temperature = spread * hot * (cold / hot) ** (step / max(1, steps - 1))
        trial = state.clone()
        trial[every, torch.randint(n, (runs,), generator=generator)] ^= 1
        new = ledger.ask(trial.unsqueeze(1))[:, 0]
        accept = torch.rand(runs, generator=generator, dtype=torch.float64) < ((cost - new) / temperature).exp()
        state, cost = torch.where(accept.unsqueeze(1), trial, state), torch.where(accept, new, cost)
    return ledger.found


def genetic(oracle: Oracle, *, calls: int, runs: int, generator: Generator, population: int = 32) -> Found:
    """Genetic algorithm: tournaments of two, uniform crossover, mutation of each bit with probability 1/n; the best network survives."""
    ledger, n = _Ledger(oracle, calls, runs), oracle.n
    state = _random(generator, runs, population, n)
    cost = ledger.ask(state)
    rows = torch.arange(runs).unsqueeze(1)
    while ledger.open:
        rivals = torch.randint(population, (2, 2, runs, population - 1), generator=generator)
        wins = cost[rows, rivals[:, 0]] <= cost[rows, rivals[:, 1]]
        mother, father = (state[rows, pick] for pick in torch.where(wins, rivals[:, 0], rivals[:, 1]))
        child = torch.where(torch.rand(mother.shape, generator=generator) < 0.5, mother, father)
        child = child ^ (torch.rand(child.shape, generator=generator) < 1 / n).to(torch.uint8)
        best = cost.argmin(1)
        elite, elite_cost = state[rows[:, 0], best], cost.min(1).values
        state = torch.cat((elite.unsqueeze(1), child), 1)
        cost = torch.cat((elite_cost.unsqueeze(1), ledger.ask(child)), 1)
    return ledger.found


def reinforce(oracle: Oracle, *, calls: int, runs: int, generator: Generator, batch: int = 32, lr: float | None = None) -> Found:
    """REINFORCE on independent bits, ``p(sigma) = prod_j Bernoulli(sigmoid(l_j))``, with advantages normalised within the batch.

    The learning rate defaults to ``0.1 sqrt(n)``.
    """
    ledger, n = _Ledger(oracle, calls, runs), oracle.n
    rate = 0.1 * math.sqrt(n) if lr is None else lr
    logits = torch.zeros(runs, n, dtype=torch.float64)
    while ledger.open:
        p = logits.sigmoid().unsqueeze(1)
        state = (torch.rand(runs, batch, n, generator=generator, dtype=torch.float64) < p).to(torch.uint8)
        cost = ledger.ask(state)
        if not bool(cost.isfinite().all()):
            break
        advantage = (cost - cost.mean(1, keepdim=True)) / cost.std(1, keepdim=True).clamp_min(1e-12)
        logits -= rate * (advantage.unsqueeze(-1) * (state - p)).mean(1)
    return ledger.found


def straight_through(cost: Cost, *, calls: int, runs: int, generator: Generator, lr: float = 0.05) -> Found:
    """Straight-through training: Adam on latent weights in [-1, 1] whose signs are the network; gradients pass through the sign unchanged.

    It needs the gradient of the loss and cannot make discrete choices, so each setting of the choices of the space gets a training and an
    equal part of the budget. A step costs one call.
    """
    space = cost.space
    settings = 2 ** (space.n - space.parameters)
    ledger = _Ledger(cost, calls, runs)
    for setting in range(settings):
        steps = calls // settings + (setting < calls % settings)
        tail = bits_of(torch.tensor(setting), space.n)[space.parameters :].expand(runs, -1)
        latent = (2 * torch.rand(runs, space.parameters, generator=generator, dtype=torch.float64) - 1).requires_grad_()
        optimiser = torch.optim.Adam([latent], lr=lr)
        for _ in range(steps):
            hard = (latent > 0).double()
            soft = hard + (latent - latent.detach()) / 2
            value = cost(torch.cat((soft, tail.double()), 1))
            ledger.keep(torch.cat((hard.to(torch.uint8), tail), 1), value.detach())
            ledger.used += 1
            optimiser.zero_grad()
            value.sum().backward()
            optimiser.step()
            with torch.no_grad():
                latent.clamp_(-1, 1)
    return ledger.found


def _random(generator: Generator, *shape: int) -> Tensor:
    return torch.randint(2, shape, generator=generator, dtype=torch.uint8)
