"""SuperDiff: several models mixed by their own log-densities, which are tracked along the path at no cost.

Along any path driven with the noise of the reverse diffusion (``zeta = 1``) the log-density of model i obeys, on ``v = sigma^2`` running down,

    d log q_i = <s_i, dy> + 1/2 |s_i|^2 dv                       (Ito; no divergence, no further network call)

On this clock the Euler sum ``<s_i, dy> - 1/2 |s_i|^2 S^2`` is also the log-ratio of the Gaussian kernels of one denoising and one noising step
(the detailed-balance estimator): the two published estimators coincide here. Without noise the divergence of the score appears instead.

- `either` (OR, the mixture): ``kappa = softmax(T log q_i + bias_i)``;
- `both` (AND): ``kappa`` such that all ``log q_i`` change alike, given this step's noise;
- `average`: equal ``kappa``.

Source: Skreta et al., *The superposition of diffusion models using the Ito density estimator*, ICLR 2025, arXiv:2412.17762: theorem 1 and
propositions 3 to 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from popflow.compose.densities import initial_densities
from popflow.compose.sampler import Sampler, ending
from popflow.compose.spaces.space import Euclidean, Space
from popflow.compose.spaces.steps import between, follow, noise_for, step_length, stretched
from popflow.compose.target import Expert, check_same_space, scores
from popflow.core import Ito, Population, Rates, Streams, advance
from popflow.core.calculus import values_and_divergences


@dataclass(frozen=True, eq=False)
class Guidance:
    """Guide the mixture away from an unconditional model: score ``s_u + w (s - s_u)``. Densities stay those of the conditional models."""

    unconditional: Expert
    w: float

    def __post_init__(self):
        if not math.isfinite(self.w):
            raise ValueError(f"guidance.w={self.w}, wanted a finite number: 1 means no guidance.")


def either(
    experts: Sequence[Expert],
    *,
    temperature: float = 1.0,
    bias: Sequence[float] | None = None,
    guidance: Guidance | None = None,
    deterministic: bool = False,
    probes: int | None = 1,
) -> Sampler:
    """OR: the mixture ``sum_i w_i q_i``, by ``kappa_i = softmax(T log q_i + bias_i)``.

    Args:
        experts: Two or more.
        temperature: ``T``; 1 is the exact mixture, a large one takes the likeliest model alone.
        bias: ``log w_i``; None for equal shares.
        guidance: Classifier-free guidance of the mixed score.
        deterministic: Follow the probability-flow ODE; densities then need the divergence of each score.
        probes: Rademacher probes of that divergence (one Jacobian-vector product each); None for the exact one, d products.

    Raises:
        ValueError: for fewer than two experts, experts of different spaces, or an argument out of range.
        TypeError: for a product or power among the experts.

    Example:
        >>> import torch
        >>> from popflow.compose import either, gaussian_mixture, karras, sample
        >>> left, right = (gaussian_mixture(torch.tensor([[m]]), 0.3) for m in (-2.0, 2.0))
        >>> out = sample(either([left, right]), karras(100, 0.01, 20.0), particles=1024, rng=Streams(0))
        >>> abs(float((out.x > 0).float().mean()) - 0.5) < 0.1
        True
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}, wanted a positive number: 1 is the exact mixture, 1e6 the likeliest model alone.")
    offset = _bias(bias, experts)
    mix = _Mix(tuple(experts), guidance, deterministic, probes)
    return mix.sampler(lambda log_q, field, noise: _plus(temperature * log_q, offset).softmax(-1))


def average(experts: Sequence[Expert], *, guidance: Guidance | None = None, deterministic: bool = False, probes: int | None = 1) -> Sampler:
    """Equal shares of every score (the baseline known as composable diffusion), with densities tracked."""
    mix = _Mix(tuple(experts), guidance, deterministic, probes)
    return mix.sampler(lambda log_q, field, noise: torch.full_like(log_q, 1 / len(experts)))


