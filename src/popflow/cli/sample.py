"""`popflow sample`: compose, anneal and guide pretrained diffusion models. Options become the fields of the configuration."""

from __future__ import annotations

from typing import Annotated

import typer

from popflow.cli.job import run_job, settings
from popflow.cli.options import AsJson, ConfigFile, Device, Out, Seed, Where

_SUPERPOSITIONS = ("and", "or", "average")


def sample(
    *,
    expert: Annotated[
        list[str] | None,
        typer.Option("--expert", metavar="MODEL", help="A model, such as zoo:digits-even; once for each, in the order of --beta."),
    ] = None,
    op: Annotated[
        str | None, typer.Option("--op", help="product, power, cfg (Feynman-Kac correctors); and, or, average (superposition).")
    ] = None,
    beta: Annotated[
        list[float] | None, typer.Option("--beta", help="Exponent of a model's density; once for each, or once for all.")
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Below 1 sharpens, above 1 flattens the whole target.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Weight of classifier-free guidance.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="Condition of a model; once for each, or once for all.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Noise levels.")] = None,
    particles: Annotated[int | None, typer.Option("--particles", help="Particles of a run; they compete with each other.")] = None,
    runs: Annotated[int | None, typer.Option("--runs", help="Independent populations.")] = None,
    zeta: Annotated[float | None, typer.Option("--zeta", help="Noise scale; 1 is the reverse diffusion.")] = None,
    kernel_steps: Annotated[int | None, typer.Option("--kernel-steps", help="Langevin steps at each noise level.")] = None,
    seed: Seed = None,
    out: Out = None,
    config: ConfigFile = None,
    device: Where = Device.auto,
    as_json: AsJson = False,
) -> None:
    """Sample from compositions of pretrained diffusion models.

    `popflow sample --expert zoo:digits-even --expert zoo:digits-prime --op product`
    """
    from popflow.registry import method

    given = {
        "experts": expert,
        "op": op,
        "beta": beta,
        "temperature": temperature,
        "guidance": guidance,
        "labels": label,
        "steps": steps,
        "particles": particles,
        "runs": runs,
        "zeta": zeta,
        "kernel_steps": kernel_steps,
        "seed": seed,
    }
    values = settings(given, config, "sample")
    found = method("superdiff" if values.get("op") in _SUPERPOSITIONS else "fkc")
    run_job("sample", found.load("run"), found.load("config"), values, cite=found.cite, out=out, device=device, as_json=as_json)
