"""What every verb that runs a job does: settings to a configuration, a run directory, the job, what came out."""

from __future__ import annotations

import hashlib
import json
import shlex
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from popflow.cli.options import Device
from popflow.cli.output import ProgressLine, aligned, print_json

if TYPE_CHECKING:
    from popflow.runs import Report, Run


ARGUMENTS: ContextVar[tuple[str, ...]] = ContextVar("arguments")
"""The command line being carried out, for the report."""


def settings(given: Mapping[str, Any], file: Path | None, job: str) -> dict[str, Any]:
    """Merge the options that were given (not None, not empty) over those of a configuration file.

    Raises:
        ConfigError: when the file cannot be read, or is of another job.
    """
    from popflow.runs import ConfigError, read_values

    values = read_values(file) if file is not None else {}
    of = values.pop("job", job)
    if of != job:
        raise ConfigError(f"{file} is of the job {of!r}, wanted {job!r}. Fix: give `popflow {of} --config {file}`, or another file.")
    return values | {name: value for name, value in given.items() if value not in (None, [])}


def run_job(
    job: str,
    function: Callable[[Any, Run], Report],
    config_type: type,
    values: Mapping[str, Any],
    *,
    cite: tuple[str, ...],
    out: Path | None,
    device: Device,
    as_json: bool,
) -> None:
    """Run a job in its directory and print what came out. A failure is logged there with its traceback and raised again."""
    from popflow.runs import Run, config_of, plain

    config = config_of(config_type, values)
    digest = hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()[:8]
    path = out if out is not None else Path("runs") / f"{job.replace(' ', '-')}-{digest}"
    command = shlex.join(["popflow", *ARGUMENTS.get()])
    with Run.open(path, config, job=job, device=_device(device), cite=cite, command=command, progress=ProgressLine()) as run:
        typer.echo(f"{'Going on' if run.resumed else 'Running'} in {path}", err=True)
        try:
            report = function(config, run)
            html = run.finish(report)
        except KeyboardInterrupt:
            run.log("interrupted")
            raise
        except Exception as error:
            run.log(traceback.format_exc())
            error.add_note(f"Traceback: {path / 'log.txt'}. The same command goes on from the last checkpoint.")
            raise
    if as_json:
        print_json({"ok": True, "job": job, "out": str(path), "html": str(html), **_without_images(report.plain())})
    else:
        _print(report, html)


def _device(device: Device) -> str:
    import torch

    there = torch.cuda.is_available()
    if device is Device.cuda and not there:
        raise typer.BadParameter(
            "cuda, but torch sees no GPU: give --device cpu, or install a CUDA build of torch (popflow doctor)", param_hint="--device"
        )
    return "cuda" if there and device is not Device.cpu else "cpu"


def _without_images(report: dict[str, Any]) -> dict[str, Any]:
    tables = {name: [item for item in report[name] if "image" not in item] for name in ("comparison", "diagnostics")}
    return {name: value for name, value in report.items() if name != "figure"} | tables


def _print(report: Report, html: Path) -> None:
    from popflow.runs import Table
    from popflow.runs.report import text_of

    typer.echo(f"\n{report.title}")
    if report.verdict is not None:
        passed = report.verdict.passed
        mark = "No criterion to meet" if passed is None else "Criterion met" if passed else "Criterion not met"
        typer.secho(f"{mark}: {report.verdict.statement}", fg=None if passed is None else "green" if passed else "red")
        typer.echo(f"  criterion: {report.verdict.criterion}")
    if report.results:
        typer.echo("\n" + aligned([[name, str(value)] for name, value in report.results.items()]))
    for item in report.comparison:
        if isinstance(item, Table):
            cells = [list(item.columns), *[[text_of(cell) for cell in row] for row in item.rows]]
            typer.echo(f"\n{item.title}\n{aligned(cells)}" + (f"\n  {item.note}" if item.note else ""))
    typer.echo(f"\nWrote  {html}")
    for line in report.next or (f"popflow cite {html.parent}",):
        typer.echo(f"Next   {line}")
