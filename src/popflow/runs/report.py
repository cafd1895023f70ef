"""The report of a run: its results as data and as one self-contained page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popflow.core.checkpoint import write_atomic
from popflow.core.errors import CheckpointError, RunDirectoryError
from popflow.runs.config import plain

_IMAGE = re.compile(r"data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with its standard error, or None where there is none.

    >>> str(Measured(0.81234, 0.0041)), str(Measured(12)), str(Measured(1.5e-7, 2e-9))
    ('0.8123 ± 0.0041', '12', '(1.500 ± 0.020)e-07')
    """

    value: float
    error: float | None = None

    def __str__(self) -> str:
        value, error = self.value, self.error
        if error is None or not math.isfinite(error) or not math.isfinite(value) or error <= 0:
            text = str(value) if isinstance(value, int) else f"{value:.4g}"
            return text if error is None else f"{text} ± {error:.2g}"
        size = math.floor(math.log10(max(abs(value), error)))
        scale = 0 if -4 <= size < 6 else size
        digits = max(0, 1 - math.floor(math.log10(error)) + scale)
        body = f"{value / 10.0**scale:.{digits}f} ± {error / 10.0**scale:.{digits}f}"
        return f"({body})e{scale:+03d}" if scale else body


Cell = str | int | float | bool | None | Measured


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of each row is its name.

    Attributes:
        title: What is compared.
        columns: Column headings, with units.
        rows: Cells, one per column.
        note: What the reader must know: sample sizes, the meaning of errors, which direction is better.
        emphasis: Indices of the rows to highlight.

    Raises:
        ValueError: when a row does not have one cell per column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    emphasis: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {i} of table {self.title!r} has {len(row)} cells, wanted {len(self.columns)}: give one per column.")


@dataclass(frozen=True, slots=True)
class Figure:
    """An image made by `popflow.runs.figures`, its caption, and a text alternative for readers who cannot see it.

    Raises:
        ValueError: when the image is not a base64 data URI of a PNG or SVG.
    """

    image: str
    caption: str
    alt: str = ""

    def __post_init__(self) -> None:
        if not _IMAGE.fullmatch(self.image):
            raise ValueError(f"image={self.image[:40]!r}..., wanted a base64 data URI of a PNG or SVG: make it with popflow.runs.figures.")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the run met its criterion; ``passed`` is None when there is no criterion to meet."""

    passed: bool | None
    statement: str
    criterion: str


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a run. Jobs return it; `Run.finish` writes it.

    Attributes:
        title: What was done.
        summary: A few sentences for a reader who does not know the method. Blank lines separate paragraphs.
        verdict: Whether it worked.
        figure: The key figure.
        comparison: Tables and figures of the results, against the truth or a trivial baseline where there is one.
        diagnostics: How far to trust the result: effective sample size, log Z, acceptance, loss.
        results: Key numbers by name.
        files: Contents of the run directory, by file name.
        next: Command lines to try next.
    """

    title: str
    summary: str
    verdict: Verdict | None = None
    figure: Figure | None = None
    comparison: tuple[Table | Figure, ...] = ()
    diagnostics: tuple[Table | Figure, ...] = ()
    results: Mapping[str, Measured] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    next: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the report as JSON-compatible values."""
        return plain(self)


def render(content: Mapping[str, Any], template: str = "report.html.jinja") -> str:
    """Return the page for the content of a ``report.json``. All text is escaped, and the page loads nothing."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("popflow.runs", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda value: value if isinstance(value, str) else text_of(value).replace("-", "−")
    environment.filters["setting"] = _setting
    environment.tests["image"] = lambda uri: isinstance(uri, str) and bool(_IMAGE.fullmatch(uri))
    environment.tests["numeric"] = lambda value: isinstance(value, int | float | Mapping) and not isinstance(value, bool)
    return environment.get_template(template).render(content)


def read_report(path: str | Path) -> dict[str, Any]:
    """Read the ``report.json`` of a run directory.

    Raises:
        RunDirectoryError: when there is none.
        CheckpointError: when it is damaged.
    """
    file = Path(path) / "report.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        whole = isinstance(content["run"], dict) and isinstance(content["report"], dict)
    except OSError as error:
        raise RunDirectoryError(
            f"cannot read {file}: {error.strerror or error}. Fix: give the directory of a finished run. To finish an interrupted one, repeat the command that started it."
        ) from error
    except (ValueError, KeyError, TypeError):
        whole, content = False, {}
    if not whole:
        raise CheckpointError(f"{file} is damaged: no run writes this. Fix: repeat the command that made it.")
    return content


def rerender(path: str | Path) -> Path:
    """Write ``report.html`` of a run directory again from its ``report.json``.

    Raises:
        CheckpointError: when ``report.json`` is missing or damaged, or the page cannot be written.
    """
    from jinja2 import TemplateError

    content = read_report(path)
    try:
        html = render(content)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{Path(path) / 'report.json'} is damaged: {error}. Fix: repeat the command that made it.") from error
    return write_atomic(Path(path) / "report.html", html)


def text_of(value: Any) -> str:
    """Return a table cell, or its JSON form, as text."""
    if isinstance(value, Mapping):
        return str(Measured(_float(value.get("value")), None if value.get("error") is None else _float(value["error"])))
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _setting(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(one, str | int | float) for one in value):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _float(value: Any) -> float:
    return value if isinstance(value, int) else float(value)
