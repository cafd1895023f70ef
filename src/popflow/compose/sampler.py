"""Run a sampler down a grid of noise levels: populations of particles, many independent runs in one batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popflow.compose.backward_kernel import Variance, prepare
from popflow.compose.discretisation import looking
from popflow.compose.schedule import check_levels
from popflow.compose.target import Expert, scores
from popflow.core import CheckpointError, PopflowWarning, Population, Recorder, State, Step, Streams, Trace, simulate, systematic
from popflow.core.checks import at_least_one, put_off
from popflow.core.metrics import distinct_ancestors


@dataclass(frozen=True, eq=False)
class Sampler:
    """A way to sample, as `sample` runs it; made by `popflow.compose.feynman_kac`, `either`, `both` and `average`.

    Time is the clock ``v = sigma^2``, running down: then the step of the method is plain `euler` and ``|h|`` is exactly ``S^2``.

    Attributes:
        experts: The distinct experts, evaluated together.
        step: From one clock value to the next; ``t1 = 0`` is the final denoising.
        start: Turns initial samples ``[runs, n, *event]`` at ``sigma_max`` into a population with weights and companions.
        precision: ``B(sigma_max)``, the sum of exponents: initial samples have variance ``sigma_max^2 / B``.
        resamples: Whether particles of one run compete.
        evaluations: Expert evaluations per particle and step.
        measures: Whether its steps ask for the experts' denoising losses, which are then measured first where they are not known.
        exponents: ``beta_i`` of the experts at a level where they have some, for the discretisation in the trace.
        variance: Width of the kernels that its steps take; None for a sampler whose steps are not looked at.
        separates: Whether the step from a noise level draws noise (or takes Langevin steps), so that copies of a particle part.
    """

    experts: tuple[Expert, ...]
    step: Step
    start: Callable[[Tensor, float], Population]
    precision: Callable[[float], float] = lambda sigma: 1.0
    resamples: bool = False
    evaluations: int = 1
    measures: bool = False
    exponents: Callable[[float], Sequence[float]] | None = None
    variance: Variance | None = None
    separates: Callable[[float], bool] = lambda sigma: True


@dataclass(frozen=True, eq=False)
class Sample:
    """What `sample` returns.

    Attributes:
        population: ``x [runs, particles, *event]`` with its last weights; ``aux`` holds ``ancestor``, and ``log_q``, ``clipped`` where tracked.
        trace: ``sigma``, ``ess`` (of the weights before the resampling that they led to), ``log_z``, ``ancestors`` (distinct ones) of every state, each ``[steps + 1, runs]``; and
            ``discretisation [steps + 1]`` of the step that follows, in nats, where it was looked at (`popflow.compose.discretisation`).
    """

    population: Population
    trace: Trace

    @property
    def x(self) -> Tensor:
        """Samples ``[runs, particles, *event]``; they carry weights, see `draw`."""
        return self.population.x

    def draw(self, n: int, rng: Streams) -> Tensor:
        """Draw ``n`` unweighted samples from each run, ``[runs, n, *event]``."""
        if n < 1:
            raise ValueError(f"n={n}, wanted at least one sample of each run.")
        _check_streams(rng)
        pop = self.population
        weights = pop.weights()
        if n == len(pop):
            return pop.take(rng.each("draw", systematic, weights)).x
        idx = rng.each("draw", lambda w, generator: torch.multinomial(w, n, True, generator=generator), weights.reshape(-1, len(pop)))
        return pop.take(idx.reshape(*pop.batch, n)).x

    def pick(self, rng: Streams) -> Tensor:
        """Draw one sample from each run by its weights, ``[runs, *event]``: independent samples without near-duplicates."""
        return self.draw(1, rng).squeeze(1) if len(self.population) > 1 else self.population.x.squeeze(1)


def _check_streams(rng: object) -> None:
    if not isinstance(rng, Streams):
        raise TypeError(f"rng is a {type(rng).__name__}, wanted popflow.core.Streams: for example Streams(seed=0).")


def ending(step: Step, last: Step) -> Step:
    """Take ``step`` between noise levels and ``last`` to sigma = 0."""

    def whole(pop: Population, t0: float, t1: float, rng: Streams) -> Population:
        return step(pop, t0, t1, rng) if t1 > 0 else last(pop, t0, t1, rng)

    return whole


def _ess(state: State) -> Tensor:
    """Of the weights by which resampling was last decided, where a sampler keeps it; of the present ones else."""
    kept = state.pop.aux.get("ess")
    return state.pop.ess() if kept is None else kept[..., 0]


def diagnostics() -> Trace:
    """Return the recorder that `sample` keeps: noise level, effective sample size, log Z and distinct ancestors of every state."""
    return Trace(
        sigma=lambda state: math.sqrt(state.t),
        ess=_ess,
        log_z=lambda state: state.pop.log_normalizer(),
        ancestors=lambda state: distinct_ancestors(state.pop.aux["ancestor"]),
    )


def sample(
    sampler: Sampler,
    sigmas: Tensor,
    *,
    particles: int,
    runs: int = 1,
    rng: Streams,
    trace: Trace | None = None,
    record: Iterable[Recorder] = (),
    resume: State | None = None,
    around: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Sample:
    """Sample from a composition.

    Args:
        sampler: From `feynman_kac`, `either`, `both`, `average`, ...
        sigmas: Noise levels, decreasing, e.g. `karras(300, 0.02, 15.0)`; a last level of 0 denoises without noise or growth
            (gradient-free rewards weigh what comes out).
        particles: Particles of one run: they share weights and are resampled together.
        runs: Independent populations in one batch.
        rng: Random streams: ``start``, ``noise``, ``resample``, ``kernel``.
        trace: What to record of every state, with at least ``ess``; None for `diagnostics`. Called before the other recorders, so that one of them
            may write its rows.
        record: Further recorders, e.g. a checkpoint.
        resume: A state to resume from; initial samples are then not drawn.
        around: Clean data to noise as initial samples, for editing: broadcast to ``[runs, particles, *event]``; None for zero.
            Tracked densities start equal for all experts. Particles without centre of mass are centred.
        dtype: Dtype of the particles and their weights.

    On an accelerator nothing in the loop waits for it: values that are not finite are found at the end, with the level they appeared at. With
    further recorders, which look at every state, they are found at once, as on a CPU.

    Raises:
        ValueError: for a grid that is not decreasing or whose steps are too large for the space, a sum of exponents that is not positive, no
            particles, or ``around`` in a space that is not flat.
        NonFiniteError: when an expert fails, naming it and the noise level.
        ZeroWeightsError: when a run has no weight left.
        CheckpointError: when ``resume`` belongs to other levels, particles or runs.

    Example:
        >>> from popflow.compose import feynman_kac, gaussian_mixture, karras
        >>> a = gaussian_mixture(torch.tensor([[0.0]]), std=1.0)
        >>> out = sample(feynman_kac(a**2, kernel_steps=2), karras(100, 0.01, 20.0), particles=4096, rng=Streams(0))
        >>> abs(float(out.population.mean(lambda x: x**2)) - 1 / 2) < 0.05
        True
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler is a {type(sampler).__name__}, wanted a Sampler: for example feynman_kac(target).")
    _check_streams(rng)
    levels, space = check_levels(sigmas), sampler.experts[0].home
    space.check_levels(levels)
    check_mass(sampler, levels)
    if around is not None and not space.flat:
        raise ValueError(f"around is given, wanted None: samples of {space} are weighted by the density of their own start.")
    at_least_one(particles=particles, runs=runs)
    if sampler.resamples and particles == 1:
        warnings.warn(
            "particles=1 with resampling: one particle has nothing to compete with, weights have no effect. Use particles >= 4.",
            PopflowWarning,
            stacklevel=2,
        )
    trace = diagnostics() if trace is None else trace
    if sampler.variance is not None:
        evaluations = runs * particles * max(1, sampler.evaluations // len(sampler.experts))
        look = looking(sampler.experts, levels, sampler.variance, evaluations, sampler.exponents)
        trace.functions |= {} if look is None else {"discretisation": look}
    first = float(levels[0])
    like = torch.empty(runs, particles, *space.event, dtype=dtype, device=rng.device)
    if sampler.measures:
        prepare(sampler.experts, levels.tolist(), runs * particles * (len(levels) - 1), like)
    if resume is None:
        total = sampler.precision(first)
        y = space.start(like, first, total, rng)
        pop, start = sampler.start(y if around is None else y + space.check(around.to(y)), first), 0
        ancestor = torch.arange(particles, device=rng.device).expand(runs, particles)
        pop = pop.replace(aux={**pop.aux, "ancestor": ancestor})
        if around is None and space.flat and sampler.variance is not None:
            _warn_of_low_start(sampler.experts, pop.x[0, :_LOOKED_AT], first)
    else:
        pop, start = _fitting(resume, levels, (runs, particles, *sampler.experts[0].event)), resume.k
    record = tuple(record)
    with put_off(rng.device.type != "cpu" and not record):
        pop = simulate(sampler.step, pop, levels.square(), rng=rng, record=(trace, *record), start=start)
    if sampler.resamples and trace.rows:
        _warn_of_collapse(trace["ess"], particles)
        _warn_of_copies(pop)
    return Sample(pop, trace)


def check_mass(sampler: Sampler, levels: Tensor) -> None:
    """Raise a ValueError naming the first noise level at which the exponents do not sum to a positive number."""
    for level in levels[levels > 0].tolist():
        total = sampler.precision(level)
        if not total > 0:
            raise ValueError(
                f"the exponents sum to {total:g} at sigma={level:g}, wanted a positive sum: the target has no finite mass. "
                "Raise a positive exponent or weaken a negative one."
            )


def _fitting(resume: State, levels: Tensor, shape: tuple[int, ...]) -> Population:
    """Return the population of a state to resume from, or raise an error if it belongs to another job."""
    if "ancestor" not in resume.pop.aux or tuple(resume.pop.x.shape) != shape:
        raise CheckpointError(
            f"resume holds x of shape {tuple(resume.pop.x.shape)}, wanted {shape} of `sample`: resume from a state of the same job."
        )
    if not 0 <= resume.k < len(levels) or not math.isclose(resume.t, float(levels[resume.k]) ** 2):
        raise CheckpointError(
            f"resume stands at step {resume.k} and sigma={math.sqrt(resume.t):g}, wanted a step of these {len(levels)} levels: pass the levels of that run."
        )
    return resume.pop


def _warn_of_collapse(ess: Tensor, particles: int) -> None:
    collapsed = (ess < 2).any(1) if particles >= 8 else torch.zeros(len(ess), dtype=torch.bool)
    if int(collapsed.sum()) >= 3:
        warnings.warn(
            f"the effective sample size fell below 2 of {particles} particles at {int(collapsed.sum())} noise levels: the weights rest on single "
            "particles. Remedies: (1) kernel_steps=5, which lets particles mix at each level; (2) more noise, zeta=2 or 3; (3) more particles or "
            "levels, or an exponent that grows as sigma falls.",
            PopflowWarning,
            stacklevel=3,
        )


def _warn_of_copies(pop: Population) -> None:
    """Copies are neighbours after systematic resampling; where half of a run are copies to the last bit, no noise came after it."""
    x = pop.x.flatten(2)
    copies = int((x[:, 1:] == x[:, :-1]).all(-1).sum(1).max()) if len(pop) > 1 else 0
    if 2 * copies >= len(pop):
        warnings.warn(
            f"only {len(pop) - copies} of {len(pop)} particles of a run are distinct: copies made by resampling never separated, for no noise was added "
            "after it. The effective sample size speaks of the present weights and cannot see this. Fix: noise (zeta=1, noise_above=0), or "
            "kernel_steps >= 1.",
            PopflowWarning,
            stacklevel=3,
        )


_LOOKED_AT, _FAR = 64, 0.3
"""Particles that are looked at; how large clean predictions may be at the first level, in units of its sigma."""


def _warn_of_low_start(experts: Sequence[Expert], y: Tensor, sigma: float) -> None:
    """Pure noise is the law of the first level only while the data are small beside it: clean predictions from it are then small too."""
    space, worst, told = experts[0].home, (0.0, ""), [getattr(one.model, "data_scale", None) for one in experts]
    if any(told):  # a model that says the scale of its data need not be asked
        worst = max((scale / sigma, one.name) for scale, one in zip(told, experts, strict=True) if scale)
    else:
        clean = y + sigma**2 * scores(experts, y, sigma)
        size = clean.flatten(2).square().sum(-1).mean(-1) / space.dim
        worst = max(zip((size.sqrt() / sigma).tolist(), (one.name for one in experts), strict=True))
    if worst[0] > _FAR:
        warnings.warn(
            f"sigmas begin at {sigma:g}, too low for the data of expert {worst[1]!r}: the clean samples it predicts from pure noise there have size "
            f"{worst[0] * sigma:.2g}, wanted below {_FAR} of the first level; modes may be lost. Fix: begin at {3 * worst[0] * sigma:.2g} or more, or "
            "give clean samples to begin from (around=).",
            PopflowWarning,
            stacklevel=3,
        )
