"""Feynman-Kac correctors: exact sampling from products, powers and tilts of diffusion models by weights without Laplacians.

For the target ``p = prod q_i^{beta_i} exp(gamma r)`` with scores ``s_i``, combined score ``S = sum beta_i s_i`` and the clock ``v = sigma^2``
running down, the weighted process is (theorem of the annealed path; ``zeta >= 0`` is free and does not enter the weights)

    drift     -1/2 S - 1/2 zeta^2 (S + gamma grad r)        diffusion  zeta
    growth    -1/2 (|S|^2 - sum beta_i |s_i|^2) - 1/2 gamma <grad r, S>

per unit of v. A step does not follow these rates for a while, which is right only for short ones: it multiplies the experts' backward kernels
(`popflow.compose.product_kernel`), whose limit they are. Its weight depends on the point before the step alone, so particles are weighed and resampled first and
moved after. With ``h = sigma^2 - sigma'^2``:

- ``zeta = 1``: one step of the product of kernels;
- ``zeta > 1``: noise of variance ``u = (zeta^2 - 1) h / 2`` first, then the step from ``sigma^2 + u``; the weight of the way up is that of the step back, negated;
- ``zeta < 1``: the step without noise over ``(1 - zeta^2) h``, then one of the product over the rest.

Source: Skreta et al., *Feynman-Kac correctors in diffusion: annealing, guidance, and product of experts*, ICML 2025, arXiv:2503.02819,
propositions 3.1 to 3.4 and D.5 (``variance="euler"`` repeats them). In sigma coordinates one formula serves every schedule.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from popflow.compose.backward_kernel import Variance, check_variance, kernel_variances, mean_precision, scores_and_curvatures
from popflow.compose.densities import all_known, exact_densities, increments, initial_densities
from popflow.compose.exponents import at
from popflow.compose.last_move import curvatures, forgotten, remembered, tells
from popflow.compose.product_kernel import ProductKernel, alone, flow, weighted_sum
from popflow.compose.rewards import reward_gradient, sum_of_rewards
from popflow.compose.sampler import Sampler, ending
from popflow.compose.spaces.steps import between, follow, kernel, noise_for, stretched
from popflow.compose.target import Expert, Target, scores
from popflow.compose.weighing import Window, changing, clipped, rewarded, weighted_start, within
from popflow.core import PopflowWarning, Population, Rates, Step, Streams, chain, resample_if
from popflow.core.checks import at_least_one, real

_ALWAYS = (0.0, math.inf)
_SCORES, _PUSH, _CURVATURE = "scores", "push", "curvature"
"""Companions that live within a step: they follow the particles through resampling."""


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
    variance: Variance = "optimal",
) -> Sampler:
    """Sampler of a target by weighted, resampled particles. `sample` runs it.

    Weights alone suffice in a few dimensions; beyond that they collapse onto few ancestors, and a few Langevin steps at each level (which leave the
    weights alone) let the survivors spread: use ``kernel_steps=5``.

    Args:
        target: An expert, or a product of powers of experts, tilted or not.
        zeta: Noise scale. 1 for sums of exponents up to one; 1.4 for annealing (exponents above one); at least 1 when densities are tracked. Below 1 weights
            have little hold where exponents sum to more than one: log Z of a product of two can then be off by nats.
        correct: False switches weights and resampling off and leaves the noise as it was: the naive sampler.
        ess_below: Resample a run when its effective sample size falls below this share; 1 resamples at every level.
        window: ``(low, high)`` noise levels within which particles are weighted and resampled.
        kernel_steps: Langevin steps at each new level, aimed at the target there.
        step_size: Their ``eta`` as a function of sigma; about a tenth of the smallest variance of the target at that level.
        clip: Bound on a centred weight increment of one step. Biased; how often it acted is counted in ``aux["clipped"]``.
        track: Carry ``log q_i`` of each expert in ``aux["log_q"]``.
        variance: Width of the experts' backward kernels: ``optimal``, from their denoising losses, which are measured first where they are not known, and in few
            dimensions from the last move of each particle as well (`popflow.compose.last_move`); ``local``, at each particle, for one Jacobian-vector product an expert and step; ``euler`` or ``posterior``. With ``zeta=0`` and one expert, ``posterior`` is DDIM. Langevin steps take the losses into account too.

    Raises:
        ValueError: for ``zeta < 1`` with densities that have to be tracked, a negative ``zeta`` or ``clip``, a reversed ``window``, and
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
    _check(target, zeta, track, correct, kernel_steps, clip, ess_below, window)
    check_variance(variance)
    if variance == "local" and not target.home.flat:
        raise ValueError(f"variance='local' with samples in {target.home}, which is not flat: wanted 'optimal'.")
    unguiding = [r for r in target.rewards if not r.gradient] if correct else []

    weigh, move = weighing(target, zeta, variance, window if correct else None), moving(target, zeta, variance)
    mix = mixing(target, kernel_steps, step_size, variance)
    if correct:
        resample = within(window, chain(_remember_ess, resample_if(ess_below)))
        step = chain(within(window, changing(target)), clipped(weigh, clip), resample, move, mix)
    else:
        step = chain(weigh, move, mix)
    step, last = (rewarded(one, unguiding, window) for one in (step, denoise(target)))

    def start(y: Tensor, sigma: float) -> Population:
        pop, aux = Population.of(y, batch=1), {}
        if track:
            aux["log_q"] = initial_densities(target.experts, pop, sigma)
        if correct:
            pop = weighted_start(target, pop, sigma, window)
            aux["ess"] = pop.ess().unsqueeze(-1).repeat(*[1] * len(pop.batch), len(pop))
            if clip is not None:
                aux["clipped"] = torch.zeros_like(pop.log_w)
        if unguiding:
            inside = window[0] <= sigma <= window[1]
            aux["tilt"] = sum_of_rewards(unguiding if inside else [], pop, sigma)
        return pop.replace(aux=aux)

    evaluations = len(target.experts) * (1 + kernel_steps + (variance == "local"))
    return Sampler(
        target.experts,
        ending(step, last),
        start,
        precision=lambda sigma: sum(target.exponents(sigma)),
        resamples=correct,
        evaluations=evaluations,
        measures=variance in ("optimal", "local"),
        exponents=target.exponents,
        variance=variance,
        separates=lambda sigma: zeta > 0 or kernel_steps > 0,
    )


