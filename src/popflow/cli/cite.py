"""`popflow cite`: what to cite for a run."""

from __future__ import annotations

import typer

from popflow.cli.options import AsJson, RunPath
from popflow.cli.output import print_json


def cite(run: RunPath, as_json: AsJson = False) -> None:
    """Print the BibTeX entries of what a run uses."""
    from popflow.runs import cited

    entries = cited(run)
    if as_json:
        print_json({"ok": True, "cite": entries})
    else:
        typer.echo("\n\n".join(entries) or "% this run names nothing to cite")
