"""`popflow sample`: compose, anneal and guide pretrained diffusion models. Options become the fields of the configuration."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from popflow.cli.job import run_job, settings
from popflow.cli.options import AsJson, ConfigFile, Device, Out, Seed, Where

_SUPERPOSITIONS = ("and", "or", "average")


def sample(
    *,
    expert: Annotated[
        list[str] | None,
        typer.Option(
            "--expert",
            metavar="MODEL",
            help="zoo:NAME, zoo:NAME:LABEL, kernel:FILE:WIDTH (the rows of a .npy, .npz or .csv) or python:MODULE:NAME; once for each model.",
        ),
    ] = None,
    diffusers: Annotated[
        list[str] | None,
        typer.Option(
            "--diffusers", metavar="DIR", help="Folder (or hub name) of a pipeline of diffusers; once for each. Goes with --prompt."
        ),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text (or class number) to compose; once for each.")] = None,
    op: Annotated[str | None, typer.Option("--op", help="product (Feynman-Kac correctors); and, or, average (SuperDiff).")] = None,
    beta: Annotated[list[float] | None, typer.Option("--beta", help="Exponent of a model; once for each, or once for all.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", help="Below 1 sharpens, above 1 flattens the product; of zoo:lj13 and zoo:dw4 the temperature itself."
        ),
    ] = None,
    unconditional: Annotated[str | None, typer.Option("--unconditional", metavar="MODEL", help="Model to guide away from.")] = None,
    negative_prompt: Annotated[str | None, typer.Option("--negative-prompt", help="Text to guide away from; the empty one.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", "--cfg", help="Guidance weight; 1 is none.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps from the first noise level to the last.")] = None,
    sigma_min: Annotated[float | None, typer.Option("--sigma-min", help="Last noise level, in units of the data.")] = None,
    sigma_max: Annotated[float | None, typer.Option("--sigma-max", help="First noise level.")] = None,
    grid: Annotated[str | None, typer.Option("--grid", help="karras, linear or geometric.")] = None,
    particles: Annotated[int | None, typer.Option("--particles", help="Particles of a run; they compete with each other.")] = None,
    runs: Annotated[int | None, typer.Option("--runs", help="Independent runs; each gives one sample in the end.")] = None,
    zeta: Annotated[float | None, typer.Option("--zeta", help="Noise scale; 1 is the reverse diffusion.")] = None,
    correct: Annotated[
        bool | None, typer.Option("--correct/--naive", help="Weigh and resample, or follow the combined score alone.")
    ] = None,
    kernel_steps: Annotated[int | None, typer.Option("--kernel-steps", help="Langevin steps at each noise level.")] = None,
    kernel_width: Annotated[
        float | None, typer.Option("--kernel-width", help="Least standard deviation of the data, for their size.")
    ] = None,
    ess_below: Annotated[float | None, typer.Option("--ess-below", help="Resample below this share of effective particles.")] = None,
    clip: Annotated[float | None, typer.Option("--clip", help="Bound on weight increments in nats; biased, counted.")] = None,
    sharpness: Annotated[
        float | None, typer.Option("--sharpness", help="OR: 1 is the exact mixture, 1e6 the likeliest model alone.")
    ] = None,
    bias: Annotated[list[float] | None, typer.Option("--bias", help="OR: log-share of a model; AND: wanted log-density.")] = None,
    ridge: Annotated[float | None, typer.Option("--ridge", help="AND: relative ridge.")] = None,
    feedback: Annotated[float | None, typer.Option("--feedback", help="AND: share of the present gap closed at each step.")] = None,
    deterministic: Annotated[bool | None, typer.Option("--ode/--sde", help="AND, OR, average: without or with noise.")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Of the images of a pipeline, in pixels.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Of the images of a pipeline, in pixels.")] = None,
    image: Annotated[str | None, typer.Option("--image", metavar="FILE", help="Image to edit with a pipeline.")] = None,
    strength: Annotated[float | None, typer.Option("--strength", help="Share of the steps taken from it; 1 ignores it.")] = None,
    mask_image: Annotated[str | None, typer.Option("--mask-image", metavar="FILE", help="White where the image is painted anew.")] = None,
    noise_above: Annotated[float | None, typer.Option("--noise-above", help="Pipelines: no noise below this level of sigma.")] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="Pipelines: float32, float16 or bfloat16 networks.")] = None,
    chunk: Annotated[int | None, typer.Option("--chunk", help="Pipelines: rows in one call of a network.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option("--checkpoint-every", help="Steps between two checkpoints.")] = None,
    seed: Seed = None,
    out: Out = None,
    config: ConfigFile = None,
    device: Where = Device.auto,
    as_json: AsJson = False,
) -> None:
    """Sample from compositions of pretrained diffusion models.

    `popflow sample --expert zoo:digits-even --expert zoo:digits-prime --op product`

    `popflow sample --expert zoo:lj13 --temperature 0.8`

    `popflow sample --diffusers DIR --prompt 'a cat' --prompt 'a dog' --op and`
    """
    from popflow.registry import method

    given = {
        "experts": expert,
        "diffusers": diffusers,
        "prompts": prompt,
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
        "image": image,
        "strength": strength,
        "mask_image": mask_image,
        "noise_above": noise_above,
        "precision": precision,
        "chunk": chunk,
        "op": op,
        "beta": beta,
        "temperature": temperature,
        "unconditional": unconditional,
        "guidance": guidance,
        "steps": steps,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "grid": grid,
        "particles": particles,
        "runs": runs,
        "zeta": zeta,
        "correct": correct,
        "kernel_steps": kernel_steps,
        "kernel_width": kernel_width,
        "ess_below": ess_below,
        "clip": clip,
        "sharpness": sharpness,
        "bias": bias,
        "ridge": ridge,
        "feedback": feedback,
        "deterministic": deterministic,
        "checkpoint_every": checkpoint_every,
        "seed": seed,
    }
    values = settings(given, config, "sample")
    found = method("superdiff" if values.get("op") in _SUPERPOSITIONS else "fkc")
    if "diffusers" in values:
        from popflow.compose.diffusers.job import DiffusersConfig, run

        job: tuple[Any, type] = run, DiffusersConfig
    else:
        job = found.load("run"), found.load("config")
    run_job("sample", *job, values, cite=found.cite, out=out, device=device, as_json=as_json)