def both(
    experts: Sequence[Expert],
    *,
    guidance: Guidance | None = None,
    ridge: float = 1e-6,
    feedback: float = 0.1,
    bias: Sequence[float] | None = None,
    deterministic: bool = False,
    probes: int | None = 1,
) -> Sampler:
    """AND: follow the surface on which all models give the sample the same density.

    At each step, with the noise drawn first, ``kappa`` (``sum kappa = 1``) solves ``d log q_1 = ... = d log q_M``. Written with the centred scores
    ``c_i = s_i - mean s`` and ``kappa = 1/M + delta`` this is the symmetric system

        w S^2 (C C^T + ridge tr(C C^T)/M I) delta = -centred(<s_i, dy_0> - S^2 |s_i|^2 / 2) - feedback centred(log q_i - bias_i)

    where ``dy_0`` is the step at equal shares. It does not depend on the order of the experts and falls back to equal shares where they agree.

    Args:
        experts: Two or more; with M > d + 1 the system has no solution and the ridge decides.
        guidance: Classifier-free guidance of the mixed score.
        ridge: Relative ridge; 0 for the exact solution. kappa is unbounded where models nearly agree, a ridge of 1e-4 tames it.
        feedback: Share of the present gap in log-densities that each step closes, in [0, 1]: removes differences at the start (where exact
            densities are known) and what rounding and the ridge leave over; 0 is the published form.
        bias: Wanted differences of the log-densities, reached through ``feedback``; None for equal ones.
        deterministic: As in `either`.
        probes: As in `either`.

    There is no stationary target density: this is a process on an iso-surface, not the product and not the minimum.

    Raises:
        ValueError, TypeError: as `either`.

    Example:
        >>> import torch
        >>> from popflow.compose import both, gaussian_mixture, karras, sample
        >>> left, right = (gaussian_mixture(torch.tensor([[m, 0.0]]), 1.0) for m in (-1.0, 1.0))
        >>> out = sample(both([left, right]), karras(50, 0.01, 20.0), particles=64, rng=Streams(0))
        >>> bool(out.x[..., 0].abs().max() < 0.1)  # midway, where the two densities are equal
        True
    """
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge={ridge}, wanted a number >= 0.")
    if not 0 <= feedback <= 1:
        raise ValueError(f"feedback={feedback}, wanted a share in [0, 1].")
    if bias is not None and feedback == 0:
        raise ValueError(f"bias={list(bias)} has no effect in AND with feedback=0, wanted feedback above 0: 0.1 is usual.")
    if guidance is not None and guidance.w == 0:
        raise ValueError(
            "guidance.w=0 in AND, wanted another weight: with 0 the shares have no effect, and no solution. 1 means no guidance."
        )
    offset = _bias(bias, experts)

    def shares(log_q: Tensor, field: _Field, noise: Tensor | None) -> Tensor:
        equal = torch.full_like(log_q, 1 / len(experts))
        wanted = -field.gains(equal, noise) - feedback * _plus(log_q, None if offset is None else -offset)
        return equal + _solve(field.s, wanted, field.strength * -field.h, ridge, len(field.space.tangent))

    return _Mix(tuple(experts), guidance, deterministic, probes).sampler(shares)


@dataclass(frozen=True, eq=False)
class _Field:
    """Scores of the experts at the particles of one step: they give the rates for any shares."""

    space: Space
    s: Tensor  # [M, *batch, n, *tangent], stretched
    s_u: Tensor | None
    divergence: Tensor | None  # [*batch, n, M], of the scores; only without noise
    w: float
    deterministic: bool
    h: float
    stretch: Tensor | None

    @property
    def strength(self) -> float:
        """Displacement per unit of kappa, v and score."""
        return self.w * (0.5 if self.deterministic else 1.0)

    def rates(self, kappa: Tensor) -> Rates:
        """Rates for shares ``[*batch, n, M]``, with the densities tracked."""
        event = self.s.ndim - kappa.ndim
        shares = kappa.movedim(-1, 0)
        mixed = (shares.reshape(*shares.shape, *[1] * event) * self.s).sum(0)
        if self.s_u is not None:
            mixed = self.s_u + self.w * (mixed - self.s_u)
        each = self.s.movedim(0, kappa.ndim - 1)
        dt = each.square().sum(tuple(range(-event, 0))) / 2
        if self.divergence is not None:
            dt = dt + self.divergence / 2
        drift, diffusion = (-mixed / 2, None) if self.deterministic else (-mixed, 1.0)
        return Rates(drift, diffusion, None, {"log_q": Ito(dt, each)})

    def gains(self, kappa: Tensor, noise: Tensor | None) -> Tensor:
        """Changes of the log-densities over the step with these shares, ``[*batch, n, M]``."""
        rates = self.rates(kappa)
        still = Population.of(torch.zeros_like(rates.drift), batch=kappa.ndim - 2, log_q=torch.zeros_like(kappa))
        return advance(still, rates, self.h, noise).aux["log_q"]

    def follow(self, pop: Population, rates: Rates, noise: Tensor | None) -> Population:
        """Take the step."""
        return follow(self.space, pop, rates, self.h, noise, self.stretch)


Shares = Callable[[Tensor, _Field, Tensor | None], Tensor]
"""``shares(log_q [*batch, n, M], field, noise) -> kappa [*batch, n, M]``."""


