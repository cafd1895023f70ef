"""The job of ``popflow sample``: experts or pipelines, composed, sampled into a run directory, reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from popflow.compose.composition import composition, guided_product, settings_of
from popflow.compose.config import SampleConfig
from popflow.compose.discretisation import auto_levels
from popflow.compose.expert_loading import load_experts, recipe_of
from popflow.compose.report import report
from popflow.compose.sampler import Sample, Sampler, check_mass, diagnostics, sample
from popflow.compose.schedule import Grid, geometric, karras, linear
from popflow.compose.zoo.catalogue import data_step
from popflow.core import Streams, StreamsOfRuns
from popflow.runs import ConfigError, Report, Run, simulation

_GRIDS: dict[str, Grid] = {"karras": karras, "linear": linear, "geometric": geometric}


@dataclass(frozen=True, eq=False)
class Setup:
    """What will be sampled: arguments of `popflow.compose.sample`, and ``report(run, out, picked)``."""

    sampler: Sampler
    levels: Tensor
    particles: int
    runs: int
    report: Callable[[Run, Sample, Tensor], Report]
    around: Tensor | None = None


def run(config: SampleConfig, run: Run) -> Report:
    """Sample into the run directory; called again, an interrupted run resumes.

    Writes ``sample.safetensors`` (the last state: particles, weights, companions) and ``picked.safetensors`` (one sample of each run), and for pipelines
    ``image-R.png`` for each run and ``grid.png``.
    """
    try:
        setup = of_pipelines(config, run.device) if config.diffusers else of_experts(config, run.device)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    trace = diagnostics()
    rng = StreamsOfRuns.of(config.seed, setup.runs, run.device) if config.diffusers else Streams(config.seed, run.device)
    stage = simulation(run, "sample", rng, last=len(setup.levels) - 1, every=config.checkpoint_every, trace=trace)
    out = sample(
        setup.sampler, setup.levels, particles=setup.particles, runs=setup.runs, rng=rng, around=setup.around, trace=trace, **stage
    )
    picked = out.pick(rng)
    run.save("picked", {"x": picked}, {"what": "one sample of each run, drawn by weight"})
    return setup.report(run, out, picked)


def of_experts(config: SampleConfig, device: torch.device | str = "cpu") -> Setup:
    """Load experts and compose them; what the configuration leaves open follows their recipe.

    Raises:
        ValueError: for an expert that cannot be loaded, and settings that make no sampler.
    """
    recipe = recipe_of(config.models)
    given = {name: value for name in vars(recipe.sizes) if (value := getattr(config, name)) is not None}
    size = replace(recipe.sizes, **given)
    loaded, count = load_experts(config.models, device), len(config.experts)
    place = partial(auto_levels, loaded) if size.grid == "auto" else _GRIDS[size.grid]
    levels = place(size.steps, size.sigma_min, size.sigma_max)
    guided = {"unconditional": loaded[count:], "guidance": 1.0 if config.guidance is None else config.guidance}
    settings = vars(config) | {"temperature": config.sharpness, "bias": config.bias or None}
    if config.op == "product":
        power = 1.0 if config.temperature is None else recipe.temperature / config.temperature
        product = {"exponents": config.beta or None, "power": power}
        total = sum(guided_product(loaded[:count], **product, **guided).exponents(size.sigma_max))
        zeta = recipe.zeta(total, count) if config.zeta is None else config.zeta
        kernel_steps = recipe.langevin_steps(total) * config.correct if config.kernel_steps is None else config.kernel_steps
        width = config.kernel_width
        if width is not None and not kernel_steps:
            raise ValueError(f"kernel_width={width} has no effect without Langevin steps: give kernel_steps as well, 5 is usual.")

        def step_size(sigma: float) -> float:
            return recipe.langevin_step(sigma, total) if width is None else data_step(sigma, width)

        settings |= product | {"zeta": zeta, "kernel_steps": kernel_steps, "step_size": step_size}
    read = {name: settings[name] for name in settings_of(config.op) if name in settings}
    sampler = composition(loaded[:count], config.op, **guided, **read)
    sampler.experts[0].home.check_levels(levels)
    check_mass(sampler, levels)
    return Setup(sampler, levels, size.particles, size.runs, partial(report, config, recipe, sampler, levels))


def of_pipelines(config: SampleConfig, device: torch.device | str = "cpu") -> Setup:
    """Load pipelines of diffusers and plan what is sampled; see `popflow.compose.diffusers.ComposedPipeline.plan`."""
    from popflow.compose.diffusers import ComposedPipeline
    from popflow.compose.diffusers.configured import planned
    from popflow.compose.diffusers.report import report as report_images

    particles, runs, dtype = config.particles or 4, config.runs or 2, getattr(torch, config.precision)
    pipe = ComposedPipeline.from_pretrained(*config.diffusers, dtype=dtype, device=device, chunk=config.chunk)
    plan = planned(config, pipe, particles)
    return Setup(plan.sampler, plan.levels, particles, runs, partial(report_images, config, pipe, plan), plan.around)
