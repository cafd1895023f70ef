"""What the command line prints: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from popflow.runs import Report


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output."""
    typer.echo(json.dumps(content, ensure_ascii=False))


def aligned(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Return rows of cells as text in columns; the last one is left ragged.

    >>> print(aligned([["fkc", "weights"], ["superdiff", "densities"]], indent=""))
    fkc        weights
    superdiff  densities
    """
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    return "\n".join(indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows)


def print_report(report: Report, html: Path) -> None:
    """Print the outcome of a run: the verdict, the results, the tables of the comparison, and what to do next."""
    from popflow.runs.report import Table, text_of

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
    for line in report.next or (f"popflow cite {shlex.quote(str(html.parent))}",):
        typer.echo(f"Next   {line}")


class ProgressLine:
    """Progress on standard error: a line that is rewritten on a terminal, about ten lines for a stage elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._said: tuple[str, int] = ("", -1)
        self._since = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say where a stage stands."""
        now, share = time.monotonic(), done / max(total, 1)
        tenth = int(share * 10)
        due = (now - self._since > 0.1 or done >= total) if self._live else (stage, tenth) != self._said
        if not due:
            return
        self._since, self._said = now, (stage, tenth)
        if self._live:
            bar = "█" * int(share * 24)
            sys.stderr.write(f"\r\x1b[2K{stage}  {bar:░<24}  {done}/{total}" + ("\n" if done >= total else ""))
        else:
            sys.stderr.write(f"{stage}  {done}/{total}\n")
        sys.stderr.flush()
