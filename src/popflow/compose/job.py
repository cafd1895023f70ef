"""The job behind ``popflow sample``: experts named by strings, composed, sampled into a run directory, reported."""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from popflow.compose import zoo
from popflow.compose.experts import kernel_mixture
from popflow.compose.feynman_kac import feynman_kac
from popflow.compose.particles import models
from popflow.compose.particles.report import against_truth
from popflow.compose.sampler import Sample, Sampler, check_mass, distinct, sample
from popflow.compose.schedule import geometric, karras, linear
from popflow.compose.superpose import Guidance, average, both, either
from popflow.compose.target import Expert, Target
from popflow.core import PopflowWarning, Streams
from popflow.core.errors import unknown
from popflow.runs import Figure, Measured, Report, Run, Table, figures, simulation

_GRIDS = {"karras": karras, "linear": linear, "geometric": geometric}
_BELONG = {
    **dict.fromkeys(("beta", "temperature", "zeta", "correct", "kernel_steps", "kernel_width", "ess_below", "clip"), ("product",)),
    "sharpness": ("or",),
    "bias": ("or", "and"),
    **dict.fromkeys(("ridge", "feedback"), ("and",)),
    "deterministic": ("or", "and", "average"),
}
"""Settings that only some operations read."""


@dataclass(frozen=True)
class Sizes:
    """Noise levels and particles: what a configuration may leave to the kind of its experts."""

    steps: int
    sigma_min: float
    sigma_max: float
    grid: Literal["karras", "linear", "geometric"]
    particles: int
    runs: int


@dataclass(frozen=True)
class SampleConfig:
    """What ``popflow sample`` takes; every field is an option.

    Attributes:
        experts: ``zoo:NAME``, ``zoo:NAME:LABEL`` (class-conditional), ``kernel:FILE:WIDTH`` (kernel mixture of the rows of a .npy, .npz
            or .csv file) or ``python:MODULE:NAME`` (an `Expert` of yours).
        op: ``product`` (Feynman-Kac corrected), ``or``, ``and``, ``average`` (SuperDiff).
        beta: Exponents, one per expert or one for all; 1 when empty.
        temperature: Sample the whole product to the power 1 / temperature. For experts that know at which temperature T they have learned
            (``zoo:lj13``, ``zoo:dw4``), the temperature to sample at: the power is T / temperature.
        unconditional: Expert to guide away from.
        guidance: Guidance weight w; needs ``unconditional``.
        steps: Noise levels minus one. This and the next five: None takes what suits the experts, see `sizes`.
        sigma_min: Last noise level, in units of the data.
        sigma_max: First noise level.
        grid: Spacing of the levels.
        particles: Particles of one run.
        runs: Independent runs; each gives one sample in the end, and all its particles with their weights.
        zeta: Noise scale; None takes 1, or where the exponents sum to more than the number of experts (annealing) 1.4, and for systems of
            particles the tempered noise ``B^{-1/2}``, B the sum of exponents: ``sqrt(temperature / T)``.
        correct: Weigh and resample; without it the naive sampler.
        kernel_steps: Langevin steps at each level; None takes 0, and for systems of particles that are cooled 1: by weights alone the particles of a
            cold run descend from a few.
        kernel_width: Smallest standard deviation of the data density; the Langevin step is ``min(sigma^2 + width^2, 1) / 10``. None takes 0.3,
            and for systems of particles the step of their model.
        ess_below: Resample below this share of effective particles.
        clip: Bound on weight increments; None for none.
        sharpness: Temperature T of OR; 1 is the exact mixture.
        bias: Log-shares of OR, or wanted log-density differences of AND.
        ridge: Of AND.
        feedback: Of AND.
        deterministic: ODE instead of SDE for OR, AND, average.
        checkpoint_every: Levels between two checkpoints.
        seed: Of the random streams.

    Raises:
        ValueError: for whatever can be seen to be wrong before an expert is loaded.
    """

    experts: tuple[str, ...] = ()
    op: Literal["product", "or", "and", "average"] = "product"
    beta: tuple[float, ...] = ()
    temperature: float | None = None
    unconditional: str | None = None
    guidance: float = 1.0
    steps: int | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    grid: Literal["karras", "linear", "geometric"] | None = None
    particles: int | None = None
    runs: int | None = None
    zeta: float | None = None
    correct: bool = True
    kernel_steps: int | None = None
    kernel_width: float | None = None
    ess_below: float = 0.5
    clip: float | None = None
    sharpness: float = 1.0
    bias: tuple[float, ...] = ()
    ridge: float = 1e-6
    feedback: float = 0.1
    deterministic: bool = False
    checkpoint_every: int = 25
    seed: int = 0

    def __post_init__(self):
        if not self.experts:
            raise ValueError("experts is empty, wanted at least one: for example --expert zoo:digits-even.")
        for spec in self.experts if self.unconditional is None else (*self.experts, self.unconditional):
            check_expert(spec)
        if len(self.beta) not in (0, 1, len(self.experts)):
            raise ValueError(f"beta has {len(self.beta)} values for {len(self.experts)} experts, wanted one for each, or one for all.")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature}, wanted a positive number: below 1 (or that of the expert) sharpens, above flattens."
            )
        system_of(self)
        if self.guidance != 1 and self.unconditional is None:
            raise ValueError(f"guidance={self.guidance} without an unconditional expert: give one, e.g. --unconditional zoo:digits-all.")
        for field in fields(self):
            value, ops = getattr(self, field.name), _BELONG.get(field.name, (self.op,))
            if self.op not in ops and value != field.default:
                raise ValueError(f"{field.name}={value!r} means nothing to op={self.op!r}: it belongs to {' and '.join(map(repr, ops))}.")
        for name in ("particles", "runs", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}, wanted at least 1.")
        if self.kernel_width is not None and not 0 <= self.kernel_width < math.inf:
            raise ValueError(f"kernel_width={self.kernel_width}, wanted a standard deviation of the data: a number >= 0.")
        unloaded = {spec: Expert(_unloaded, (), name=spec) for spec in (*self.experts, self.unconditional) if spec is not None}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PopflowWarning)  # the job itself will warn
            check_mass(_composed(self, unloaded.__getitem__), noise_levels(self))


