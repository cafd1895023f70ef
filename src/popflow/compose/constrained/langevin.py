r"""The approximate routes: guided diffusion, and Langevin steps at small noise that correct it within each mode.

**Stage 1.** The reverse diffusion of the prior with the drift of the objective added, on the clock ``v = sigma^2`` running down:

    dy = (s(y, sigma) - beta(sigma) grad h(y, sigma)) dv + dW,      beta(sigma) = beta / (1 + sigma^2)

The product of the noised prior and ``exp(-beta h)`` is not the noised product, so this ends near the target, not in it.

**Stage 2.** Langevin steps aimed at ``p exp(-beta h)`` at the least noise level, with beta rising to its last value, unadjusted (ULA) or with a Metropolis rule (MALA).
The log-density of the prior is not known, but its differences are line integrals of the score,

    log p(x') - log p(x) = int_0^1 s(x + u (x' - x)) . (x' - x) du

by Gauss-Legendre quadrature. Langevin steps mend shapes of modes; they do not carry mass from one mode to another. `tempering` does both.

Source: Kong et al., *Diffusion models as constrained samplers for optimization with unknown constraints*, AISTATS 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from popflow.compose.constrained.prior import Prior
from popflow.compose.constrained.tempering import Potential
from popflow.compose.schedule import karras
from popflow.core import Population, Rates, Recorder, State, Step, Streams, euler, simulate
from popflow.core.checks import at_least_one

Slope = Callable[[Tensor], Tensor]
"""``beta grad h`` of rows ``[rows, dim]``."""
NoisySlope = Callable[[Tensor, float], Tensor]
"""``beta grad h`` of noisy rows ``[rows, dim]`` at a noise level."""

_NODES = ((0.04691007703066802, 0.11846344252809454), (0.23076534494715845, 0.23931433524968324), (0.5, 0.28444444444444444))
_QUADRATURE = (*_NODES, (1 - _NODES[1][0], _NODES[1][1]), (1 - _NODES[0][0], _NODES[0][1]))
"""Nodes and weights of five-point Gauss-Legendre quadrature on [0, 1]."""


def guided(
    prior: Prior,
    slope: NoisySlope,
    n: int,
    *,
    rng: Streams,
    steps: int = 200,
    clip: float | None = None,
    record: tuple[Recorder, ...] = (),
    resume: State | None = None,
) -> Tensor:
    """Draw rows ``[n, dim]`` by guided diffusion (stage 1).

    Args:
        prior: The prior.
        slope: ``beta grad h`` at noisy rows.
        n: Number of rows.
        rng: Random streams.
        steps: Steps, on the levels of Karras et al.
        clip: Longest pull of the objective, as a multiple of the length of the score; None for no limit.
        record: Recorders.
        resume: A recorded state to go on from.
    """
    at_least_one(n=n, steps=steps)

    def process(v: float, pop: Population) -> Rates:
        sigma = math.sqrt(v)
        score = prior.score(pop.x, sigma)
        pull = slope(pop.x, sigma) / (1 + v)
        if clip is not None:
            longest = clip * score.norm(dim=-1, keepdim=True)
            pull = pull * (longest / pull.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(1)
        return Rates(drift=-(score - pull), diffusion=1.0)

    levels = karras(steps, prior.sigma_min, prior.sigma_max)
    if resume is None:
        like = torch.empty(n, prior.dim, device=prior.spread.device)
        pop, start = Population.of(math.sqrt(1 + prior.sigma_max**2) * rng.normal("prior", like)), 0
    else:
        pop, start = resume.pop, resume.k
    x = simulate(euler(process), pop, levels.square(), rng=rng, record=record, start=start).x
    return prior.snap(x + prior.sigma_min**2 * prior.score(x))


def line_integral(prior: Prior, x: Tensor, y: Tensor) -> Tensor:
    """Return ``log p(y) - log p(x)`` at the least noise level for rows ``[..., dim]``, from the score alone.

    Example:
        >>> from popflow.compose import gaussian_mixture
        >>> prior = Prior.of(gaussian_mixture(torch.zeros(1, 1), 1.0), torch.zeros(512, 1), rng=Streams(0), sigma_min=1e-4)
        >>> round(float(line_integral(prior, torch.tensor([[0.0]]), torch.tensor([[2.0]]))), 4)
        -2.0
    """
    away = y - x
    return sum((weight * (prior.score(x + u * away) * away).sum(-1) for u, weight in _QUADRATURE), torch.zeros_like(x[..., 0]))


def langevin_steps(
    prior: Prior, slope: Slope, potential: Potential, step_size: float, steps: int, *, adjust: bool = True, adapt: bool = False
) -> Step:
    """ULA or MALA steps at the least noise level; the time of the step is the fraction of beta. Accepted proposals are counted in ``aux["accepted"]``.

    Args:
        prior: The prior.
        slope: ``beta grad h``.
        potential: ``U`` at full beta; infinite where a row is ruled out.
        step_size: ``eta`` at the start; the population may carry another in ``aux["eta"]``.
        steps: Steps.
        adjust: Accept by the Metropolis rule; otherwise every finite proposal is taken.
        adapt: Tune ``eta`` to an acceptance of 0.6 on the way.
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        x, value, accepted = pop.x, pop.aux["potential"], torch.zeros_like(pop.log_w)
        eta = float(pop.aux["eta"][0]) if "eta" in pop.aux else step_size
        pull = prior.score(x) - t1 * slope(x)
        for _ in range(steps):
            z = rng.normal("kernel", x)
            y = x + eta * pull + math.sqrt(2 * eta) * z
            other, new_pull = potential(y).to(value), prior.score(y) - t1 * slope(y)
            back = x - y - eta * new_pull
            ratio = line_integral(prior, x, y) - t1 * (other - value) + z.square().sum(-1) / 2 - back.square().sum(-1) / (4 * eta)
            u = rng.uniform("accept", tuple(value.shape), value.dtype).log()
            accept = (u < ratio) if adjust else other.isfinite()
            mask = accept[:, None]
            x, pull, value = torch.where(mask, y, x), torch.where(mask, new_pull, pull), torch.where(accept, other, value)
            accepted = accepted + accept
            if adapt:
                eta *= math.exp(0.2 * (float(accept.double().mean()) - 0.6))
        told = {"potential": value, "accepted": accepted / steps, "eta": torch.full_like(accepted, eta)}
        return pop.replace(x=x, aux={**pop.aux, **told})

    return step


