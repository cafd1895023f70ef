"""Tables from files and arrays. Nothing is unpickled."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popflow.core.checkpoint import write_atomic
from popflow.core.errors import unknown

_MISSING = {"", "na", "n/a", "nan", "none", "null"}


@dataclass(frozen=True, eq=False)
class Offline:
    """Measured rows.

    Attributes:
        rows: Columns by name, without the targets.
        values: Values ``[n, targets]``; None without targets.
        dropped: Rows left out because a value was missing.
    """

    rows: dict[str, np.ndarray]
    values: np.ndarray | None
    dropped: int = 0


def from_arrays(x: Any, y: Any = None) -> Offline:
    """Take arrays, or ``.npy`` and ``.npz`` files of them: the ``x`` and ``y`` of a Design-Bench task.

    Args:
        x: Rows ``[n, columns]`` of numbers, tokens ``[n, length]`` of whole numbers, or one-hot tokens ``[n, length, letters]``.
        y: Values ``[n]`` or ``[n, objectives]``.

    Raises:
        ValueError: for other shapes, files of pickled objects, or numbers of rows that differ.

    Example:
        >>> table = from_arrays(np.eye(3, dtype=int)[np.array([[0, 2], [1, 1]])], np.array([[0.5], [0.7]]))
        >>> {name: column.tolist() for name, column in table.rows.items()}, table.values.shape
        ({'0': [0, 1], '1': [2, 1]}, (2, 1))
    """
    rows, values = _array("x", x), None if y is None else _array("y", y)
    if rows.ndim == 3:
        if not bool(np.isin(rows, (0, 1)).all() and (rows.sum(2) == 1).all()):
            raise ValueError(
                f"x has shape {rows.shape} and is not one-hot, wanted [n, columns], tokens [n, length] or one-hot [n, length, letters]."
            )
        rows = rows.argmax(2)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"x has shape {rows.shape}, wanted [n, columns] with at least one row.")
    if values is not None:
        if len(values) != len(rows) or values.ndim not in (1, 2):
            raise ValueError(f"y has shape {values.shape} for {len(rows)} rows of x, wanted [{len(rows)}] or [{len(rows)}, objectives].")
        values = values.reshape(len(rows), -1).astype(np.float64)
    return Offline({str(k): rows[:, k] for k in range(rows.shape[1])}, values)


def read_table(path: str | Path, targets: Sequence[str] = (), missing: str = "raise") -> Offline:
    """Read a table of rows and targets: ``.csv`` and ``.tsv`` with a header, or ``.npz`` with ``x`` and an array for each target.

    Raises:
        ValueError: for a file that is absent, damaged or of another kind, a target that is no column, and missing values unless ``missing="drop"``.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"cannot read {str(path)!r}: no such file.")
    if path.suffix == ".npz":
        return _read_npz(path, targets)
    if path.suffix not in (".csv", ".tsv"):
        raise ValueError(f"{path.name} ends in {path.suffix!r}, wanted .csv, .tsv or .npz.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *lines = [row for row in csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",") if row]
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise ValueError(f"{path.name} is no table: {error}. Fix: save it as text with a header line.") from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path.name} has two columns {twice[0]!r}, wanted different names.")
    ragged = next((k for k, row in enumerate(lines) if len(row) != len(header)), None)
    if ragged is not None or not lines:
        seen = (
            "has no row below its header"
            if ragged is None
            else f"has {len(lines[ragged])} values in row {ragged + 1}, wanted {len(header)}"
        )
        raise ValueError(f"{path.name} {seen}. Fix: correct it there.")
    for name in targets:
        if name not in header:
            raise ValueError(unknown("target", name, header))
    lost = [any(cell.strip().lower() in _MISSING for cell in row) for row in lines]
    if any(lost) and missing == "raise":
        row = lost.index(True)
        name = next(name for name, cell in zip(header, lines[row], strict=True) if cell.strip().lower() in _MISSING)
        raise ValueError(
            f"{path.name} lacks values in {sum(lost)} of {len(lines)} rows, the first in row {row + 1}, column {name!r}. Fix: --missing drop."
        )
    lines = [row for row, gone in zip(lines, lost, strict=True) if not gone]
    if not lines:
        raise ValueError(f"{path.name} has no row without a missing value.")
    table = {name: _cells(list(column)) for name, column in zip(header, zip(*lines, strict=True), strict=True)}
    for name in targets:
        if table[name].dtype.kind not in "fi":
            raise ValueError(f"target {name!r} holds {table[name][0]!r}, wanted numbers.")
    values = np.stack([table.pop(name).astype(np.float64) for name in targets], 1) if targets else None
    if not table:
        raise ValueError(f"{path.name} has no column besides the target: there is nothing to choose.")
    return Offline(table, values, sum(lost))


def write_rows(path: Path, table: Mapping[str, Sequence[Any]]) -> None:
    """Write columns as CSV, atomically; numbers in full precision, nothing for NaN."""
    from io import StringIO

    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow(
            ["" if isinstance(cell, float) and math.isnan(cell) else repr(cell) if isinstance(cell, float) else cell for cell in row]
        )
    write_atomic(path, text.getvalue())


def _cells(column: list[str]) -> np.ndarray:
    """Whole numbers, numbers, or text."""
    for kind in (np.int64, np.float64):
        try:
            return np.array(column).astype(kind)
        except (ValueError, OverflowError):
            continue
    return np.array(column, dtype=object)


def _read_npz(path: Path, targets: Sequence[str]) -> Offline:
    arrays = _load(path)
    for name in ("x", *targets):
        if name not in arrays:
            raise ValueError(unknown(f"array of {path.name}", name, arrays))
    y = [arrays[name].reshape(len(arrays[name]), -1) for name in targets]
    if any(len(one) != len(arrays["x"]) for one in y):
        raise ValueError(f"{path.name} holds arrays of {[len(arrays['x']), *map(len, y)]} rows, wanted one number of rows.")
    return from_arrays(arrays["x"], np.concatenate(y, 1) if y else None)


def _array(name: str, given: Any) -> np.ndarray:
    if not isinstance(given, str | Path):
        array = np.asarray(given)
    else:
        found = _load(Path(given))
        array = found[name] if name in found else next(iter(found.values()))
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} has type {array.dtype}, wanted numbers: objects are not read.")
    return array


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        found = np.load(path, allow_pickle=False)
        return {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}. Fix: save plain arrays with numpy.save or numpy.savez.") from error