def weighing(target: Target, zeta: float, variance: Variance, window: Window | None) -> Step:
    """First half of a step: particles are brought to where its scores are taken, and weighed by what the move will be.

    Leaves the scores (and the pull of rewards) in ``aux`` for `moving`.

    Args:
        target: What to sample from.
        zeta: Noise scale.
        variance: Width of the backward kernels.
        window: ``(low, high)`` noise levels within which particles are weighed; None for nowhere.
    """

    def weigh(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        space, beta, first = target.home, target.exponents(math.sqrt(t1)), len(pop.batch) + 1
        v, extra = t0, max(zeta**2 - 1, 0.0) / 2 * (t0 - t1)
        noise, plain = None, Kernels(target, beta, variance, pop.x)
        if extra:
            v, noise = t0 + extra, noise_for(space, pop, rng)
            x = space.move(pop.x, stretched(math.sqrt(extra) * noise, plain.stretch(v, t0)))
            pop = pop.replace(x=x)
        if variance == "local":
            s, curvature = scores_and_curvatures(target.experts, pop.x, math.sqrt(v), rng)
        else:
            s, curvature = scores(target.experts, pop.x, math.sqrt(v)), None
        if variance == "optimal" and tells(space) and not alone(beta):
            curvature = curvatures(target.experts, pop, s, v)
            pop = pop.replace(aux=remembered(space, pop, s, v))
        kernels = replace(plain, curvature=curvature)
        push = _push(target, pop, math.sqrt(t1))
        total, dims = None, tuple(range(-len(space.tangent), 0))

        def add(weight: Tensor, pull: Tensor, stretch: Tensor | None) -> None:
            nonlocal total
            if push is not None:
                weight = weight + (stretched(push, stretch) * pull).sum(dims)
            total = weight if total is None else total + weight

        weighs = window is not None and window[0] <= math.sqrt(t0) <= window[1]
        if zeta < 1:
            middle = t0 - (1 - zeta**2) * (t0 - t1)
            stretch = kernels.stretch(t0, middle)
            displacement, weight, moved = flow(space, t0 - middle, beta, kernels.variances(t0, middle), stretched(s, stretch))
            add(weight, displacement, stretch)
            pop = pop.replace(x=space.move(pop.x, stretched(displacement, stretch)))
            v, s = middle, moved if stretch is None else moved / stretch
            kernels = kernels.after(t0 - middle)
        if zeta > 0 and weighs:
            stretch = kernels.stretch(v, t1)
            down, here = kernels.product(v, t1), stretched(s, stretch)
            add(down.log_normalizer(here), down.mean(here) / 2 if push is not None else here, stretch)
        if noise is not None:
            stretch = kernels.stretch(v, t0)
            here = stretched(s, stretch)
            if weighs:
                back = kernels.product(v, t0)
                add(-back.log_normalizer(here), back.mean(here) / -2 if push is not None else here, stretch)
            if "log_q" in pop.aux:
                gain = increments(-math.sqrt(extra) * noise, here, extra, kernels.variances(v, t0), space)
                pop = pop.replace(aux={**pop.aux, "log_q": pop.aux["log_q"] - gain})
        if weighs and total is not None:
            pop = pop.reweight(total.to(pop.log_w.dtype))
        aux = {_SCORES: s.movedim(0, first)} | ({} if push is None else {_PUSH: push})
        aux |= {} if kernels.curvature is None else {_CURVATURE: kernels.curvature.movedim(0, -1)}
        return pop.replace(aux={**pop.aux, **aux})

    return weigh


def moving(target: Target, zeta: float, variance: Variance) -> Step:
    """Second half of a step: the move by the product of kernels, with the scores that `weighing` left."""

    def move(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        space, beta = target.home, target.exponents(math.sqrt(t1))
        aux = dict(pop.aux)
        s, push = aux.pop(_SCORES).movedim(len(pop.batch) + 1, 0), aux.pop(_PUSH, None)
        curvature = aux.pop(_CURVATURE).movedim(-1, 0) if _CURVATURE in aux else None
        pop = pop.replace(aux=aux)
        if zeta == 0:
            return pop
        h = t0 - t1
        extra = max(zeta**2 - 1, 0.0) / 2 * h
        v = t0 + extra if zeta >= 1 else t1 + zeta**2 * h
        kernels = Kernels(target, beta, variance, pop.x, curvature)
        stretch, product = kernels.stretch(v, t1), kernels.product(v, t1)
        s = stretched(s, stretch)
        displacement = product.mean(s)
        if push is not None:
            displacement = displacement + stretched(push, stretch) * (product.h / product.precision + extra) / 2
        displacement = displacement + product.width * noise_for(space, pop, rng)
        if "log_q" in aux:
            gain = increments(displacement, s, product.h, kernels.variances(v, t1), space)
            pop = pop.replace(aux={**aux, "log_q": aux["log_q"] + gain})
        return pop.replace(x=space.move(pop.x, stretched(displacement, stretch)))

    return move


@dataclass(frozen=True)
class Kernels:
    """Backward kernels of a target's experts between values of the clock ``v = sigma^2``."""

    target: Target
    beta: list[float]
    variance: Variance
    like: Tensor
    curvature: Tensor | None = None  # tr(ds_i/dy) / d of each expert at each particle, [M, *batch, n]

    def stretch(self, v: float, v1: float) -> Tensor | None:
        """Stretch of the step, see `popflow.compose.spaces.steps.between`."""
        return between(self.target.home, math.sqrt(v), math.sqrt(v1), self.like)

    def variances(self, v: float, v1: float) -> list[float | Tensor]:
        """``c_i`` of each expert: at each particle where its curvature is known, no smaller than that of a point.

        In a product none is larger than Euler's: a kernel as wide as that has several modes, and no power of a Gaussian is like the power of those.
        """
        if self.curvature is None:
            return kernel_variances(self.target.experts, math.sqrt(v), math.sqrt(v1), self.variance, self.like)
        c = (1 + (v - v1) * self.curvature).clamp(v1 / v, math.inf if alone(self.beta) else 1.0)
        return list(c.reshape(*c.shape, *[1] * len(self.target.home.tangent)))

    def product(self, v: float, v1: float) -> ProductKernel:
        """Their product."""
        usual = None
        if self.curvature is not None:
            usual = kernel_variances(self.target.experts, math.sqrt(v), math.sqrt(v1))
        return ProductKernel.of(self.target.home, v - v1, self.beta, self.variances(v, v1), usual)

    def after(self, h: float) -> Kernels:
        """The same after a move without noise over ``h``: curvatures of Gaussians, ``H / (1 + h H)``."""
        return self if self.curvature is None else replace(self, curvature=self.curvature / (1 + h * self.curvature).clamp_min(1e-3))


def _push(target: Target, pop: Population, sigma: float) -> Tensor | None:
    """``sum_j gamma_j grad r_j`` of the rewards that guide, ``[*batch, n, *tangent]``."""
    total = None
    for reward in target.rewards:
        if reward.gradient:
            each = at(reward.gamma, sigma) * reward_gradient(reward, pop.x, target.home)
            total = each if total is None else total + each
    return total


def _remember_ess(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
    """Keep the effective sample size by which resampling is decided: recorders look after the move."""
    return pop.replace(aux={**pop.aux, "ess": pop.ess().unsqueeze(-1).repeat(*[1] * len(pop.batch), len(pop))})


def mixing(target: Target, steps: int, step_size: Callable[[float], float], variance: Variance) -> Step:
    """Langevin steps at the new level, by the score of the whole target there; none for ``steps=0``."""
    if not steps:
        return chain()

    def score(v: float, pop: Population) -> Tensor:
        sigma = math.sqrt(v)
        total = weighted_sum(target.exponents(sigma), scores(target.experts, pop.x, sigma))
        push = _push(target, pop, sigma)
        return total if push is None else total + push

    def precision(v: float, pop: Population) -> float | Tensor:
        return mean_precision(target.experts, target.exponents(math.sqrt(v)), math.sqrt(v), variance, pop.x)

    refresh = exact_densities(target.experts)
    return kernel(target.home, score, step_size, steps, tracked=("log_q",), refresh=refresh, precision=precision)


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
        return follow(target.home, pop.replace(aux=forgotten(pop)), Rates(-combined / sum(beta)), t1 - t0, None, stretch)

    return step


def _check(
    target: Target, zeta: float, track: bool, correct: bool, kernel_steps: int, clip: float | None, ess_below: float, window: Window
) -> None:
    if not target.factors:
        raise ValueError("target: every exponent is zero, nothing is left to sample from. Give at least one expert a non-zero exponent.")
    real(zeta=zeta, clip=clip, ess_below=ess_below, kernel_steps=kernel_steps)
    if kernel_steps < 0:
        raise ValueError(f"kernel_steps={kernel_steps}, wanted 0 or more.")
    if kernel_steps:
        at_least_one(kernel_steps=kernel_steps)
    if not 0 <= zeta < math.inf:
        raise ValueError(f"zeta={zeta}, wanted a noise scale >= 0: 1 is the reverse diffusion.")
    if track and zeta < 1:
        raise ValueError(
            f"zeta={zeta} with tracked log-densities, wanted zeta >= 1: with less noise than the reverse diffusion they miss a Laplacian. "
            "Set zeta=1, or use experts with log_prob for exponents that vary with sigma and do not track."
        )
    if not window[0] < window[1]:
        raise ValueError(f"window={window}, wanted (low, high) noise levels with low < high: between them particles are weighted.")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}, wanted a positive bound in nats, or None.")
    if correct and zeta == 0 and not kernel_steps:
        warnings.warn(
            "zeta=0 with resampling: copies of a particle never separate. Use zeta=1, or kernel_steps >= 1.", PopflowWarning, stacklevel=3
        )
