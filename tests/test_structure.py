"""The shape of the sources: packages without circles of imports, files of one noun, functions that fit on a screen."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted(SOURCE.rglob("*.py"))
PACKAGES = [path.parent for path in FILES if path.name == "__init__.py"]
LONGEST_FILE, LONGEST_FUNCTION = 400, 80


def dotted(path: Path) -> str:
    """Name of the module in a file, of the package in a folder."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path) for path in FILES}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> frozenset[str]:
    """Modules of popflow that a file imports anywhere: at its top, inside functions, under ``TYPE_CHECKING``."""
    package = dotted(path) if path.name == "__init__.py" else dotted(path.parent)
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # what is imported may be a module itself; a name of a package's door counts as the package
            found.update(f"{source}.{alias.name}" if f"{source}.{alias.name}" in MODULES else source for alias in node.names)
    return frozenset(name for name in found if name in MODULES)


def nodes(package: Path) -> dict[str, list[Path]]:
    """What a package consists of: each module is a node, and so is each sub-package with all that it holds."""
    folders = {dotted(path): sorted(path.rglob("*.py")) for path in package.iterdir() if (path / "__init__.py").exists()}
    return folders | {dotted(path): [path] for path in package.glob("*.py") if path.name != "__init__.py"}


def node_of(module: str, package: str) -> str | None:
    """The node of a package that holds a module; None for the package's own door and for what lies outside."""
    inside = module.removeprefix(f"{package}.")
    return None if inside == module else f"{package}.{inside.split('.')[0]}"


def circle(package: Path) -> list[str] | None:
    """A circle of imports among the nodes of a package, or None."""
    name = dotted(package)
    graph = {
        node: {node_of(module, name) for path in paths for module in imported(path)} - {node, None}
        for node, paths in nodes(package).items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


@pytest.mark.parametrize("package", PACKAGES, ids=dotted)
def test_no_circle_of_imports(package: Path) -> None:
    """Of the whole package, ``popflow``, the nodes are the rooms."""
    found = circle(package)
    assert found is None, f"circle of imports: {' -> '.join(reversed(found or []))}"


@pytest.mark.parametrize("package", [package for package in PACKAGES if package != SOURCE / "popflow"], ids=dotted)
def test_no_module_imports_the_door_of_its_own_package(package: Path) -> None:
    """The door opens on every module, so a module that goes through it closes a circle."""
    inside = [path for path in package.rglob("*.py") if path.name != "__init__.py"]
    guilty = [dotted(path) for path in inside if dotted(package) in imported(path)]
    assert not guilty, f"{guilty} import from {dotted(package)}: import from the module that holds the name"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the name to the end, those of the docstring not counted."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    return _lines(function) - (_lines(first) if documented else 0)


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def too_long(paths: Iterable[Path]) -> list[str]:
    return [
        f"{dotted(path)}.{one.name}: {length(one)} lines"
        for path in paths
        for one in functions(parsed(path))
        if length(one) > LONGEST_FUNCTION
    ]


def test_functions_fit_on_a_screen() -> None:
    found = too_long(FILES)
    assert not found, f"more than {LONGEST_FUNCTION} lines without the docstring: {found}"


def test_files_are_short_or_say_why_not() -> None:
    """A longer file gives its reason in the module docstring, in a sentence with the words "long because"."""
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in FILES}
    found = [
        f"{dotted(path)}: {n}"
        for path, n in lines.items()
        if n > LONGEST_FILE and "long because" not in (ast.get_docstring(parsed(path)) or "")
    ]
    assert not found, f"more than {LONGEST_FILE} lines and no reason in the module docstring: {found}"


def test_the_checks_find_what_they_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A circle through a sub-package and an import inside a function; a function of 81 lines after its docstring."""
    package = tmp_path / "room"
    (package / "inner").mkdir(parents=True)
    for path in (package, package / "inner"):
        (path / "__init__.py").touch()
    (package / "a.py").write_text("from room.inner.deep import x\n")
    (package / "b.py").write_text("def f():\n    from . import a\n")
    (package / "inner" / "deep.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..b import f\n")
    body = "    pass\n" * (LONGEST_FUNCTION - 1)
    (package / "c.py").write_text(f'def fits():\n    """One\n    two."""\n{body}def long():\n{body}    pass\n')
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    monkeypatch.setitem(globals(), "MODULES", {dotted(path) for path in tmp_path.rglob("*.py")})
    found = circle(package)
    assert found is not None
    assert set(found) == {"room.a", "room.b", "room.inner"}
    assert too_long([package / "c.py"]) == [f"room.c.long: {LONGEST_FUNCTION + 1} lines"]
