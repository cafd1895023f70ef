"""`popflow view`: the local page."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from popflow.cli.output import print_json
from popflow.cli.verbs import AsJson
from popflow.core.errors import MissingExtraError

Named = Annotated[list[Path] | None, typer.Argument(metavar="RUN", help="Run directories, or folders of them.  [default: those in --out]")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the runs that the page starts.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")]
Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")]


def view(runs: Named = None, out: Out = Path("runs"), port: Port = 0, browser: Browser = True, as_json: AsJson = False) -> None:
    """Show runs as they go on a local page, which also starts, stops and resumes them. Ctrl-C ends it, and interrupts the runs that it started."""
    try:
        from popflow.view import serve
    except ImportError as error:
        raise MissingExtraError(f"the local page needs starlette and uvicorn ({error}). Fix: pip install 'popflow[view]'.") from error

    def ready(address: str) -> None:
        if as_json:
            print_json({"ok": True, "address": address})
        else:
            typer.echo(f"Open   {address}\nOnly this machine can, and only with the whole address. Ctrl-C ends it.", err=False)
        if browser:
            webbrowser.open(address)

    serve(runs or [], out, port=port, ready=ready)
