"""`popflow search`: binary networks by quantum hypernetwork, with classical search beside it."""

from __future__ import annotations

from typing import Annotated

import typer

from popflow.cli.job import run_job, settings
from popflow.cli.options import AsJson, ConfigFile, Device, Out, Seed, Where


def search(
    *,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="digits:A,B, digits:A,B:SIDE, gaussians:POINTS or mnist:A,B:FOLDER.")
    ] = None,
    net: Annotated[str | None, typer.Option("--net", help="logistic, mlp:WIDTH, or mlp:NARROWEST-WIDEST to choose the width.")] = None,
    activation: Annotated[
        list[str] | None, typer.Option("--activation", help="relu, sigmoid or tanh; once for each to choose from.")
    ] = None,
    alphabet: Annotated[
        list[str] | None, typer.Option("--alphabet", metavar="LOW,HIGH", help="Values of weights; once for each to choose from.")
    ] = None,
    loss: Annotated[str | None, typer.Option("--loss", help="cross-entropy or squared.")] = None,
    depth: Annotated[int | None, typer.Option("--depth", help="Layers of the circuit; 1 is a product state.")] = None,
    restarts: Annotated[int | None, typer.Option("--restarts", help="Trainings from random angles.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Adam steps, or L-BFGS iterations at most.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate of Adam.")] = None,
    optimiser: Annotated[str | None, typer.Option("--optimiser", help="adam or lbfgs.")] = None,
    objective: Annotated[str | None, typer.Option("--objective", help="energy, tail or free-energy.")] = None,
    entangler: Annotated[str | None, typer.Option("--entangler", help="brick, linear, ring or all.")] = None,
    gate: Annotated[str | None, typer.Option("--gate", help="cx or cz.")] = None,
    phases: Annotated[bool | None, typer.Option("--phases/--real", help="With R_z, or with real amplitudes (faster).")] = None,
    curve: Annotated[list[int] | None, typer.Option("--curve", metavar="DEPTH", help="Depth of the depth curve; once for each.")] = None,
    calls: Annotated[int | None, typer.Option("--calls", help="Cost calls of each classical run.")] = None,
    runs: Annotated[int | None, typer.Option("--runs", help="Classical runs.")] = None,
    seed: Seed = None,
    out: Out = None,
    config: ConfigFile = None,
    device: Where = Device.auto,
    as_json: AsJson = False,
) -> None:
    """Find binary networks with a quantum hypernetwork, and compare with the exact optimum and with classical search.

    `popflow search --data digits:3,7 --net mlp:2 --depth 6 --restarts 64`
    """
    from popflow.registry import method

    given = {
        "data": data,
        "net": net,
        "activation": activation,
        "alphabet": alphabet,
        "loss": loss,
        "depth": depth,
        "restarts": restarts,
        "steps": steps,
        "lr": lr,
        "optimiser": optimiser,
        "objective": objective,
        "entangler": entangler,
        "gate": gate,
        "phases": phases,
        "curve": curve,
        "calls": calls,
        "runs": runs,
        "seed": seed,
    }
    values = settings(given, config, "search")
    found = method("qhn")
    run_job("search", found.load("run"), found.load("config"), values, cite=found.cite, out=out, device=device, as_json=as_json)
