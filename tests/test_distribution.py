"""What a stranger installs: sdist and wheel, in an environment that holds the required packages alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
DATA = re.compile(r"\.(safetensors|smi|npz|css|jinja|pyi|NOTICE|typed)$|NOTICE$")

PLUGIN = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "popflow-tempering"
version = "1.0"
dependencies = ["popflow"]
[project.entry-points."popflow.methods"]
tempering = "popflow_tempering:METHOD"
[tool.hatch.build.targets.wheel]
only-include = ["popflow_tempering.py"]
"""

MISSING = """
import contextlib, io, pathlib, sys
from popflow.cli.app import main
for name in ("a.h5ad", "A.pdb", "B.pdb", "molecules.smi"):
    pathlib.Path(name).write_text("CCO\\n" if name.endswith(".smi") else "")
pathlib.Path("pipeline").mkdir()
pathlib.Path("pipeline/model_index.json").write_text("{}")
for extra, command in {
    "cells": ["flow", "a.h5ad", "--time", "day"],
    "md": ["path", "A.pdb", "B.pdb"],
    "qm": ["ground", "H 0 0 0; H 0 0 1.4", "--unit", "bohr", "--pretrain", "hartree-fock"],
    "chem": ["evolve", "molecules.smi", "--oracle", "qed"],
    "diffusers": ["sample", "--diffusers", "pipeline", "--prompt", "a cat", "--op", "and", "--prompt", "a dog"],
}.items():
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([*command, "--out", f"run-{extra}"])
    text = " ".join(said.getvalue().split())
    print(extra, code, f"pip install 'popflow[{extra}]'" in text, "Traceback" in text, text[-300:], sep="|")
from popflow.circuits import BinaryMLP, onnx_file, pack
try:
    onnx_file(pack(BinaryMLP(inputs=2, hidden=(1,)).decode(0)), "network.onnx")
except ImportError as error:
    print("circuits", 1, "pip install 'popflow[circuits]'" in str(error), False, error, sep="|")
"""


def _run(*command: str | Path, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command without this repository on the path; the test fails when it does."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "POPFLOW_DATA")} | changes
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _tracked(folder: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git here to tell which files belong to the source")
    return set(listed.stdout.split())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from the unpacked sdist."""
    try:
        import hatchling.build as _  # noqa: F401
    except ImportError:
        if os.environ.get("CI"):
            pytest.fail("no hatchling: CI must have it")
        pytest.skip("no hatchling to build with (extra dev)")
    place, path = tmp_path_factory.mktemp("built"), os.environ.get("PYTHONPATH", "")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", place, cwd=ROOT, PYTHONPATH=path)
    (sdist,) = place.glob("popflow-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (source,) = (place / "unpacked").iterdir()
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place, cwd=source, PYTHONPATH=path)
    (wheel,) = place.glob("popflow-*.whl")
    return sdist, wheel


def test_the_sdist_holds_what_git_does(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert _tracked("src") | _tracked("tests") | {"LICENSE", "README.md", "pyproject.toml", "CHANGELOG.md"} <= inside
    assert not [name for name in inside if "__pycache__" in name or name.endswith(".pyc")]


def test_the_wheel_holds_all_of_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        inside = {name for name in archive.namelist() if not name.endswith("/")}
    wanted = {name.removeprefix("src/") for name in _tracked("src")}
    assert sum(bool(DATA.search(name)) for name in wanted) > 30
    assert wanted <= inside
    assert all(".dist-info/" in name for name in inside - wanted)


def _required(names: list[str]) -> dict[str, str]:
    """The closure of required distributions, by canonical name; extras that a requirement names are followed."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in names]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found[canonicalize_name(name)] = name
        for text in distribution(name).requires or ():
            one = Requirement(text)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in (extras or {""})):
                waiting.append((one.name, frozenset(one.extras)))
    return found


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and links to the packages that it requires, found by its own metadata: no extra is there."""
    place = tmp_path_factory.mktemp("environment")
    _run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place)
    python = place / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", built[1], cwd=place)
    (site,) = (place / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(built[1]) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    requirements = [Requirement(line.removeprefix("Requires-Dist: ")) for line in lines if line.startswith("Requires-Dist: ")]
    for name in _required([one.name for one in requirements if one.marker is None]).values():
        files = distribution(name)
        for top in {file.parts[0] for file in files.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(files.locate_file(top))))
    return python


def test_the_wheel_runs_where_no_extra_is_installed(installed: Path, tmp_path: Path) -> None:
    """The first thing that a stranger does, and what is said where an extra is missing."""
    for name in ("anndata", "rdkit", "openmm", "diffusers", "pyscf", "onnx", "httpx"):
        asked = subprocess.run([installed, "-c", f"import {name}"], cwd=tmp_path, capture_output=True, check=False)
        assert asked.returncode == 1, f"{name} is there: the environment is not empty"
    command = installed.parent / "popflow"
    assert "superdiff" in _run(command, "methods", cwd=tmp_path).stdout
    _run(command, "demo", "--quick", "--out", "run", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    lines = _run(installed, "-c", MISSING, cwd=tmp_path).stdout.splitlines()
    told = {line.split("|")[0]: line.split("|")[1:] for line in lines}
    assert told.keys() == {"cells", "md", "qm", "chem", "diffusers", "circuits"}
    for extra, (code, named, traceback, text) in told.items():
        assert (code, named, traceback) == ("1", "True", "False"), f"{extra}: exit code {code}, {text}"


def test_a_package_of_one_file_adds_a_method(installed: Path, tmp_path: Path) -> None:
    """Built and installed beside the wheel, as its users do it: a line of `popflow methods`, a verb, a demo, a report, a citation."""
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(ROOT / "tests" / "cli" / "plugin" / "popflow_tempering.py", source)
    (source / "pyproject.toml").write_text(PLUGIN)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    _run(*build, cwd=source, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    (wheel,) = tmp_path.glob("popflow_tempering-*.whl")
    _run(sys.executable, "-m", "pip", "--python", installed, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    command = installed.parent / "popflow"
    assert "tempering  Tempering between two normal distributions." in _run(command, "methods", cwd=tmp_path).stdout
    assert "--precision NUMBER" in _run(command, "tempering", "--help", cwd=tmp_path).stdout
    assert "tempering:--device" in _run(command, "completion", "bash", cwd=tmp_path).stdout
    for verb in (["tempering", "--precision", "9", "--quick"], ["demo", "tempering", "--quick"]):
        told = json.loads(_run(command, *verb, "--json", "--out", verb[0], cwd=tmp_path).stdout)
        assert told["verdict"]["passed"] is True
        assert "Tempering to a normal distribution" in (tmp_path / verb[0] / "report.html").read_text(encoding="utf-8")
        assert "neal1998annealed" in _run(command, "cite", verb[0], cwd=tmp_path).stdout