def corrected(
    prior: Prior,
    slope: Slope,
    potential: Potential,
    x: Tensor,
    *,
    rng: Streams,
    step_size: float = 0.01,
    steps: int = 200,
    adjust: bool = True,
    record: tuple[Recorder, ...] = (),
    resume: State | None = None,
) -> Population:
    """Move rows ``[n, dim]`` of stage 1 by Langevin steps (stage 2) while beta rises to its last value; ``aux["accepted"]`` is the acceptance since the last rise.

    Half of the steps are taken at the full beta, a quarter of all tunes the step size.

    Raises:
        ValueError: for counts below one, or a step size that is not positive.
    """
    at_least_one(steps=steps)
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size={step_size!r}, wanted a finite number above 0.")
    rises = [0.0, 0.125, 0.25, 0.5, 1.0]
    quarter = max(1, steps // 8)
    tuning = langevin_steps(prior, slope, potential, step_size, quarter, adjust=adjust, adapt=adjust)
    last = langevin_steps(prior, slope, potential, step_size, max(1, steps - 4 * quarter), adjust=adjust)

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        pop = tuning(pop, t0, t1, rng)
        return last(pop, t0, t1, rng) if t1 == 1 else pop

    if resume is None:
        pop, start = Population.of(x), 0
        value = potential(x)
        pop = pop.replace(
            aux={"potential": value.to(pop.log_w), "accepted": torch.zeros_like(pop.log_w), "eta": torch.full_like(pop.log_w, step_size)}
        )
    else:
        pop, start = resume.pop, resume.k
    return simulate(step, pop, rises, rng=rng, record=record, start=start)
