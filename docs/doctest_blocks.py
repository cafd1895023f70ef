"""Shows the examples of docstrings as code: a griffe extension that fences every doctest block."""

from __future__ import annotations

import re
from typing import Any

import griffe

BLOCK = re.compile(r"^(?P<indent> *)>>> .*(?:\n *\S.*)*", re.MULTILINE)


class DoctestBlocks(griffe.Extension):
    """Put a fence around each run of lines that starts with ``>>>`` and ends before an empty line."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = BLOCK.sub(_fenced, obj.docstring.value)


def _fenced(block: re.Match[str]) -> str:
    indent = block["indent"]
    return f"{indent}```pycon\n{block[0]}\n{indent}```"
