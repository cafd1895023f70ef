"""`popflow flow`: population dynamics from snapshots in an AnnData file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from popflow.cli.job import run_job, settings
from popflow.cli.options import AsJson, ConfigFile, Device, Out, Seed, Where


def flow(
    *,
    cells: Annotated[Path | None, typer.Argument(metavar="CELLS", help="AnnData file (.h5ad); it is not changed.")] = None,
    time: Annotated[str | None, typer.Option("--time", metavar="KEY", help="Column of obs with the time of each cell.")] = None,
    rep: Annotated[str | None, typer.Option("--rep", metavar="KEY", help="Key of obsm: the coordinates.", show_default="X_pca")] = None,
    dims: Annotated[int | None, typer.Option("--dims", help="Leading coordinates that are used.", show_default="5")] = None,
    scale: Annotated[str | None, typer.Option("--scale", help="whiten, global or none; fitted without held-out cells.")] = None,
    lagrangian: Annotated[str | None, typer.Option("--lagrangian", help="transport, unbalanced (growth) or bridge (noise).")] = None,
    lam: Annotated[float | None, typer.Option("--lam", help="Price of transport against growth, one over a length squared.")] = None,
    noise: Annotated[float | None, typer.Option("--noise", help="Of a bridge, a length per square root of time.")] = None,
    masses: Annotated[str | None, typer.Option("--masses", help="equal, or counts: total mass follows the number of cells.")] = None,
    acceleration: Annotated[
        bool | None, typer.Option("--acceleration/--no-acceleration", help="Accelerate as the means of the snapshots do.")
    ] = None,
    velocity: Annotated[str | None, typer.Option("--velocity", metavar="KEY", help="Key of obsm with RNA velocity in --rep.")] = None,
    smooth: Annotated[
        bool | None, typer.Option("--smooth/--no-smooth", help="Let cells go on from snapshot to snapshot as they came.")
    ] = None,
    bandwidth: Annotated[float | None, typer.Option("--bandwidth", help="Length over which velocities are averaged.")] = None,
    strength: Annotated[float | None, typer.Option("--strength", help="Factor on the velocities.")] = None,
    hold_out: Annotated[
        list[float] | None, typer.Option("--hold-out", metavar="TIME", help="A time that the fit does not see; once for each.")
    ] = None,
    types: Annotated[str | None, typer.Option("--types", metavar="KEY", help="Column of obs with cell types: fates, growth.")] = None,
    baseline: Annotated[bool | None, typer.Option("--baseline/--no-baseline", help="Score flow matching beside it.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Training steps.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Hidden width of the networks.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    seed: Seed = None,
    out: Out = None,
    config: ConfigFile = None,
    device: Where = Device.auto,
    as_json: AsJson = False,
) -> None:
    """Learn how a population moves, grows and spreads between snapshots, and predict a time that was held out.

    `popflow flow cells.h5ad --time day --rep X_pca --dims 5 --lagrangian unbalanced --hold-out 2`
    """
    from popflow.registry import method

    given = {
        "cells": None if cells is None else str(cells),
        "time": time,
        "rep": rep,
        "dims": dims,
        "scale": scale,
        "lagrangian": lagrangian,
        "lam": lam,
        "noise": noise,
        "masses": masses,
        "acceleration": acceleration,
        "velocity": velocity,
        "smooth": smooth,
        "bandwidth": bandwidth,
        "strength": strength,
        "hold_out": hold_out,
        "types": types,
        "baseline": baseline,
        "steps": steps,
        "width": width,
        "lr": lr,
        "seed": seed,
    }
    values = settings(given, config, "flow")
    found = method("wlf")
    run_job("flow", found.load("run"), found.load("config"), values, cite=found.cite, out=out, device=device, as_json=as_json)
