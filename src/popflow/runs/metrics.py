"""The file `metrics.jsonl`: one JSON object per recorded step, appended, and truncated to the point where a job resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from torch import Tensor

from popflow.core.checkpoint import write_atomic
from popflow.core.errors import CheckpointError


class Metrics:
    """Rows ``{"stage": str, "step": int, name: number, ...}`` of consecutive stages.

    The first row that a process adds to a stage discards the rows from that step on, which an earlier process wrote after its last
    checkpoint. A stage that another one follows is complete, and its rows are kept. The file of an interrupted run therefore equals that
    of an uninterrupted one byte for byte, even when a stage without checkpoints is repeated.

    Args:
        path: The file, created with the first row.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> first = Metrics(path)
        >>> for step in range(3):
        ...     first.add("anneal", step, {"ess": 4.0})
        >>> first.close()
        >>> second = Metrics(path)
        >>> second.add("anneal", 1, {"ess": 4.0})
        >>> [row["step"] for row in second.rows()]
        [0, 1]
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: FileIO | None = None
        self._begun: list[str] = []
        self._complete: set[str] = set()

    def add(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a row of numbers, tensors (written as numbers or lists) and text; non-finite values become "nan", "inf" and "-inf".

        Raises:
            CheckpointError: when the row cannot be written.
            ValueError: when a stage continues after another one has begun.
        """
        if stage not in self._begun:
            self._cut(stage, step)
            self._begun.append(stage)
        if stage != self._begun[-1]:
            raise ValueError(f"stage={stage!r} continues after {self._begun[-1]!r} has begun, wanted stages one after another.")
        if stage in self._complete:
            return
        row = {"stage": stage, "step": step, **{name: _number(value) for name, value in values.items()}}
        try:
            if self._file is None:
                self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            line = json.dumps(row).encode() + b"\n"
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._failed(error) from error

    def rows(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Return the complete rows of one stage, or of all."""
        return [row for row, _ in self._read() if stage in (None, row["stage"])]

    def sync(self) -> None:
        """Flush the rows to disk; done before every checkpoint."""
        try:
            if self._file is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> list[tuple[dict[str, Any], str]]:
        """Complete rows with their lines; the file ends at a line truncated by a kill."""
        found = []
        for line in self._text().splitlines(keepends=True):
            try:
                row = json.loads(line) if line.endswith("\n") else {}
            except ValueError:
                row = {}
            if not (isinstance(row, dict) and isinstance(row.get("stage"), str) and isinstance(row.get("step"), int)):
                break
            found.append((row, line))
        return found

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise CheckpointError(
                f"cannot read {self.path}: {error.strerror or error}. Fix: restore the file, or give another --out."
            ) from error

    def _cut(self, stage: str, step: int) -> None:
        rows = self._read()
        mine = [i for i, (row, _) in enumerate(rows) if row["stage"] == stage]
        if mine and mine[-1] != len(rows) - 1:
            self._complete.add(stage)
            return
        before = [i for i in mine if rows[i][0]["step"] < step]
        keep = before[-1] + 1 if before else mine[0] if mine else len(rows)
        kept = "".join(line for _, line in rows[:keep])
        if kept != self._text():
            self.close()
            write_atomic(self.path, kept)

    def _failed(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"cannot write {self.path}: {error.strerror or error}. Earlier checkpoints are intact. Fix: free space, then repeat the same command."
        )


def _number(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().tolist()
    if isinstance(value, list | tuple):
        return [_number(one) for one in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value
