"""The file `metrics.jsonl`: one JSON object per recorded step, appended, and cut back to where a resumed job begins again."""

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
    """Rows ``{"stage": str, "step": int, name: number, ...}`` of stages that follow one another.

    The first row that a process adds to a stage cuts off what an earlier process, killed after its last checkpoint, had written from
    that step on; a stage that another one follows was complete, and its rows stand. So the file of an interrupted run equals that of an
    uninterrupted one byte for byte, also where a stage without checkpoints is done over.

    Args:
        path: The file; made at the first row.

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
        """Append a row: numbers, tensors (as numbers or lists), text. What JSON cannot write becomes "nan", "inf" or "-inf".

        Raises:
            CheckpointError: when the row cannot be written.
            ValueError: when a stage goes on after another one has begun.
        """
        if stage not in self._begun:
            self._cut(stage, step)
            self._begun.append(stage)
        if stage != self._begun[-1]:
            raise ValueError(f"stage={stage!r} goes on after {self._begun[-1]!r} has begun: stages must follow one another.")
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
        """Return the whole rows, of one stage or of all."""
        return [row for row, _ in self._read() if stage in (None, row["stage"])]

    def sync(self) -> None:
        """Put on disk what was added; done before every checkpoint."""
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
        """Whole rows with their lines; a line torn by a kill ends the file."""
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
            f"cannot write {self.path}: {error.strerror or error}. Earlier checkpoints are whole. Fix: free space, then give the same command again."
        )


def _number(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().tolist()
    if isinstance(value, list | tuple):
        return [_number(one) for one in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value
