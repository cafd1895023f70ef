"""One step of a superposition: scores of several experts, the Gaussian kernel that moves the particles, and the densities that it tracks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from popflow.compose.backward_kernel import Variance, check_variance, kernel_variances
from popflow.compose.curvature import Curved, Fields, curved, linear_and_bend
from popflow.compose.densities import increments, initial_densities
from popflow.compose.sampler import Sampler, ending
from popflow.compose.spaces.products import ProductSpace
from popflow.compose.spaces.space import Euclidean, Space
from popflow.compose.spaces.steps import between, noise_for, step_length, stretched
from popflow.compose.target import Expert, check_same_space, scores
from popflow.core import Population, Streams
from popflow.core.calculus import values_and_divergences


@dataclass(frozen=True, eq=False)
class Guidance:
    """Guide the mixture away from an unconditional model: score ``s_u + w (s - s_u)``. Densities stay those of the conditional models."""

    unconditional: Expert
    w: float

    def __post_init__(self):
        if not math.isfinite(self.w):
            raise ValueError(f"guidance.w={self.w}, wanted a finite number: 1 means no guidance.")


@dataclass(frozen=True, eq=False)
class Field:
    """Scores of the experts at the particles of one step, and how far it goes."""

    space: Space
    s: Tensor  # [M, *batch, n, *tangent], stretched
    s_u: Tensor | None
    divergence: Tensor | None  # [*batch, n, M], of the scores; only without noise
    w: float
    h: float  # length of the step on the clock sigma^2
    stretch: Tensor | None
    variances: Sequence[float | Tensor]  # c of the experts, and of the unconditional one last; none without noise
    curvature: Curvature | None

    @property
    def euler(self) -> bool:
        """Whether all kernels are those of Euler-Maruyama, or there is no noise: densities are then linear in the move."""
        return self.curvature is None and all(not isinstance(c, Tensor) and c == 1 for c in self.variances)

    @property
    def reach(self) -> float:
        """Displacement per unit of share and score."""
        return self.w * self.h * (0.5 if self.divergence is not None else 1.0)

    @property
    def rows(self) -> Tensor:
        """Scores ``[*batch, n, M, T]`` in float64, T numbers in a tangent vector."""
        return self.flat(self.s).movedim(0, -2)

    def mean(self, kappa: Tensor, mixture: bool) -> tuple[Tensor, Tensor | float]:
        """Mean over h and variance over h of the kernel that moves the particles: a mixture of the experts' kernels, or their geometric mean; guided."""
        event, m = len(self.space.tangent), len(self.s)
        shares = kappa.movedim(-1, 0).reshape(m, *kappa.shape[:-1], *[1] * event)
        if not self.variances or self.euler:
            mean, width = (shares * self.s).sum(0), 1.0
            return (mean if self.s_u is None else self.s_u + self.w * (mean - self.s_u)), width
        each = [c if isinstance(c, Tensor) else self.s.new_full((1,) * event, c) for c in self.variances]
        c = torch.stack(each[:m]).reshape(m, *[1] * (kappa.ndim - 1), *each[0].shape)
        if mixture:
            mean, dims = (shares * self.s).sum(0), tuple(range(-event, 0))
            spread = (shares * (self.s - mean).square()).sum(0).sum(dims, keepdim=True) / self.space.dim
            width = (shares * c).sum(0) + self.h * spread
        else:
            width = 1 / (shares / c).sum(0)
            mean = width * (shares / c * self.s).sum(0)
        if self.s_u is None:
            return mean, width
        inverse = (1 - self.w) / each[m] + self.w / width
        fits = inverse * width > _LEAST_PRECISION
        both = torch.where(fits, inverse, 1 / width)
        guided = ((1 - self.w) / each[m] * self.s_u + self.w / width * mean) / both
        return torch.where(fits, guided, self.s_u + self.w * (mean - self.s_u)), 1 / both

    def move(self, kappa: Tensor, noise: Tensor | None, mixture: bool) -> tuple[Tensor, Tensor]:
        """Displacement by shares ``[*batch, n, M]``, and its part that is noise."""
        mean, width = self.mean(kappa, mixture)
        if noise is None:
            return mean * (self.h / 2 if self.divergence is not None else self.h), torch.zeros_like(mean)
        part = noise * (math.sqrt(self.h) * (width.sqrt() if isinstance(width, Tensor) else math.sqrt(width)))
        return mean * self.h + part, part

    def gains(self, displacement: Tensor, part: Tensor) -> Tensor:
        """Changes of the log-densities, ``[*batch, n, M]``; ``part`` is the noise in the displacement."""
        if self.curvature is None:
            tracked = increments(displacement, self.s, self.h, self.variances[: len(self.s)] or [1.0] * len(self.s), self.space)
            return tracked if self.divergence is None else tracked - self.divergence * (self.h / 2)
        frame = self.flat(displacement).unsqueeze(-2)[..., :0, :]
        return self.quadratic(displacement, part, frame)[0].to(displacement.dtype)

    def quadratic(self, displacement: Tensor, part: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Changes of the log-densities by a displacement and a further one in a frame, in float64: value, slope, bend (`log_increments`)."""
        if self.curvature is not None:
            return self.curvature(frame, self.flat(part)).log_increments(frame, self.flat(displacement), self.rows, self.h)
        c = [one.flatten() if isinstance(one, Tensor) else self.s.new_full((1,), one) for one in self.variances[: len(self.s)]]
        precision = 1 / torch.stack(c or [self.s.new_ones(1)] * len(self.s)).double()
        value = self.gains(displacement, part).double()
        return value, *linear_and_bend(precision, frame, self.flat(displacement), self.rows, self.h)

    def follow(self, pop: Population, displacement: Tensor, **aux: Tensor) -> Population:
        """Move a population, with companions replaced."""
        return pop.replace(x=self.space.move(pop.x, stretched(displacement, self.stretch)), aux={**pop.aux, **aux})

    def flat(self, vector: Tensor) -> Tensor:
        """Tangent vectors ``[*batch, n, T]`` in float64."""
        return vector.flatten(vector.ndim - len(self.space.tangent)).double()


Curvature = Callable[[Tensor, Tensor], Curved]
"""``curvature(frame [*batch, n, r, T], move [*batch, n, T])``: variances in a frame, and across it in the direction of a move."""
Plan = Callable[[Tensor, Field, Tensor | None], tuple[Tensor, Tensor, Tensor]]
"""``plan(log_q [*batch, n, M], field, noise) -> shares [*batch, n, M], displacement, changes of log_q``."""
_LEAST_PRECISION = 0.1
"""Guided kernels wider than ten times that of the mixture give way to it."""


@dataclass(frozen=True, eq=False)
class Superposition:
    """The experts of a superposition and how their scores are evaluated."""

    experts: tuple[Expert, ...]
    guidance: Guidance | None
    deterministic: bool
    probes: int | None
    variance: Variance

    def __post_init__(self):
        if len(self.experts) < 2:
            raise ValueError(f"experts holds {len(self.experts)} model(s), wanted at least two to superpose.")
        for one in self.every:
            if not isinstance(one, Expert):
                raise TypeError(
                    f"experts holds a {type(one).__name__}, wanted an Expert: the density of a product or power is not tracked; superpose models."
                )
        if self.probes is not None and self.probes < 1:
            raise ValueError(f"probes={self.probes}, wanted at least 1, or None for all directions.")
        check_variance(self.variance)
        if self.deterministic and self.variance != "optimal":
            raise ValueError(f"variance={self.variance!r} has no effect with deterministic=True, whose steps have no width: leave it out.")
        check_same_space(self.every)
        if self.variance == "local" and not all(one.flat for one in self._factors):
            raise ValueError(f"variance='local' with samples in {self.space}, which is not flat: wanted 'optimal'.")

    @property
    def every(self) -> tuple[Expert, ...]:
        """The experts, and the unconditional one last."""
        return self.experts if self.guidance is None else (*self.experts, self.guidance.unconditional)

    @property
    def space(self) -> Space:
        """The space of all experts."""
        return self.experts[0].home

    @property
    def _factors(self) -> Sequence[Space]:
        return self.space.factors if isinstance(self.space, ProductSpace) else (self.space,)

    def evaluate(self, pop: Population, v: float, v1: float, rng: Streams) -> Field:
        """Scores at ``v`` for the step to ``v1``; a step to 0 only moves."""
        sigma, lower, m = math.sqrt(v), math.sqrt(v1), len(self.experts)
        stretch = between(self.space, sigma, lower, pop.x)
        divergence, variances, curvature = None, [], None
        if self.deterministic:
            s, divergence = self._with_divergence(pop, sigma, stretch, rng)
            divergence = divergence[..., :m]
        else:
            s = stretched(scores(self.every, pop.x, sigma), stretch)
            curvature = self._curvature(pop, sigma, lower, stretch, rng) if v1 > 0 else None
            variances = kernel_variances(self.every, sigma, lower, self.variance, pop.x) if v1 > 0 else []
        h, w = abs(step_length(v, v1, self.deterministic, stretch)), 1.0 if self.guidance is None else self.guidance.w
        s_u = None if self.guidance is None else s[m]
        return Field(self.space, s[:m], s_u, divergence, w, h, stretch, variances, curvature)

    def _local(self, pop: Population, sigma: float, stretch: Tensor | None, experts: Sequence[Expert]) -> tuple[Tensor, Fields]:
        """Scores to be differentiated, and where: functions of the points, or in the frame of a space of a displacement, at zero."""
        rows = pop.x.flatten(0, len(pop.batch))
        if isinstance(self.space, Euclidean):
            return rows, lambda y: scores(experts, y, sigma)
        return (
            rows.new_zeros(len(rows), *self.space.tangent),
            lambda y: stretched(scores(experts, self.space.move(rows, stretched(y, stretch)), sigma), stretch),
        )

    def _curvature(self, pop: Population, sigma: float, lower: float, stretch: Tensor | None, rng: Streams) -> Curvature | None:
        """Variances from the curvature of each expert; None where they are not asked for."""
        if self.variance != "local":
            return None
        levels = self.space.levels if isinstance(self.space, ProductSpace) else lambda sigma: [sigma]
        point, fields = self._local(pop, sigma, stretch, self.experts)
        floor, h = min((b / a) ** 2 for a, b in zip(levels(sigma), levels(lower), strict=True)), sigma**2 - lower**2

        def found(frame: Tensor, towards: Tensor) -> Curved:
            free = max(self.space.dim - frame.shape[-2] - 1, 0)
            count = free if self.probes is None else min(self.probes, free)
            others = [self.space.project(self._probe(pop, point, rng)).reshape(towards.shape).double() for _ in range(count)]
            return curved(fields, point, frame, towards, others, h, floor, self.space.dim)

        return found

    def _probe(self, pop: Population, point: Tensor, rng: Streams) -> Tensor:
        """A random direction at each particle, in rows like ``point``; every run draws its own."""
        return rng.normal("probe", point.reshape(*pop.log_w.shape, *self.space.tangent)).reshape(point.shape)

    def _with_divergence(self, pop: Population, sigma: float, stretch: Tensor | None, rng: Streams) -> tuple[Tensor, Tensor]:
        """Scores of all models and their divergences ``[*batch, n, every]``: Rademacher probes, or exact."""
        point, fields = self._local(pop, sigma, stretch, self.every)
        probes = None
        if self.probes is not None:
            probes = [(2 * (self._probe(pop, point, rng) > 0) - 1).to(point.dtype) for _ in range(self.probes)]
        s, divergence = values_and_divergences(fields, point, probes)
        return s.reshape(len(s), *pop.log_w.shape, *self.space.tangent), divergence.movedim(0, -1).reshape(*pop.log_w.shape, len(s))

    def sampler(self, plan: Plan) -> Sampler:
        """Sampler whose shares and moves are a function of the densities before the step, of the scores and of the noise of the step."""
        m = len(self.experts)

        def step(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
            field = self.evaluate(pop, t0, t1, rng)
            noise = None if self.deterministic else noise_for(self.space, pop, rng)
            kappa, displacement, gains = plan(pop.aux["log_q"], field, noise)
            return field.follow(pop, displacement, log_q=pop.aux["log_q"] + gains, kappa=kappa)

        def start(y: Tensor, sigma: float) -> Population:
            pop = Population.of(y, batch=1)
            log_q = initial_densities(self.experts, pop, sigma)
            return pop.replace(aux={"log_q": log_q, "kappa": torch.full_like(log_q, 1 / m)})

        measures = self.variance in ("optimal", "local") and not self.deterministic
        return Sampler(
            self.every,
            ending(step, self._denoise),
            start,
            evaluations=len(self.every),
            measures=measures,
            separates=lambda sigma: not self.deterministic,
        )

    def _denoise(self, pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        """Last step to sigma = 0 with the last shares: no noise, densities left as they are."""
        field = replace(self, deterministic=False).evaluate(pop, t0, t1, rng)
        return field.follow(pop, field.move(pop.aux["kappa"], None, mixture=True)[0])
