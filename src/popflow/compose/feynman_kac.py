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
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from popflow.compose.sampler import Sampler
from popflow.compose.spaces.space import Euclidean, Space, between, follow, kernel, noise_for
from popflow.compose.target import Expert, Reward, Target, at, scores
from popflow.core import (
    Ito,
    NonFiniteError,
    PopflowWarning,
    Population,
    Process,
    Rates,
    Step,
    Streams,
    chain,
    resample_if,
    systematic,
    temper,
)
from popflow.core.checks import refuse
from popflow.core.steps import Refresh, Scheme


def excess(s: Tensor, beta: Sequence[float], event: int) -> Tensor:
    """Return ``|S|^2 - sum beta_i |s_i|^2`` for scores ``[M, *rows, *event]``, as ``(B-1) sum beta_i |s_i|^2 - sum_{i<j} beta_i beta_j |s_i - s_j|^2``.

    Equal to the difference of squares, without its cancellation; exactly zero for one expert with exponent one.
    """
    dims = tuple(range(-event, 0))
    total, surplus = torch.zeros_like(s[0].sum(dims)), sum(beta) - 1
    for i in range(len(beta)):
        if surplus:
            total = total + surplus * beta[i] * s[i].square().sum(dims)
        for j in range(i):
            total = total - beta[i] * beta[j] * (s[i] - s[j]).square().sum(dims)
    return total


def feynman_kac_process(target: Expert | Target, *, zeta: float = 1.0, window: tuple[float, float] = (0.0, math.inf)) -> Process:
    """Rates of the weighted process of a target, on the clock ``v = sigma^2`` running down.

    Tracks ``log q_i`` (Ito: ``d log q_i = |s_i|^2/2 dv + <s_i, dy>``) where the population carries ``aux["log_q"] [*batch, n, M]``.

    Args:
        target: What to sample from.
        zeta: Noise scale; 1 is the reverse diffusion, 0 deterministic, more adds Langevin moves.
        window: ``(low, high)``: growth only while ``low <= sigma <= high``.

    Raises:
        ValueError: for a target without experts or outside of Euclidean space (whose points the core's steps cannot move; `feynman_kac` can), and by
            the process for ``zeta != 1`` on a population that tracks ``log_q``.
    """
    target = Target.of(target)
    if not isinstance(_space(target), Euclidean):
        raise ValueError(
            f"target: its samples live in {_space(target)}, wanted Euclidean space. Fix: use feynman_kac, which moves them there."
        )
    return lambda v, pop: weighted_rates(target, pop, math.sqrt(v), zeta, window)


def weighted_rates(
    target: Target, pop: Population, sigma: float, zeta: float, window: tuple[float, float], stretch: Tensor | None = None
) -> Rates:
    """Rates of the weighted process in the frame of the target's space; ``stretch`` where its factors have clocks of their own."""
    space = _space(target)
    beta, event = target.exponents(sigma), len(space.tangent)
    s = stretched(scores(target.experts, pop.x, sigma), stretch)
    combined = weighted_sum(beta, s)
    dims = tuple(range(-event, 0))
    pull, growth = combined, -excess(s, beta, event) / 2
    for reward in target.rewards:
        if reward.gradient:
            push = stretched(at(reward.gamma, sigma) * gradient(reward, pop.x, space), stretch)
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


