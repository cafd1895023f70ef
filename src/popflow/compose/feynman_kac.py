"""Feynman-Kac correctors: exact sampling from products, powers and tilts of diffusion models by weights without Laplacians.

For the target ``p = prod q_i^{beta_i} exp(gamma r)`` with scores ``s_i``, combined score ``S = sum beta_i s_i`` and the clock ``v = sigma^2``
running down, the weighted process is (theorem of the annealed path; ``zeta >= 0`` is free and does not enter the weights)

    drift     -1/2 S - 1/2 zeta^2 (S + gamma grad r)        diffusion  zeta
    growth    -1/2 (|S|^2 - sum beta_i |s_i|^2) - 1/2 gamma <grad r, S>

per unit of v, and exact increments ``sum (delta beta_i) log q_i + (delta gamma) r`` when exponents change. With ``zeta = 1`` and Euler steps
these weights are those of a discrete sequential Monte Carlo sampler, step by step.

Source: Skreta et al., *Feynman-Kac correctors in diffusion: annealing, guidance, and product of experts*, ICML 2025, arXiv:2503.02819,
propositions 3.1 to 3.4 and D.5. In sigma coordinates one formula serves every schedule.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from popflow.compose.densities import all_known, exact_densities, initial_densities
from popflow.compose.exponents import at
from popflow.compose.rewards import reward_gradient, sum_of_rewards
from popflow.compose.sampler import Sampler, ending
from popflow.compose.spaces.steps import between, follow, kernel, noise_for, step_length, stretched
from popflow.compose.target import Expert, Target, scores
from popflow.compose.weighing import Window, changing, clipped, excess, rewarded, weighted_start, weighted_sum, within
from popflow.core import Ito, PopflowWarning, Population, Rates, Step, Streams, chain, resample_if

_ALWAYS, _NEVER = (0.0, math.inf), (math.inf, -math.inf)


def feynman_kac(
    target: Expert | Target,
    *,
    zeta: float = 1.0,
    correct: bool = True,
    ess_below: float = 0.5,
    window: Window = _ALWAYS,
    kernel_steps: int = 0,
    step_size: Callable[[float], float] = lambda sigma: 0.1 * min(sigma**2, 1.0),
    clip: float | None = None,
    track: bool = False,
) -> Sampler:
    """Sampler of a target by weighted, resampled particles. `sample` runs it.

    Weights alone suffice in a few dimensions; beyond that they collapse onto few ancestors, and a few Langevin steps at each level (which leave the
    weights alone) let the survivors spread: use ``kernel_steps=5``.

    Args:
        target: An expert, or a product of powers of experts, tilted or not.
        zeta: Noise scale. 1 for sums of exponents up to one; 1.4 for annealing (exponents above one); must be 1 when densities are tracked.
        correct: False switches weights and resampling off and leaves the noise as it was: the naive sampler.
        ess_below: Resample a run when its effective sample size falls below this share; 1 resamples at every level.
        window: ``(low, high)`` noise levels within which particles are weighted and resampled.
        kernel_steps: Langevin steps at each new level, aimed at the target there.
        step_size: Their ``eta`` as a function of sigma; about a tenth of the smallest variance of the target at that level.
        clip: Bound on a centred weight increment of one step. Biased; how often it acted is counted in ``aux["clipped"]``.
        track: Carry ``log q_i`` of each expert in ``aux["log_q"]``.

    Raises:
        ValueError: for ``zeta != 1`` with densities that have to be tracked, a negative ``zeta`` or ``clip``, a reversed ``window``, and
            while sampling for a gradient-free reward of -inf before the last level.
        StaleTrackingError: when kernel steps would leave tracked densities behind (experts without ``log_prob``).

    Example:
        >>> import torch
        >>> from popflow.compose import feynman_kac, gaussian_mixture, karras, sample
        >>> from popflow.core import Streams
        >>> a, b = gaussian_mixture(torch.tensor([[-1.0]]), 1.0), gaussian_mixture(torch.tensor([[1.0]]), 1.0)
        >>> out = sample(feynman_kac(a * b), karras(100, 0.01, 20.0), particles=2048, rng=Streams(0))
        >>> abs(float(out.population.mean())) < 0.1
        True
    """
    target = Target.of(target)
    track = track or (correct and target.varies and not all_known(target.experts))
    _check(target, zeta, track, correct, kernel_steps, clip, window)
    unguiding = [r for r in target.rewards if not r.gradient] if correct else []

    move = weighted_move(target, zeta, window if correct else _NEVER)
    mix = mixing(target, kernel_steps, step_size)
    if correct:
        resample = within(window, resample_if(ess_below))
        step = chain(resample, clipped(move, clip), within(window, changing(target)), mix)
    else:
        step = chain(move, mix)
    step, last = (rewarded(one, unguiding, window) for one in (step, denoise(target)))

    def start(y: Tensor, sigma: float) -> Population:
        pop, aux = Population.of(y, batch=1), {}
        if track:
            aux["log_q"] = initial_densities(target.experts, pop, sigma)
        if correct:
            pop = weighted_start(target, pop, sigma, window)
            if clip is not None:
                aux["clipped"] = torch.zeros_like(pop.log_w)
        if unguiding:
            inside = window[0] <= sigma <= window[1]
            aux["tilt"] = sum_of_rewards(unguiding if inside else [], pop, sigma)
        return pop.replace(aux=aux)

    evaluations = len(target.experts) * (1 + kernel_steps)
    return Sampler(target.experts, ending(step, last), start, lambda sigma: sum(target.exponents(sigma)), correct, evaluations)


def weighted_rates(
    target: Target, pop: Population, sigma: float, zeta: float = 1.0, window: Window = _ALWAYS, stretch: Tensor | None = None
) -> Rates:
    """Rates of the weighted process per unit of ``v = sigma^2`` running down, in the frame of the target's space.

    Tracks ``log q_i`` (Ito: ``d log q_i = |s_i|^2/2 dv + <s_i, dy>``) where the population carries ``aux["log_q"] [*batch, n, M]``.

    Args:
        target: What to sample from.
        pop: The population.
        sigma: Its noise level.
        zeta: Noise scale; 1 is the reverse diffusion, 0 deterministic, more adds Langevin moves.
        window: ``(low, high)``: growth only while ``low <= sigma <= high``.
        stretch: From `popflow.compose.spaces.steps.between`, where the factors of the space have clocks of their own.

    Raises:
        ValueError: for ``zeta != 1`` on a population that tracks ``log_q``.
    """
    space = target.home
    beta, event = target.exponents(sigma), len(space.tangent)
    s = stretched(scores(target.experts, pop.x, sigma), stretch)
    combined = weighted_sum(beta, s)
    dims = tuple(range(-event, 0))
    pull, growth = combined, -excess(s, beta, event) / 2
    for reward in target.rewards:
        if reward.gradient:
            push = stretched(at(reward.gamma, sigma) * reward_gradient(reward, pop.x, space), stretch)
            growth = growth - (push * combined).sum(dims) / 2
            pull = pull + push
    track = {}
    if "log_q" in pop.aux:
        if zeta != 1:
            raise _untracked(zeta)
        each = s.movedim(0, len(pop.batch) + 1)
        track["log_q"] = Ito(each.square().sum(dims) / 2, each)
    inside = window[0] <= sigma <= window[1]
    return Rates(-combined / 2 - zeta**2 / 2 * pull, zeta if zeta else None, Ito(growth) if inside else None, track)


def weighted_move(target: Target, zeta: float, window: Window) -> Step:
    """Euler-Maruyama step of the weighted process; without noise it goes in sigma (DDIM)."""

    def move(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        sigma = math.sqrt(t0)
        stretch = between(target.home, sigma, math.sqrt(t1), pop.x)
        rates = weighted_rates(target, pop, sigma, zeta, window, stretch)
        h, noise = step_length(t0, t1, zeta == 0, stretch), noise_for(target.home, pop, rng) if zeta else None
        return follow(target.home, pop, rates, h, noise, stretch)

    return move


def mixing(target: Target, steps: int, step_size: Callable[[float], float]) -> Step:
    """Langevin steps at the new level, by the score of the whole target there; none for ``steps=0``."""

    def score(v: float, pop: Population) -> Tensor:
        sigma = math.sqrt(v)
        total = weighted_sum(target.exponents(sigma), scores(target.experts, pop.x, sigma))
        for reward in target.rewards:
            if reward.gradient:
                total = total + at(reward.gamma, sigma) * reward_gradient(reward, pop.x, target.home)
        return total

    return kernel(target.home, score, step_size, steps, tracked=("log_q",), refresh=exact_densities(target.experts)) if steps else chain()


def denoise(target: Target) -> Step:
    """Last step to sigma = 0: ``y + sigma^2 S(y) / B``, no noise, no growth (it is not small there).

    The mean of the experts' clean predictions, weighted by their shares ``beta_i / B``: near thin data the target has variance
    ``sigma^2 / B``, so a full ``sigma^2 S`` would overshoot.
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        sigma = math.sqrt(t0)
        beta = target.exponents(sigma)
        stretch = between(target.home, sigma, math.sqrt(t1), pop.x)
        combined = stretched(weighted_sum(beta, scores(target.experts, pop.x, sigma)), stretch)
        return follow(target.home, pop, Rates(-combined / sum(beta)), t1 - t0, None, stretch)

    return step


