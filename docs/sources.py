"""Code of the package in pages: a link to a source file that stands alone in its paragraph becomes the code of the functions that it names.

``[feynman_kac, Target.scores](../../src/popflow/FILE.py)`` leads to the file where the page is read as text, and shows both definitions, with docstrings cut to
their first line, where the site is built: the page cannot differ from what runs.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"
LINK = re.compile(r"(?<=\n\n)\[([\w., ]+)\]\((?:\.\./)+src/(popflow/[\w/]+\.py)\)(?=\n)")
Definition = ast.FunctionDef | ast.ClassDef


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the code where the page names it."""
    return LINK.sub(lambda link: f'```python title="src/{link[2]}"\n{shown(link[2], link[1].split(", "))}\n```', markdown)


def shown(file: str, names: list[str]) -> str:
    """Return the code of the named definitions of a file, methods as ``Class.method``."""
    text = (SOURCE / file).read_text(encoding="utf-8")
    return "\n\n\n".join(_without_long_docstrings(text, _found(ast.parse(text), name, file)) for name in names)


def _found(scope: ast.AST, name: str, file: str) -> Definition:
    """The definition with this name; LookupError where there is none."""
    for part in name.split("."):
        inside = [node for node in ast.iter_child_nodes(scope) if isinstance(node, Definition) and node.name == part]
        if not inside:
            raise LookupError(f"{file} defines no {name}. Fix: name what it does define.")
        scope = inside[0]
    assert isinstance(scope, Definition)
    return scope


def _without_long_docstrings(text: str, definition: Definition) -> str:
    """The lines of a definition, its docstrings reduced to their first lines."""
    lines = dict(enumerate(text.splitlines(), 1))
    for node in ast.walk(definition):
        if isinstance(node, Definition) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            for cut in range(docstring.lineno + 1, (docstring.end_lineno or 0) + 1):
                del lines[cut]
            if docstring.end_lineno != docstring.lineno:
                lines[docstring.lineno] = lines[docstring.lineno].rstrip() + '"""'
    first = min([definition.lineno, *(decorator.lineno for decorator in definition.decorator_list)])
    return textwrap.dedent("\n".join(line for number, line in lines.items() if first <= number <= (definition.end_lineno or first)))
