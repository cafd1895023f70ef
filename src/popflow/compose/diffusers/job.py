"""The job behind ``popflow sample --diffusers``: pipelines by folder, prompts by text, images and their weights in a run directory."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from popflow.compose.diffusers.pipeline import ComposedPipeline, Plan
from popflow.compose.sampler import Sample, distinct, sample
from popflow.core import Streams
from popflow.core.checkpoint import write_atomic
from popflow.runs import Figure, Measured, Report, Run, Table, figures, simulation

_SHOWN = 64
_PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class DiffusersConfig:
    """What ``popflow sample --diffusers`` takes; every field is an option, explained at `ComposedPipeline.plan`.

    Attributes:
        diffusers: Folders (or names on the hub) of the pipelines.
        prompts: Texts, or class numbers of class-conditional networks.
        op: ``product``, ``and``, ``or``, ``average``.
        negative_prompt: What is guided away from.
        beta: Exponents of a product.
        guidance: Guidance weight; the pipeline's own default when None.
        steps: Steps.
        particles: Particles of one run.
        runs: Independent runs; each gives one image.
        height: Of the images, in pixels.
        width: Of the images.
        image: File of an image to edit.
        strength: Share of the steps that are taken from it.
        mask_image: File of its mask, white where it is painted anew.
        noise_above: Level of sigma below which no noise is drawn.
        zeta: Noise scale of a product.
        kernel_steps: Langevin steps at each level of a product.
        ess_below: Resample below this share of effective particles.
        precision: Of the networks.
        chunk: Rows in one call of a network.
        checkpoint_every: Levels between two checkpoints.
        seed: Of the random streams.
    """

    diffusers: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    op: Literal["product", "and", "or", "average"] = "product"
    negative_prompt: str | None = None
    beta: tuple[float, ...] = ()
    guidance: float | None = None
    steps: int = 50
    particles: int = 4
    runs: int = 2
    height: int | None = None
    width: int | None = None
    image: str | None = None
    strength: float = 1.0
    mask_image: str | None = None
    noise_above: float = 0.3
    zeta: float = 1.0
    kernel_steps: int = 0
    ess_below: float = 0.5
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    chunk: int | None = None
    checkpoint_every: int = 25
    seed: int = 0

    def __post_init__(self):
        if self.steps < 1 or self.particles < 1 or self.runs < 1:
            raise ValueError(f"steps={self.steps}, particles={self.particles}, runs={self.runs}, wanted at least one of each.")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength={self.strength}, wanted a share of the steps in (0, 1]: 0.6 is usual, 1 starts from pure noise.")
        if self.image is None and (self.mask_image is not None or self.strength != 1):
            seen = f"strength={self.strength}" if self.mask_image is None else f"mask_image={self.mask_image!r}"
            raise ValueError(
                f"{seen} without an image, wanted one to edit: give image (--image FILE), or leave strength and mask_image out."
            )
        for name in ("image", "mask_image"):
            file = getattr(self, name)
            if file is not None and not Path(file).is_file():
                raise ValueError(f"{name}={file!r}: no such file.")


def run(config: DiffusersConfig, run: Run) -> Report:
    """Sample into the run directory; the same call goes on where an interrupted one stopped.

    Writes ``sample.safetensors`` (all particles as latents, weights, companions), ``picked.safetensors``, ``grid.png`` and one
    ``image-R.png`` for each run.
    """
    pipe = ComposedPipeline.from_pretrained(*config.diffusers, dtype=_PRECISIONS[config.precision], device=run.device, chunk=config.chunk)
    plan = planned(config, pipe)
    rng = Streams(config.seed, run.device)
    functions: dict[str, Callable] = {
        "ess": lambda state: state.pop.ess(),
        "ancestors": lambda state: distinct(state.pop.aux["ancestor"]),
    }
    stage = simulation(run, "sample", rng, last=len(plan.levels) - 1, every=config.checkpoint_every, trace=None, **functions)
    out = sample(
        plan.sampler,
        plan.levels,
        particles=config.particles,
        runs=config.runs,
        rng=rng,
        around=plan.around,
        **stage,
    )
    picked = out.pick(rng)
    run.save("picked", {"x": picked}, {"what": "latents of one sample of each run, drawn by its weights"})
    images = pipe.images(picked, plan.latents)
    for r, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_atomic(run.path / f"image-{r}.png", buffer.getvalue())
    groups = {"one image of each run": _tensors(images)}
    if config.particles > 1 and config.particles * config.runs <= _SHOWN:
        for r in range(config.runs):
            groups[f"run {r}: all particles"] = _tensors(pipe.images(out.x[r], plan.latents))
    grid = figures.image_grid(groups, limits=(0.0, 1.0))
    write_atomic(run.path / "grid.png", base64.b64decode(grid.partition(",")[2]))
    return _report(config, run, plan, out, grid)


def planned(config: DiffusersConfig, pipe: ComposedPipeline) -> Plan:
    """Return the plan that a configuration describes."""
    numbered = all(type(getattr(one, "unet", None)).__name__ == "UNet2DModel" for one in pipe.pipes)

    def read(text: str | None) -> str | int | None:
        return int(text) if numbered and text is not None and text.isdigit() else text

    prompts = [read(text) for text in config.prompts]
    return pipe.plan(
        [prompt for prompt in prompts if prompt is not None] or None,
        op=config.op,
        negative_prompt=read(config.negative_prompt),
        exponents=config.beta or None,
        num_inference_steps=config.steps,
        guidance_scale=config.guidance,
        height=config.height,
        width=config.width,
        image=_opened(config.image),
        strength=config.strength,
        mask_image=_opened(config.mask_image),
        noise_above=config.noise_above,
        correct=config.particles > 1,
        zeta=config.zeta,
        kernel_steps=config.kernel_steps,
        ess_below=config.ess_below,
    )


def _report(config: DiffusersConfig, run: Run, plan: Plan, out: Sample, grid: str) -> Report:
    rows, pop = run.metrics.rows("sample"), out.population
    weights, ess = pop.weights(), pop.ess()
    names = [expert.name for expert in plan.experts]
    columns = ["run", "particle", "weight", "ancestor"]
    tracked = {"log q": plan.log_densities(pop), "kappa": pop.aux.get("kappa")}
    there = {label: values for label, values in tracked.items() if values is not None}
    columns += [f"{label}({name})" for label in there for name in names]
    cells: list[tuple[Any, ...]] = []
    for r in range(config.runs):
        for k in range(config.particles):
            values = [float(value) for each in there.values() for value in each[r, k]]
            cells.append((f"{r}", k, float(weights[r, k]), int(pop.aux["ancestor"][r, k]), *values))
    curve = figures.lines(
        [max(math.sqrt(row["t"]), 1e-3) for row in rows],
        {
            "effective particles": torch.tensor([row["ess"] for row in rows]).mean(1),
            "distinct ancestors": torch.tensor([row["ancestors"] for row in rows]).double().mean(1),
        },
        x_label="noise level sigma",
        y_label="particles (mean over runs)",
        log_x=True,
        downwards=True,
    )
    what = f"{config.op} of {', '.join(names)}" if len(names) > 1 else names[0]
    count = plan.sampler.evaluations * (len(plan.levels) - 1)
    return Report(
        title=what,
        summary=f"{config.runs} independent runs of {config.particles} particles, {len(plan.levels) - 1} steps from sigma {float(plan.levels[0]):g} to 0. "
        f"One image of each run, drawn by its weights. Pipelines: {', '.join(config.diffusers)}.",
        figure=Figure(grid, "One image of each run, and all particles of each.", f"Images: {what}"),
        comparison=(
            Table(
                "Particles",
                tuple(columns),
                tuple(cells[:_SHOWN]),
                f"{count} network evaluations a particle. Log-densities are up to a constant that prompts share.",
            ),
        ),
        diagnostics=(Figure(curve, "Effective sample size and surviving ancestors as the noise falls."),),
        results={"effective_particles": Measured(float(ess.mean()))},
        files={
            "grid.png": "one image of each run, and all particles",
            **{f"image-{r}.png": f"the image of run {r}" for r in range(config.runs)},
            "sample.safetensors": "all particles as latents x, log weights log_w, companions",
            "picked.safetensors": "latents of the images",
        },
    )


def _tensors(images: list[Any]) -> Tensor:
    """PIL images as ``[n, C, H, W]`` in [0, 1]."""
    import numpy

    arrays = [torch.from_numpy(numpy.asarray(image).copy()).float() / 255 for image in images]
    return torch.stack([one.unsqueeze(0) if one.ndim == 2 else one.permute(2, 0, 1) for one in arrays])


def _opened(file: str | None) -> Any:
    if file is None:
        return None
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}. Fix: give a PNG or JPEG.") from error