DATA = Sizes(300, 0.02, 15.0, "karras", 64, 8)
"""For experts of data."""
FEW = 10
"""Surviving ancestors of a run below which a report warns."""


def sizes(config: SampleConfig) -> Sizes:
    """Return noise levels and particles of a configuration: `DATA`, or for a system of particles 500 geometric levels of its model and one run of 1000."""
    system = system_of(config)
    suited = DATA if system is None else Sizes(500, *models.find(system).sampled, "geometric", 1000, 1)
    given = {field.name: getattr(config, field.name) for field in fields(Sizes)}
    return replace(suited, **{name: value for name, value in given.items() if value is not None})


def system_of(config: SampleConfig) -> str | None:
    """Return the name of the particle system that the experts model, or None.

    Raises:
        ValueError: when experts of it are mixed with others.
    """
    specs = config.experts if config.unconditional is None else (*config.experts, config.unconditional)
    names = {rest if kind == "zoo" and rest in models.MODELS else None for kind, _, rest in (spec.partition(":") for spec in specs)}
    if len(names) > 1:
        raise ValueError(
            f"experts {list(specs)} model different things, wanted experts of one particle system, or none: they share no space."
        )
    return names.pop() if names else None


def check_expert(spec: str) -> tuple[str, str]:
    """Return kind and rest of a string that names an expert, having looked whether there is such a thing, without loading it.

    Raises:
        ValueError: for an unknown kind or name (the closest one is given), a label that does not exist, a file that is not there.
    """
    kind, _, rest = spec.partition(":")
    if kind not in ("zoo", "kernel", "python") or not rest:
        raise ValueError(f"expert {spec!r}: wanted zoo:NAME, zoo:NAME:LABEL, kernel:FILE:WIDTH or python:MODULE:NAME.")
    if kind == "zoo":
        name, _, label = rest.partition(":")
        if name not in zoo.names():
            raise ValueError(unknown("expert", name, zoo.names()))
        if label and not (name in zoo.ENTRIES and zoo.ENTRIES[name].conditional):
            raise ValueError(f"expert {spec!r}: this expert takes no label; leave ':{label}' away, or use a class-conditional one.")
        if label and (not label.isdecimal() or int(label) > zoo.NO_CLASS):
            raise ValueError(
                f"expert {spec!r}: label {label!r}, wanted a class number from 0 to {zoo.NO_CLASS} ({zoo.NO_CLASS}: any class)."
            )
    if kind == "kernel":
        file, _, width = rest.rpartition(":")
        if not file or not re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", width) or not 0 < float(width) < math.inf:
            raise ValueError(
                f"expert {spec!r}: kernel width {width!r} is not a number above 0, wanted kernel:FILE:WIDTH, e.g. kernel:points.npy:0.3."
            )
        if not Path(file).is_file():
            raise ValueError(f"expert {spec!r}: cannot read {file!r}: no such file.")
    if kind == "python" and not all(rest.partition(":")):
        raise ValueError(f"expert {spec!r}: wanted python:MODULE:NAME, e.g. python:my_package.models:cat.")
    return kind, rest


