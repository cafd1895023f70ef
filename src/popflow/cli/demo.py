"""`popflow demo`: a job with a known answer, that needs no input."""

from __future__ import annotations

from typing import Annotated

import typer

from popflow.cli.job import run_job, settings
from popflow.cli.options import AsJson, ConfigFile, Device, Out, Seed, Where


def demo(
    method: Annotated[str, typer.Argument(metavar="[METHOD]", help="See `popflow methods`.")] = "fkc",
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller, within seconds; says less.")] = False,
    seed: Seed = None,
    out: Out = None,
    config: ConfigFile = None,
    device: Where = Device.auto,
    as_json: AsJson = False,
) -> None:
    """Run a method where the answer is known, and compare.

    The default shows digits that are even AND prime, composed at sampling time from two models that know only one of these.
    """
    from popflow.registry import UnknownMethodError
    from popflow.registry import method as find

    try:
        found = find(method)
    except UnknownMethodError as error:
        raise typer.BadParameter(str(error), param_hint="METHOD") from error
    job = f"demo {found.name}"
    values = settings({"seed": seed, "quick": quick or None}, config, job)
    run_job(
        job,
        found.load("demo"),
        found.load("demo_config"),
        values,
        cite=found.cite,
        out=out,
        device=device,
        as_json=as_json,
    )
