"""Verbs that run no job: the methods, the report of a run, and what to cite for it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from popflow.cli.output import aligned, print_json
from popflow.cli.verbs import AsJson

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def methods(as_json: AsJson = False) -> None:
    """List the methods, including those of other installed packages."""
    from popflow.registry import methods as find

    registry = find()
    if as_json:
        listed = [{"name": one.name, "summary": one.summary} for one in registry.methods.values()]
        print_json({"ok": True, "methods": listed, "broken": registry.broken})
    else:
        typer.echo(aligned([[one.name, one.summary] for one in registry.methods.values()], indent=""))
        typer.echo("\nNext   popflow demo METHOD", err=True)
    for point, why in registry.broken.items():
        typer.echo(f"could not load the plug-in {point}: {why}", err=True)


def report(run: RunPath, as_json: AsJson = False) -> None:
    """Rebuild the report.html of a run from its report.json."""
    from popflow.runs import rerender

    html = rerender(run)
    if as_json:
        print_json({"ok": True, "html": str(html)})
    else:
        typer.echo(f"Wrote  {html}\nNext   popflow cite {shlex.quote(str(run))}")


def cite(run: RunPath, as_json: AsJson = False) -> None:
    """Print the BibTeX entries for the methods that a run uses."""
    from popflow.runs import cited

    entries = cited(run)
    if as_json:
        print_json({"ok": True, "cite": entries})
    else:
        typer.echo("\n\n".join(entries) or "% nothing to cite for this run")
