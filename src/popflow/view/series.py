"""The curves of `metrics.jsonl`: read as the file grows, a few megabytes at a time, and thinned to what a plot can show."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from popflow.view.folders import open_file, text

AT_ONCE = 4 * 2**20
"""Bytes read at once."""
LONGEST_LINE = 2**20
POINTS = 600
"""Points kept of a curve at most; at least half as many once it has had that many."""
CURVES = 120
_VALUES = 100
"""Values of a row that are looked at."""


@dataclass(slots=True)
class Curve:
    """Every ``stride``-th value of a metric of a stage.

    >>> curve = Curve("fit", "loss")
    >>> for step in range(2 * POINTS):
    ...     curve.add(step, float(step))
    >>> len(curve.steps), curve.stride, curve.steps[:3], curve.last
    (600, 2, [0, 2, 4], 1199.0)
    """

    stage: str
    name: str
    steps: list[int] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    stride: int = 1
    count: int = 0
    last: float | None = None

    def add(self, step: int, value: float | None) -> None:
        """Take the next value; None where it is not finite."""
        if self.count % self.stride == 0:
            if len(self.steps) == POINTS:
                self.steps, self.values, self.stride = self.steps[::2], self.values[::2], 2 * self.stride
            if self.count % self.stride == 0:
                self.steps.append(step)
                self.values.append(value)
        self.count, self.last = self.count + 1, value


@dataclass(slots=True)
class Series:
    """The curves of a run. A file that was replaced or cut, as when a run resumes, is read anew.

    Attributes:
        folder: The run folder.
        version: Grows with every change.
        behind: Bytes of the file that are not read yet.
        skipped: Lines that are no rows of metrics.
        unseen: Curves beyond those that are kept.
    """

    folder: Path
    version: int = 0
    behind: int = 0
    skipped: int = 0
    unseen: int = 0
    _curves: dict[tuple[str, str], Curve] = field(default_factory=dict)
    _file: int = 0
    _offset: int = 0
    _torn: bytes = b""
    _too_long: bool = False

    def read(self) -> None:
        """Read on, at most `AT_ONCE` bytes."""
        try:
            with open_file(self.folder, "metrics.jsonl") as file:
                there = os.fstat(file.fileno())
                if there.st_ino != self._file or there.st_size < self._offset:
                    self._begin(there.st_ino)
                file.seek(self._offset)
                found = file.read(AT_ONCE)
        except OSError:
            if self._file:
                self._begin(0)
            return
        self._offset += len(found)
        self.behind = max(0, there.st_size - self._offset)
        if found:
            self.version += 1
            self._take(found)

    def plain(self) -> dict[str, Any]:
        """The curves, for JSON."""
        curves = [
            {"stage": one.stage, "name": one.name, "steps": one.steps, "values": one.values, "last": one.last, "count": one.count}
            for one in self._curves.values()
        ]
        return {"version": self.version, "behind": self.behind, "skipped": self.skipped, "unseen": self.unseen, "curves": curves}

    def _begin(self, file: int) -> None:
        self.version, self.behind, self.skipped, self.unseen = self.version + 1, 0, 0, 0
        self._curves, self._file, self._offset, self._torn, self._too_long = {}, file, 0, b"", False

    def _take(self, found: bytes) -> None:
        *lines, torn = (self._torn + found).split(b"\n")
        for line in lines:
            if self._too_long or len(line) > LONGEST_LINE or not self._row(line):
                self.skipped += 1
            self._too_long = False
        self._too_long = self._too_long or len(torn) > LONGEST_LINE
        self._torn = b"" if self._too_long else torn

    def _row(self, line: bytes) -> bool:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not (isinstance(row, dict) and isinstance(row.get("stage"), str) and type(row.get("step")) is int and abs(row["step"]) < 2**53):
            return False
        for name, value in islice(row.items(), _VALUES):
            if name in ("stage", "step") or not _numeric(value):
                continue
            key = (text(row["stage"], 100), text(name, 100))
            if key not in self._curves and len(self._curves) >= CURVES:
                self.unseen += 1
                continue
            self._curves.setdefault(key, Curve(*key)).add(row["step"], number(value))
        return True


def number(value: Any) -> float | None:
    """A value of a row as one finite number, or None: of a list, as of several populations, the mean.

    >>> number([1, 3]), number("nan"), number(10**400)
    (2.0, None, None)
    """
    if isinstance(value, list):
        found = [one for one in map(number, value[:1000]) if one is not None]
        return sum(found) / len(found) if found else None
    try:
        return float(value) if math.isfinite(value) else None
    except (TypeError, OverflowError):
        return None


def _numeric(value: Any) -> bool:
    """Numbers, lists of them, and what stands for those that are not finite."""
    if isinstance(value, list):
        return bool(value) and all(map(_numeric, value[:1000])) and not isinstance(value[0], list)
    return (isinstance(value, int | float) and not isinstance(value, bool)) or value in ("nan", "inf", "-inf")