def load_expert(spec: str, device: torch.device | str = "cpu") -> Expert:
    """Return the expert that a string names; see `SampleConfig.experts`.

    Raises:
        ValueError: as `check_expert`, and for a file or module that does not hold what it should.
    """
    kind, rest = check_expert(spec)
    if kind == "zoo":
        name, _, label = rest.partition(":")
        expert = zoo.load(name, device=device)
        return _labelled(expert, spec, label) if label else expert
    return _from_file(spec, rest, device) if kind == "kernel" else _from_python(spec, rest)


def composition(config: SampleConfig, device: torch.device | str = "cpu") -> Sampler:
    """Return the sampler that a configuration describes."""
    networks: dict[str, Expert] = {}

    def load(spec: str) -> Expert:
        """A network is loaded once, so that its conditions are evaluated together."""
        kind, name, label = (*spec.split(":", 2), "")[:3]
        whole = f"{kind}:{name}" if kind == "zoo" else spec
        if whole not in networks:
            networks[whole] = load_expert(whole, device)
        return _labelled(networks[whole], spec, label) if kind == "zoo" and label else networks[whole]

    return _composed(config, load)


def noise_levels(config: SampleConfig) -> Tensor:
    """Return the grid that a configuration describes."""
    size = sizes(config)
    return _GRIDS[size.grid](size.steps, size.sigma_min, size.sigma_max)


def _composed(config: SampleConfig, load: Callable[[str], Expert]) -> Sampler:
    experts = [load(spec) for spec in config.experts]
    base = None if config.unconditional is None else load(config.unconditional)
    if config.op != "product":
        guidance = None if base is None else Guidance(base, config.guidance)
        bias = config.bias or None
        if config.op == "or":
            return either(experts, temperature=config.sharpness, bias=bias, guidance=guidance, deterministic=config.deterministic)
        if config.op == "and":
            return both(
                experts,
                guidance=guidance,
                ridge=config.ridge,
                feedback=config.feedback,
                bias=bias,
                deterministic=config.deterministic,
            )
        return average(experts, guidance=guidance, deterministic=config.deterministic)
    betas = config.beta * len(experts) if len(config.beta) == 1 else config.beta or (1.0,) * len(experts)
    system, power = system_of(config), 1.0
    model = None if system is None else models.find(system)
    if config.temperature is not None:
        power = (1.0 if model is None else model.temperature) / config.temperature
    target = guided(experts, betas, base, config.guidance) ** power
    total = sum(target.exponents(sizes(config).sigma_max))
    if model is None:
        zeta, mixing = math.sqrt(2) if total > len(experts) else 1.0, 0
    else:
        zeta, mixing = total**-0.5 if total > 0 else 1.0, int(total > 1 and config.correct)  # a sum that is not positive is refused later
    width = 0.3 if config.kernel_width is None else config.kernel_width

    def step_size(sigma: float) -> float:
        if model is not None and config.kernel_width is None:
            return model.langevin_step(sigma, total)
        return min(sigma**2 + width**2, 1.0) / 10

    return feynman_kac(
        target,
        zeta=zeta if config.zeta is None else config.zeta,
        correct=config.correct,
        ess_below=config.ess_below,
        kernel_steps=mixing if config.kernel_steps is None else config.kernel_steps,
        step_size=step_size,
        clip=config.clip,
    )


