"""`popflow report`: the page of a run, anew."""

from __future__ import annotations

import typer

from popflow.cli.options import AsJson, RunPath
from popflow.cli.output import print_json


def report(run: RunPath, as_json: AsJson = False) -> None:
    """Write report.html of a run anew from its report.json."""
    from popflow.runs import rerender

    html = rerender(run)
    if as_json:
        print_json({"ok": True, "html": str(html)})
    else:
        typer.echo(f"Wrote  {html}\nNext   popflow cite {run}")