@dataclass(frozen=True, eq=False)
class _Mix:
    """The experts of a superposition and how their scores are evaluated."""

    experts: tuple[Expert, ...]
    guidance: Guidance | None
    deterministic: bool
    probes: int | None

    def __post_init__(self):
        if len(self.experts) < 2:
            raise ValueError(f"experts holds {len(self.experts)} model(s), wanted at least two to superpose.")
        for one in self.every:
            if not isinstance(one, Expert):
                raise TypeError(
                    f"experts holds a {type(one).__name__}, wanted an Expert: the density of a product or power is not tracked; superpose models."
                )
        if self.probes is not None and self.probes < 1:
            raise ValueError(f"probes={self.probes}, wanted at least 1, or None for the exact divergence.")
        check_same_space(self.every)

    @property
    def every(self) -> tuple[Expert, ...]:
        """The experts, and the unconditional one last."""
        return self.experts if self.guidance is None else (*self.experts, self.guidance.unconditional)

    @property
    def space(self) -> Space:
        """The space of all experts."""
        return self.experts[0].home

    def evaluate(self, pop: Population, v: float, v1: float, rng: Streams) -> _Field:
        """Scores at ``v`` for the step to ``v1``."""
        sigma, m, w = math.sqrt(v), len(self.experts), 1.0 if self.guidance is None else self.guidance.w
        stretch = between(self.space, sigma, math.sqrt(v1), pop.x)
        if not self.deterministic:
            s, divergence = stretched(scores(self.every, pop.x, sigma), stretch), None
        else:
            s, divergence = self._with_divergence(pop, sigma, stretch, rng)
            divergence = divergence[..., :m]
        h, s_u = step_length(v, v1, self.deterministic, stretch), None if self.guidance is None else s[m]
        return _Field(self.space, s[:m], s_u, divergence, w, self.deterministic, h, stretch)

    def _with_divergence(self, pop: Population, sigma: float, stretch: Tensor | None, rng: Streams) -> tuple[Tensor, Tensor]:
        """Scores of all models and their divergences ``[*batch, n, every]``: Rademacher probes, or exact.

        The divergence in the frame of a space is that of the scores as functions of a displacement, at zero.
        """
        rows, probes = pop.x.flatten(0, len(pop.batch)), None
        if isinstance(self.space, Euclidean):
            point, move = rows, lambda y: y
        else:
            point = rows.new_zeros(len(rows), *self.space.tangent)
            move = lambda y: self.space.move(rows, stretched(y, stretch))  # noqa: E731
        if self.probes is not None:
            probes = [(2 * (rng.normal("probe", point) > 0) - 1).to(rows.dtype) for _ in range(self.probes)]
        s, divergence = values_and_divergences(lambda y: stretched(scores(self.every, move(y), sigma), stretch), point, probes)
        return s.reshape(len(s), *pop.log_w.shape, *self.space.tangent), divergence.movedim(0, -1).reshape(*pop.log_w.shape, len(s))

    def sampler(self, shares: Shares) -> Sampler:
        """Sampler whose shares are a function of the densities before the step, of the scores and of the noise of the step."""
        m = len(self.experts)

        def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
            field = self.evaluate(pop, t0, t1, rng)
            noise = None if self.deterministic else noise_for(self.space, pop, rng)
            kappa = shares(pop.aux["log_q"], field, noise)
            after = field.follow(pop, field.rates(kappa), noise)
            return after.replace(aux={**after.aux, "kappa": kappa})

        def start(y: Tensor, sigma: float) -> Population:
            pop = Population.of(y, batch=1)
            log_q = initial_densities(self.experts, pop, sigma)
            return pop.replace(aux={"log_q": log_q, "kappa": torch.full_like(log_q, 1 / m)})

        return Sampler(self.every, ending(step, self._denoise), start, evaluations=len(self.every))

    def _denoise(self, pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        """Last step to sigma = 0 with the last shares: no noise, densities left as they are."""
        field = replace(self, deterministic=False).evaluate(pop, t0, t1, rng)
        return field.follow(pop, Rates(field.rates(pop.aux["kappa"]).drift), None)


def _solve(s: Tensor, wanted: Tensor, gain: float, ridge: float, event: int) -> Tensor:
    """Solve ``gain (C C^T + ridge) delta = centred(wanted)`` per particle in float64; ``delta [*batch, n, M]`` sums to zero.

    C holds the centred scores, so ``C C^T`` has the null vector of ones; adding its projector makes the system regular and changes nothing.
    Scores that differ by no more than rounding (64 units in the last place of their norm) count as equal: ``delta = 0``.
    """
    m = s.shape[0]
    flat = s.flatten(s.ndim - event).movedim(0, -2).double()
    centred = flat - flat.mean(-2, keepdim=True)
    gram = centred @ centred.mT
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    agree = scale <= (64 * torch.finfo(s.dtype).eps) ** 2 * flat.square().sum(-1).mean(-1)
    scale = torch.where(agree, 1.0, scale)[..., None, None]
    eye = torch.eye(m, dtype=gram.dtype, device=gram.device)
    system = gram + scale * (max(ridge, 1e-14) * eye + 1 / m)
    right = wanted.double()
    right = (right - right.mean(-1, keepdim=True)) / gain
    delta = torch.linalg.solve_ex(system, right.unsqueeze(-1))[0].squeeze(-1)  # regular by construction: no need to wait and see
    return torch.where(agree[..., None], 0.0, delta).to(wanted.dtype)


def _plus(log_q: Tensor, offset: Tensor | None) -> Tensor:
    """Add offsets if there are any; moving them to an accelerator would make the loop wait."""
    return log_q if offset is None else log_q + offset.to(log_q)


def _bias(bias: Sequence[float] | None, experts: Sequence[Expert]) -> Tensor | None:
    if bias is None:
        return None
    offset = torch.as_tensor(bias, dtype=torch.float64)
    if offset.shape != (len(experts),) or not bool(offset.isfinite().all()):
        raise ValueError(f"bias={offset.tolist()}, wanted one finite number for each of {len(experts)} experts.")
    return offset