def guided(experts: list[Expert], betas: tuple[float, ...], unconditional: Expert | None, w: float) -> Target:
    """Return ``prod q_i^{beta_i}``, or with an unconditional model u ``u prod (q_i / u)^{w beta_i}``."""
    if unconditional is None:
        target = Target.of(experts[0]) ** betas[0]
        for expert, beta in zip(experts[1:], betas[1:], strict=True):
            target = target * expert**beta
        return target
    target = Target.of(unconditional)
    for expert, beta in zip(experts, betas, strict=True):
        target = target * (expert / unconditional) ** (w * beta)
    return target


def run(config: SampleConfig, run: Run) -> Report:
    """Sample into the run directory; the same call goes on where an interrupted one stopped.

    Writes ``sample.safetensors`` (the last state: particles, weights, companions) and ``picked.safetensors`` (one sample of each run).
    """
    sampler = composition(config, run.device)
    levels = noise_levels(config)
    rng = Streams(config.seed, run.device)
    functions: dict[str, Callable] = {
        "ess": lambda state: state.pop.ess(),
        "log_z": lambda state: state.pop.log_normalizer(),
        "ancestors": lambda state: distinct(state.pop.aux["ancestor"]),
    }
    size = sizes(config)
    stage = simulation(run, "sample", rng, last=size.steps, every=config.checkpoint_every, trace=None, **functions)
    out = sample(sampler, levels, particles=size.particles, runs=size.runs, rng=rng, **stage)
    picked = out.pick(rng)
    run.save("picked", {"x": picked}, {"what": "one sample of each run, drawn by its weights"})
    return _report(config, run, sampler, out, picked)


