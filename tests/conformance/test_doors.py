"""Every room is reachable after ``import popflow``, and every public name of a room is there."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import popflow

ROOT = Path(popflow.__file__).parent
DOORS = sorted(".".join(("popflow", *stub.parent.relative_to(ROOT).parts)) for stub in ROOT.rglob("__init__.pyi"))


@pytest.mark.parametrize("door", DOORS)
def test_public_names_are_there_and_documented(door: str) -> None:
    room = importlib.import_module(door)
    assert room.__all__, door
    for name in room.__all__:
        one = getattr(room, name)
        assert not (inspect.isfunction(one) or inspect.isclass(one)) or inspect.getdoc(one), f"{door}.{name} has no docstring"
    with pytest.raises(AttributeError, match="no_such_name"):
        room.no_such_name


@pytest.mark.parametrize("door", DOORS)
def test_each_name_stands_once(door: str) -> None:
    stub = ROOT.joinpath(*door.split(".")[1:], "__init__.pyi")
    names = [alias.asname for node in ast.walk(ast.parse(stub.read_text())) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert len(names) == len(set(names))


def test_rooms_are_reachable_without_importing_them_first() -> None:
    code = "import popflow; print([getattr(popflow, room).__name__ for room in popflow.__all__])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == str([f"popflow.{room}" for room in popflow.__all__]) + "\n"
    assert {"compose", "transport", "circuits", "optim", "learn", "core", "runs"} <= set(popflow.__all__)
