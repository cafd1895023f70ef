"""`popflow doctor`: what is installed, what is missing, and the command that installs it."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from popflow.cli.output import aligned, print_json
from popflow.cli.verbs import AsJson

REQUIRED = (
    "torch",
    "numpy",
    "scikit-learn",
    "POT",
    "joblib",
    "cloudpickle",
    "typer",
    "rich",
    "safetensors",
    "jinja2",
    "matplotlib",
    "jaxtyping",
    "lazy-loader",
)
EXTRAS = {
    "diffusers": ("diffusers", "transformers", "peft"),
    "cells": ("anndata",),
    "md": ("openmm", "mdtraj", "ase", "tblite"),
    "qm": ("pyscf",),
    "chem": ("rdkit", "selfies", "httpx", "vina", "meeko", "gemmi"),
    "circuits": ("pennylane", "openqasm3", "onnx"),
    "view": ("starlette", "uvicorn"),
}
UNLOCKS = {
    "diffusers": "pretrained pipelines and language models",
    "cells": "h5ad files in and out",
    "md": "force fields, trajectories, GFN2-xTB",
    "qm": "Hartree-Fock orbitals to start from",
    "chem": "molecules, chat endpoints, docking",
    "circuits": "ONNX files of networks; what runs and reads exported circuits",
    "view": "the live local page",
}
_MARKS = {"ok": "ok", "absent": "-", "failed": "FAILED"}


def doctor(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that runs will be written to.")] = Path("."),
    as_json: AsJson = False,
    test: Annotated[
        bool, typer.Option("--self-test", help="Also compute one small figure with a known answer in each room, in about a minute.")
    ] = False,
) -> None:
    """Check the installation: versions, GPU, optional dependencies and what they are for, run folder, data sets."""
    checks = [*_installed(), *_computing(), *_extras(), _writing(out), _data(), *_plugins(), *(_tested() if test else ())]
    failed = any(check["status"] == "failed" for check in checks)
    if as_json:
        print_json({"ok": not failed, "checks": checks})
    else:
        typer.echo(aligned([[_MARKS[one["status"]], one["name"], one["detail"]] for one in checks], indent=""))
        for one in checks:
            if one["fix"] and one["status"] == "failed":
                typer.echo(f"Fix    {one['name']}: {one['fix']}")
        typer.echo("\nNext   popflow demo" if not failed else "")
    if failed:
        raise typer.Exit(1)


def _check(name: str, status: str, detail: str, fix: str = "") -> dict[str, Any]:
    return {"name": name, "status": status, "detail": detail, "fix": fix}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _installed() -> list[dict[str, Any]]:
    import popflow

    checks = [
        _check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        _check("popflow", "ok", popflow.__version__),
    ]
    for name in REQUIRED:
        there = _version(name)
        if there:
            checks.append(_check(name, "ok", there))
        else:
            checks.append(_check(name, "failed", "not installed", f'pip install "{name}"'))
    return checks


def _computing() -> list[dict[str, Any]]:
    try:
        import torch
    except Exception as error:
        return [_check("torch import", "failed", f"{type(error).__name__}: {error}", "pip install --force-reinstall torch")]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU only"
    checks = [_check("torch build", "ok", build), _check("threads", "ok", f"{torch.get_num_threads()} of {os.cpu_count()} processors")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        checks.append(_check("GPU", "ok", ", ".join(names)))
    else:
        checks.append(_check("GPU", "absent", "none that torch can use; --device auto computes on the CPU"))
    return checks


def _extras() -> list[dict[str, Any]]:
    checks = []
    for extra, names in EXTRAS.items():
        there = {name: _version(name) for name in names}
        missing = [name for name, found in there.items() if found is None]
        found = ", ".join(f"{name} {number}" for name, number in there.items() if number)
        fix = f'pip install "popflow[{extra}]"'
        detail = f"{UNLOCKS[extra]}: " + "; ".join(filter(None, [found, f"without {', '.join(missing)}: {fix}" if missing else ""]))
        checks.append(_check(f"extra {extra}", "absent" if missing else "ok", detail, fix if missing else ""))
    return checks


def _writing(out: Path) -> dict[str, Any]:
    from popflow.core.checkpoint import write_atomic
    from popflow.core.errors import CheckpointError

    place = out.resolve()
    new = not place.exists()
    probe = place / ".popflow-doctor"
    try:
        write_atomic(probe, "writable\n")
        probe.unlink()
        free = shutil.disk_usage(place).free
    except (CheckpointError, OSError) as error:
        return _check("folder for runs", "failed", str(error), "give --out a folder that can be written")
    finally:
        if new and place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    return _check("folder for runs", "ok", f"{place} can be written, {free / 1e9:.1f} GB free")


def _data() -> dict[str, Any]:
    folder = os.environ.get("POPFLOW_DATA")
    if not folder:
        return _check("POPFLOW_DATA", "absent", "not set; only data sets that are not shipped need it")
    if Path(folder).is_dir():
        return _check("POPFLOW_DATA", "ok", folder)
    return _check("POPFLOW_DATA", "failed", f"{folder} is not a folder", "set it to the folder of the data sets, or unset it")


def _tested() -> list[dict[str, Any]]:
    from popflow.cli.self_test import ROOMS, self_test

    checks = []
    for one in self_test():
        checks.append(one)
        typer.echo(f"self-test {len(checks)}/{len(ROOMS)}", err=True)
    return checks


def _plugins() -> list[dict[str, Any]]:
    from popflow.registry import methods

    return [
        _check(f"plug-in {point}", "failed", why, "update or uninstall the package that registers it")
        for point, why in methods().broken.items()
    ]