def _report(config: SampleConfig, run: Run, sampler: Sampler, out: Sample, picked: Tensor) -> Report:
    rows = run.metrics.rows("sample")
    sigma = [math.sqrt(row["t"]) for row in rows]
    ess = torch.tensor([row["ess"] for row in rows])
    ancestors = torch.tensor([row["ancestors"] for row in rows]).double()
    pop = out.population
    resamples, size = sampler.resamples, sizes(config)
    last, alive = pop.ess(), distinct(pop.aux["ancestor"])
    columns = ("run", "effective particles", "distinct ancestors")
    cells = [(f"{r}", float(last[r]), int(alive[r])) for r in range(size.runs)]
    if sampler.resamples:
        columns, cells = (*columns, "log Z"), [(*row, float(z)) for row, z in zip(cells, pop.log_normalizer(), strict=True)]
    note = f"{size.particles} particles a run, {sampler.evaluations * size.steps} expert evaluations a particle."
    if "clipped" in pop.aux:
        note += f" Weight increments clipped: {int(pop.aux['clipped'].sum())}; clipped weights are biased."
    if resamples and int(alive.min()) < FEW <= size.particles:
        note += (
            f" A run descends from only {int(alive.min())} of its initial particles: the effective number overstates what its samples tell."
        )
    diagnostics: tuple[Table | Figure, ...] = (Table("Runs", columns, tuple(cells[:16]), note=note),)
    if resamples:
        curve = figures.lines(
            sigma,
            {"effective particles": ess.mean(1), "distinct ancestors": ancestors.mean(1)},
            x_label="noise level sigma",
            y_label="particles (mean over runs)",
            log_x=True,
            downwards=True,
        )
        diagnostics = (Figure(curve, "Effective sample size and surviving ancestors as the noise falls."), *diagnostics)
    names, system = ", ".join(config.experts), system_of(config)
    picture, results, shown = _picture(picked), {}, "One sample of each run is shown, drawn by its weights."
    if system is not None:
        temperature = models.find(system).temperature / sampler.precision(size.sigma_max)
        picture, more, results = against_truth(system, temperature, pop, zoo.DATA)
        shown = f"Temperature {temperature:g}, learned at {models.find(system).temperature:g}."
        if config.op == "product":
            shown += f" Langevin steps a level: {sampler.evaluations // len(sampler.experts) - 1}."
        diagnostics = (*more, *diagnostics)
    return Report(
        title=f"{config.op} of {names}",
        summary=f"{size.runs} independent runs of {size.particles} particles, {size.steps} steps from noise level {size.sigma_max:g} to "
        f"{size.sigma_min:g}. {shown}",
        figure=picture,
        diagnostics=diagnostics,
        results={
            "effective_particles": Measured(float(last.mean())),
            "distinct_ancestors": Measured(float(alive.double().mean())),
            **results,
        },
        files={"sample.safetensors": "all particles x, log weights log_w, companions", "picked.safetensors": "one sample of each run"},
    )


def _picture(picked: Tensor) -> Figure | None:
    event = picked.shape[1:]
    if len(event) == 3 and event[0] in (1, 3):
        return Figure(figures.image_grid({"samples": picked}, limits=(-1.0, 1.0)), "One sample of each run.")
    flat = picked.flatten(1).double()
    if flat.shape[1] == 1:
        return Figure(figures.histogram({"samples": flat[:, 0]}, x_label="x"), "One sample of each run.")
    return Figure(figures.scatter({"samples": flat[:, :2]}, x_label="x 1", y_label="x 2"), "One sample of each run, first two coordinates.")


def _unloaded(y: Tensor, sigma: float, cond: Tensor | None) -> Tensor:
    """Stand in for the model of an expert while a configuration is checked."""
    raise AssertionError("not loaded")


def _labelled(expert: Expert, spec: str, label: str) -> Expert:
    assert expert.cond is not None
    return expert.given(torch.full_like(expert.cond, int(label)), name=spec.removeprefix("zoo:"))


def _from_file(spec: str, rest: str, device: torch.device | str) -> Expert:
    import numpy

    file, _, width = rest.rpartition(":")
    try:
        if file.endswith(".csv"):
            data = numpy.loadtxt(file, delimiter=",", ndmin=2)
        else:
            data = numpy.load(file, allow_pickle=False)
            data = data if isinstance(data, numpy.ndarray) else data[data.files[0]]
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"expert {spec!r}: cannot read {file!r} as .npy, .npz or .csv: {error}.") from error
    points = torch.as_tensor(data, dtype=torch.float64, device=device)
    if points.ndim < 2 or not points.numel() or not bool(points.isfinite().all()):
        raise ValueError(
            f"expert {spec!r}: the array has shape {tuple(points.shape)}, wanted finite samples [N, *event] with at least two axes."
        )
    return kernel_mixture(points, float(width), name=Path(file).stem)


def _from_python(spec: str, rest: str) -> Expert:
    """Import an expert; modules of the current folder are found as well, and after all others."""
    module, _, name = rest.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        expert = getattr(importlib.import_module(module), name)
    except Exception as error:
        why = error if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"expert {spec!r}: cannot import it: {why}. Wanted python:MODULE:NAME of a module on the path.") from error
    if not isinstance(expert, Expert):
        raise ValueError(f"expert {spec!r} is a {type(expert).__name__}, wanted a popflow.compose.Expert.")
    return expert
