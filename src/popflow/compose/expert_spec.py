"""How a string names an expert: ``zoo:NAME``, ``zoo:NAME:LABEL``, ``kernel:FILE:WIDTH`` or ``python:MODULE:NAME``. Reading one loads nothing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from popflow.runs.user_code import source_of

_WIDTH = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?")


@dataclass(frozen=True)
class ExpertSpec:
    """The parsed name of an expert.

    Attributes:
        text: The string.
        kind: zoo, kernel or python.
        name: Name in the zoo, file, or module.
        detail: Label (or nothing), kernel width, or name in the module.
    """

    text: str
    kind: str
    name: str
    detail: str

    @staticmethod
    def of(text: str) -> ExpertSpec:
        """Read a string.

        Raises:
            ValueError: for another form, a kernel width that is not a positive number, a file that does not exist.

        Example:
            >>> ExpertSpec.of("zoo:digits-class:3").detail
            '3'
        """
        kind, _, rest = text.partition(":")
        if kind not in ("zoo", "kernel", "python") or not rest:
            raise ValueError(f"expert {text!r}: wanted zoo:NAME, zoo:NAME:LABEL, kernel:FILE:WIDTH or python:MODULE:NAME.")
        name, _, detail = rest.rpartition(":") if kind == "kernel" else rest.partition(":")
        if kind == "kernel":
            if not name or not _WIDTH.fullmatch(detail) or not 0 < float(detail) < math.inf:
                raise ValueError(
                    f"expert {text!r}: kernel width {detail!r} is not a number above 0, wanted kernel:FILE:WIDTH, e.g. kernel:points.npy:0.3."
                )
            if not Path(name).is_file():
                raise ValueError(f"expert {text!r}: cannot read {name!r}: no such file.")
        if kind == "python" and not (name and detail):
            raise ValueError(f"expert {text!r}: wanted python:MODULE:NAME, e.g. python:my_package.models:cat.")
        return ExpertSpec(text, kind, name, detail)

    def file(self) -> Path | None:
        """Return the file that the expert is made of: its data, or the source of its module; None for those of the zoo."""
        if self.kind == "kernel":
            return Path(self.name)
        if self.kind == "zoo":
            return None
        return source_of(self.name)
