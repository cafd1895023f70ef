"""`popflow demo --all`: the demo of every method in turn, each in a process of its own, and one page that links their reports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer

from popflow.cli.output import aligned, print_json
from popflow.core.checkpoint import write_atomic
from popflow.core.errors import CheckpointError, RunDirectoryError
from popflow.registry import Method
from popflow.runs.report import read_report, render


def demonstrate(methods: Sequence[Method], out: Path, device: str, as_json: bool) -> int:
    """Run the quick demos of methods below ``out``, and write ``out/index.html``. A demo that fails is listed with its message and stops no other.

    Returns:
        0 when every demo ran and met its criterion, else 1.
    """
    items = []
    for method in methods:
        typer.echo(f"{method.name}: {method.summary}", err=True)
        items.append(_shown(method, out, device))
        typer.echo(f"  {items[-1]['statement']}", err=True)
    summary = f"{len(items)} methods, each on a small problem whose answer is known; a title leads to the whole report."
    page = write_atomic(out / "index.html", render({"title": "All demos", "summary": summary, "items": items}, "gallery.html.jinja"))
    held = all(item["passed"] for item in items)
    if as_json:
        kept = [{key: value for key, value in item.items() if key != "figure"} for item in items]
        print_json({"ok": held, "job": "demo --all", "out": str(out), "html": str(page), "demos": kept})
    else:
        typer.echo(aligned([["ok" if item["passed"] else "-", item["name"], item["statement"]] for item in items], indent=""))
        typer.echo(f"\nWrote  {page}")
    return 0 if held else 1


def _shown(method: Method, out: Path, device: str) -> dict[str, Any]:
    """Run one demo, and say what the page shows of it."""
    folder, begin = out / method.name, time.perf_counter()
    command = [sys.executable, "-m", "popflow.cli.app", "demo", method.name, "--quick", "--out", str(folder), "--device", device]
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=os.environ, check=False
    )
    item: dict[str, Any] = {"name": method.name, "about": method.summary, "link": None, "figure": None, "passed": False}
    item["seconds"] = time.perf_counter() - begin
    if done.returncode:
        return item | {"statement": _last_error(done.stderr)}
    try:
        report = read_report(folder)["report"]
    except (RunDirectoryError, CheckpointError) as error:
        return item | {"statement": str(error)}
    verdict = report.get("verdict") or {"passed": True, "statement": "it ran"}
    item |= {"link": f"{quote(method.name)}/report.html", "figure": report.get("figure")}
    return item | {"passed": verdict["passed"] is not False, "statement": str(verdict["statement"])}


def _last_error(text: str) -> str:
    """What the command said of its error, to the end."""
    before, mark, after = text.rpartition("error: ")
    return after.strip() if mark else (before or after).strip()[-500:] or "it ended without a message"
