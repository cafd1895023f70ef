"""`popflow methods`: what there is."""

from __future__ import annotations

import typer

from popflow.cli.options import AsJson
from popflow.cli.output import aligned, print_json


def methods(as_json: AsJson = False) -> None:
    """List the methods, those of installed packages too."""
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