def _check(target: Target, zeta: float, track: bool, correct: bool, kernel_steps: int, clip: float | None, window: Window) -> None:
    if not target.factors:
        raise ValueError("target: every exponent is zero, nothing is left to sample from. Give at least one expert a non-zero exponent.")
    if not 0 <= zeta < math.inf:
        raise ValueError(f"zeta={zeta}, wanted a noise scale >= 0: 1 is the reverse diffusion.")
    if track and zeta != 1:
        raise _untracked(zeta)
    if not window[0] < window[1]:
        raise ValueError(f"window={window}, wanted (low, high) noise levels with low < high: between them particles are weighted.")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}, wanted a positive bound in nats, or None.")
    if kernel_steps < 0:
        raise ValueError(f"kernel_steps={kernel_steps}, wanted 0 or more.")
    if correct and zeta == 0 and not kernel_steps:
        warnings.warn(
            "zeta=0 with resampling: copies of a particle never separate. Use zeta=1, or kernel_steps >= 1.", PopflowWarning, stacklevel=3
        )


def _untracked(zeta: float) -> ValueError:
    return ValueError(
        f"zeta={zeta} with tracked log-densities: the Ito formula holds only for zeta=1 (other noise leaves a Laplacian term). "
        "Set zeta=1, or use experts with log_prob for exponents that vary with sigma and do not track."
    )
