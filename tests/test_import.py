"""The door is light: `import popflow` costs little beyond torch and brings no extra."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# what distributions are called when they are imported
IMPORTED_AS = {"POT": "ot", "scikit-learn": "sklearn", "pytest-xdist": "xdist", "mkdocs-material": "material"}
MEASURE = """
import json, sys
import torch, numpy
before = set(sys.modules)
import popflow
new = set(sys.modules) - before
print(json.dumps({"modules": len(new), "brought": sorted({name.split(".")[0] for name in new})}))
"""


def measured(code: str = MEASURE) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_is_quick_and_brings_no_extra() -> None:
    """By what is imported, which is the same on every machine: a room that slipped in would bring a hundred modules and a second."""
    run = measured()
    assert run["modules"] <= 10, f"import popflow brings {run['modules']} modules beyond torch, wanted at most 10: {run['brought']}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name for extra in project["optional-dependencies"].values() for name in map(_distribution, extra)}
    core = {name for name in map(_distribution, project["dependencies"])} - {"torch", "numpy", "jaxtyping", "lazy-loader"}
    heavy = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in (extras | core) - {"popflow"}}
    brought = heavy & set(run["brought"])
    assert not brought, f"import popflow brings {sorted(brought)}: import them inside the function that needs them"


@pytest.mark.parametrize("name", ["popflow.core", "popflow.registry"])
def test_shared_rooms_bring_no_extra_either(name: str) -> None:
    brought = set(measured(MEASURE.replace("import popflow\n", f"import {name}\n"))["brought"])
    assert not brought & {"ot", "sklearn", "matplotlib", "jinja2", "rich", "typer", "scipy", "safetensors", "jax", "openmm", "rdkit"}


def _distribution(requirement: str) -> str:
    return requirement.split("[")[0].split(">")[0].split("=")[0].split("<")[0].strip()
