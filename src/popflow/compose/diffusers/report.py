"""The report of ``popflow sample --diffusers``: images of the runs, and weights, ancestors and densities of all particles."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from torch import Tensor

from popflow.compose.config import SampleConfig
from popflow.compose.diffusers.pipeline import ComposedPipeline
from popflow.compose.diffusers.plan import Plan
from popflow.compose.report import number, survival
from popflow.compose.sampler import Sample
from popflow.core.checkpoint import write_atomic
from popflow.core.metrics import distinct_ancestors
from popflow.runs import Figure, Measured, Report, Run, Table, figures

_SHOWN = 64


def report(config: SampleConfig, pipe: ComposedPipeline, plan: Plan, run: Run, out: Sample, picked: Tensor) -> Report:
    """Write ``image-R.png`` for each run and ``grid.png``, and report them; ``picked`` holds latents of one sample of each run."""
    runs, particles = out.x.shape[:2]
    images, steps = pipe.images(picked, plan.latents), len(plan.levels) - 1
    for r, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_atomic(run.path / f"image-{r}.png", buffer.getvalue())
    groups = {"one image of each run": _tensors(images)}
    if 1 < particles <= _SHOWN / runs:
        groups |= {f"run {r}: all particles": _tensors(pipe.images(out.x[r], plan.latents)) for r in range(runs)}
    grid = figures.image_grid(groups, limits=(0.0, 1.0))
    write_atomic(run.path / "grid.png", base64.b64decode(grid.partition(",")[2]))
    names = [expert.name for expert in plan.experts]
    what = f"{config.op} of {', '.join(names)}" if len(names) > 1 else names[0]
    return Report(
        title=what,
        summary=f"{number(runs, 'independent run')} of {number(particles, 'particle')}, {number(steps, 'step')} from sigma {float(plan.levels[0]):g} to 0. "
        f"One image of each run, drawn by weight. Pipelines: {', '.join(config.diffusers)}.",
        figure=Figure(grid, "One image of each run, and all particles of each.", f"Images: {what}"),
        comparison=(_particles(plan, out, names, steps),),
        diagnostics=(survival(run.metrics.rows("sample")),) if particles > 1 else (),
        results={
            "effective_particles": Measured(float(out.population.ess().mean())),
            "distinct_ancestors": Measured(float(distinct_ancestors(out.population.aux["ancestor"]).double().mean())),
        },
        files={
            "grid.png": "one image of each run, and all particles",
            **{f"image-{r}.png": f"the image of run {r}" for r in range(runs)},
            "sample.safetensors": "all particles as latents x, log weights log_w, companions",
            "picked.safetensors": "latents of the images",
        },
    )


def _particles(plan: Plan, out: Sample, names: list[str], steps: int) -> Table:
    pop, (runs, particles) = out.population, out.x.shape[:2]
    tracked = {"log q": plan.log_densities(pop), "kappa": pop.aux.get("kappa")}
    shown = {label: values for label, values in tracked.items() if values is not None}
    weights = pop.weights()
    cells = [
        (
            f"{r}",
            k,
            float(weights[r, k]),
            int(pop.aux["ancestor"][r, k]),
            *(float(value) for each in shown.values() for value in each[r, k]),
        )
        for r in range(runs)
        for k in range(particles)
    ]
    return Table(
        "Particles",
        ("run", "particle", "weight", "ancestor", *(f"{label}({name})" for label in shown for name in names)),
        tuple(cells[:_SHOWN]),
        f"{plan.sampler.evaluations * steps} network evaluations per particle. Log-densities are known up to a constant shared by the prompts.",
    )


def _tensors(images: list[Any]) -> Tensor:
    """PIL images as ``[n, C, H, W]`` in [0, 1]."""
    import numpy

    arrays = [torch.from_numpy(numpy.asarray(image).copy()).float() / 255 for image in images]
    return torch.stack([one.unsqueeze(0) if one.ndim == 2 else one.permute(2, 0, 1) for one in arrays])