def feynman_kac(
    target: Expert | Target,
    *,
    zeta: float = 1.0,
    correct: bool = True,
    ess_below: float = 0.5,
    scheme: Scheme = systematic,
    window: tuple[float, float] = (0.0, math.inf),
    kernel_steps: int = 0,
    step_size: Callable[[float], float] = lambda sigma: 0.1 * min(sigma**2, 1.0),
    clip: float | None = None,
    track: bool = False,
) -> Sampler:
    """Sampler of a target by weighted, resampled particles. `sample` runs it.

    A step is ``chain(resample_if, euler, temper, langevin)``. Weights alone suffice in a few dimensions; beyond that they collapse onto few
    ancestors, and a few Langevin steps a level (no change of weights) let the survivors spread: use ``kernel_steps=5``.

    Args:
        target: An expert, or a product of powers of experts, tilted or not.
        zeta: Noise scale. 1 for sums of exponents up to one; 1.4 for annealing (exponents above one); must be 1 when densities are tracked.
        correct: False switches weights and resampling off and leaves the noise as it was: the naive sampler.
        ess_below: Resample a run when its effective sample size falls below this share; 1 resamples at every level.
        scheme: Resampling scheme of `popflow.core`.
        window: ``(low, high)`` noise levels within which particles are weighed and resampled.
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
    space = _space(target)
    exact = all(expert.log_prob is not None for expert in target.experts)
    track = track or (correct and target.varies and not exact)
    _check(zeta, track, correct, kernel_steps, clip, window)
    refresh = exact_densities(target.experts) if exact else None
    gradient_free = [r for r in target.rewards if not r.gradient]

    def kernel_score(v: float, pop: Population) -> Tensor:
        sigma = math.sqrt(v)
        total = weighted_sum(target.exponents(sigma), scores(target.experts, pop.x, sigma))
        for reward in target.rewards:
            if reward.gradient:
                total = total + at(reward.gamma, sigma) * gradient(reward, pop.x, space)
        return total

    def changes(pop: Population, t0: float, t1: float) -> Tensor:
        """Exact change of log p at fixed y: exponents and strengths that move with sigma."""
        s0, s1 = math.sqrt(t0), math.sqrt(t1)
        delta = torch.zeros_like(pop.log_w)
        if target.varies:
            step = [b - a for a, b in zip(target.exponents(s0), target.exponents(s1), strict=True)]
            log_q = densities(target.experts, pop, s1) if exact else pop.aux["log_q"]
            delta = delta + (log_q * log_q.new_tensor(step)).sum(-1)
        for reward in target.rewards:
            if reward.gradient:
                delta = delta + (at(reward.gamma, s1) - at(reward.gamma, s0)) * over_rows(reward, pop)
        return delta

    def potentials(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        """Gradient-free rewards weigh by what they changed since the last level (Feynman-Kac steering)."""
        now = sum_of_rewards(gradient_free, pop, math.sqrt(t1))
        return pop.reweight(now - pop.aux["tilt"]).replace(aux={**pop.aux, "tilt": now})

    def revocable(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        """Refuse to go on from a potential of -inf: what it took away could not be given back."""
        lost = int((pop.aux["tilt"] == -math.inf).sum())
        if lost:
            raise ValueError(
                f"rewards {[r.name for r in gradient_free]} are -inf for {lost} particles at sigma={math.sqrt(t0):g}, before the last level: a "
                "path ruled out here could still end well. Fix: a finite penalty, or a gamma(sigma) that is 0 until the last level."
            )
        return pop

    def move(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        sigma, weighed = math.sqrt(t0), window if correct else (math.inf, -math.inf)
        stretch = between(space, sigma, math.sqrt(t1), pop.x)
        rates = weighted_rates(target, pop, sigma, zeta, weighed, stretch)
        return follow(space, pop, rates, length(t0, t1, zeta == 0, stretch), noise_for(space, pop, rates, rng), stretch)

    steps: list[Step] = [move]
    if correct:
        steps = [within(window, resample_if(ess_below, scheme)), clipped(move, clip) if clip is not None else move]
        if target.varies or any(r.gradient for r in target.rewards):
            steps.append(within(window, temper(changes)))
    if kernel_steps:
        steps.append(kernel(space, kernel_score, step_size, kernel_steps, tracked=("log_q",), refresh=refresh))
    if correct and gradient_free:
        steps = [revocable, *steps, within(window, potentials)]
    step, last = chain(*steps), denoise(target)
    if correct and gradient_free:
        last = chain(revocable, last, within(window, potentials))

    def start(y: Tensor, sigma: float) -> Population:
        pop = Population.of(y, batch=1)
        aux: dict[str, Tensor] = {}
        if track:
            aux["log_q"] = initial_densities(target.experts, pop, sigma)
        if clip is not None and correct:
            aux["clipped"] = torch.zeros_like(pop.log_w)
        if correct:
            beta, inside = target.exponents(sigma), window[0] <= sigma <= window[1]
            if space.flat:
                pop = pop.replace(log_z=pop.log_z + log_initial_normalizer(sum(beta), sigma, space.dim))
            elif inside:
                log_p = weighted_sum(beta, initial_densities(target.experts, pop, sigma).movedim(-1, 0))
                pop = pop.reweight(log_p - space.log_start(pop.x, sigma, sum(beta)))
            if inside:
                pop = pop.reweight(sum_of_rewards(target.rewards, pop, sigma))
            if gradient_free:
                aux["tilt"] = sum_of_rewards(gradient_free if inside else [], pop, sigma)
        return pop.replace(aux=aux)

    def whole(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        return step(pop, t0, t1, rng) if t1 > 0 else last(pop, t0, t1, rng)

    evaluations = len(target.experts) * (1 + kernel_steps)
    return Sampler(target.experts, whole, start, lambda sigma: sum(target.exponents(sigma)), correct, evaluations)


def length(t0: float, t1: float, straight: bool, stretch: Tensor | None) -> float:
    """Signed step on the clock v; a straight one goes in sigma, ``dv = 2 sigma (sigma' - sigma)``.

    Without noise paths are nearly straight in sigma (the step of DDIM). Factors with clocks of their own have no common sigma: they step in v.
    """
    if straight and stretch is None:
        t1 = t0 + 2 * math.sqrt(t0) * (math.sqrt(t1) - math.sqrt(t0))
    return t1 - t0


def stretched(vector: Tensor, stretch: Tensor | None) -> Tensor:
    """Write a tangent vector in coordinates in which every factor of a product runs on the common clock."""
    return vector if stretch is None else vector * stretch


def denoise(target: Target) -> Step:
    """Last step to sigma = 0: ``y + sigma^2 S(y) / B``, no noise, no growth (it is not small there).

    The mean of the experts' clean predictions, weighted by their shares ``beta_i / B``: near thin data the target has variance
    ``sigma^2 / B``, so a full ``sigma^2 S`` would overshoot.
    """

    def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        sigma = math.sqrt(t0)
        beta = target.exponents(sigma)
        space = _space(target)
        stretch = between(space, sigma, math.sqrt(t1), pop.x)
        combined = stretched(weighted_sum(beta, scores(target.experts, pop.x, sigma)), stretch)
        return follow(space, pop, Rates(-combined / sum(beta)), t1 - t0, None, stretch)

    return step


def clipped(step: Step, limit: float) -> Step:
    """Bound a step's weight increments to within ``limit`` of their mean in each run, and count in ``aux["clipped"]``."""

    def bounded(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        after = step(pop, t0, t1, rng)
        delta = after.log_w - pop.log_w
        centre = delta.mean(-1, keepdim=True)
        kept = centre + (delta - centre).clamp(-limit, limit)
        count = after.aux["clipped"] + ((delta - centre).abs() > limit)
        return after.replace(log_w=pop.log_w + kept, aux={**after.aux, "clipped": count})

    return bounded


def within(window: tuple[float, float], step: Step) -> Step:
    """Take a step only while the noise level lies in the window."""

    def guarded(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        return step(pop, t0, t1, rng) if window[0] <= math.sqrt(t0) <= window[1] else pop

    return guarded


def weighted_sum(beta: Sequence[float], s: Tensor) -> Tensor:
    """Return ``sum_i beta_i s_i`` over the first dimension; one expert with exponent one is returned as it is."""
    total = s[0] if beta[0] == 1 else beta[0] * s[0]
    for b, one in zip(beta[1:], s[1:], strict=True):
        total = total + b * one
    return total


def gradient(reward: Reward, y: Tensor, space: Space) -> Tensor:
    """Gradient of a reward at ``y [*rows, *event]``, ``[*rows, *tangent]``; rewards do not couple rows, so one backward pass serves all."""
    with torch.enable_grad():
        point = y.detach().flatten(0, y.ndim - len(space.event) - 1).requires_grad_()
        value = reward(point)
        if not value.requires_grad:
            raise ValueError(
                f"reward {reward.name!r} has no gradient: write it with torch operations, or say that it has none: tilt(..., gradient=False), "
                "of a pipeline reward_gradient=False."
            )
        (slope,) = torch.autograd.grad(value.sum(), point)
    total = len(slope)

    def error(bad: int) -> NonFiniteError:
        return NonFiniteError(
            f"reward {reward.name!r} has a gradient that is not finite for {bad} of {total} samples: make it smooth (add a small constant "
            "under roots and logarithms), or pass tilt(..., gradient=False), of a pipeline reward_gradient=False."
        )

    refuse((~slope.isfinite()).reshape(total, -1).any(1).sum(), error)
    return space.gradient(y, slope.reshape(y.shape))


def over_rows(reward: Reward, pop: Population) -> Tensor:
    """Reward of every particle, ``[*batch, n]``; -inf rules one out, NaN and +inf are refused."""
    with torch.no_grad():
        value = reward(pop.x.flatten(0, len(pop.batch))).to(pop.log_w.dtype).reshape(pop.log_w.shape)
    total = value.numel()

    def error(bad: int) -> NonFiniteError:
        return NonFiniteError(f"reward {reward.name!r} is NaN or +inf for {bad} of {total} samples, wanted finite numbers, or -inf.")

    refuse((value.isnan() | (value == math.inf)).sum(), error)
    return value


def sum_of_rewards(rewards: Sequence[Reward], pop: Population, sigma: float) -> Tensor:
    """Return ``sum_j gamma_j(sigma) r_j(y)``, ``[*batch, n]``."""
    total = torch.zeros_like(pop.log_w)
    for reward in rewards:
        gamma = at(reward.gamma, sigma)
        if gamma:
            total = total + gamma * over_rows(reward, pop)
    return total


def densities(experts: Sequence[Expert], pop: Population, sigma: float) -> Tensor:
    """Exact ``log q_i(y, sigma)`` of experts that know it, ``[*batch, n, M]``."""
    rows = pop.x.flatten(0, len(pop.batch))
    each = [expert.log_prob(rows, sigma) for expert in experts if expert.log_prob is not None]
    return torch.stack(each, -1).reshape(*pop.log_w.shape, len(experts))


def initial_densities(experts: Sequence[Expert], pop: Population, sigma: float) -> Tensor:
    """Log-densities at the first level: exact where all experts know them, else those of pure noise, ``N(0, sigma^2)``; ``[*batch, n, M]``."""
    if all(expert.log_prob is not None for expert in experts):
        return densities(experts, pop, sigma)
    return experts[0].home.log_reference(pop.x, sigma).unsqueeze(-1).repeat(*[1] * pop.log_w.ndim, len(experts))


def exact_densities(experts: Sequence[Expert]) -> Refresh:
    """Refresher of ``aux["log_q"]`` after a kernel moved the particles, for experts that know their density."""

    def refresh(v: float, before: Population, after: Population) -> Population:
        if "log_q" not in after.aux:
            return after
        return after.replace(aux={**after.aux, "log_q": densities(experts, after, math.sqrt(v))})

    return refresh


def log_initial_normalizer(total: float, sigma: float, dim: int) -> float:
    """``log int prod N(y; 0, sigma^2)^{beta_i} dy`` with ``B = sum beta_i``: ``d/2 [(1 - B) log(2 pi sigma^2) - log B]``."""
    return dim / 2 * ((1 - total) * math.log(2 * math.pi * sigma**2) - math.log(total))


def _space(target: Target) -> Space:
    if not target.factors:
        raise ValueError("target: every exponent is zero, nothing is left to sample from. Give at least one expert a non-zero exponent.")
    return target.experts[0].home


def _check(zeta: float, track: bool, correct: bool, kernel_steps: int, clip: float | None, window: tuple[float, float]) -> None:
    if not 0 <= zeta < math.inf:
        raise ValueError(f"zeta={zeta}, wanted a noise scale >= 0: 1 is the reverse diffusion.")
    if track and zeta != 1:
        raise _untracked(zeta)
    if not window[0] < window[1]:
        raise ValueError(f"window={window}, wanted (low, high) noise levels with low < high: between them particles are weighed.")
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
