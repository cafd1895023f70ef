"""Walkers shared over processes: two processes search as one does, write one checkpoint, and refuse walkers that cannot be shared."""

import json
from pathlib import Path

import pytest
import torch

from popflow.core import Streams
from popflow.electrons import Molecule, Objective, PsiFormer, equilibrate, evaluate, place, search

RUNS = {"minsr": Objective.mixed(), "spring": Objective(), "singd": Objective.mixed(), "adam": Objective.wasserstein()}


def job(folder: Path, walkers: int = 16) -> dict:
    """Search and evaluate, in however many processes this runs."""
    seen = {}
    for optimiser, objective in RUNS.items():
        system, rng = Molecule.of("He"), Streams(3)
        psi = PsiFormer(system, width=8, layers=1, heads=2, determinants=2, rng=rng, dtype=torch.float64)
        start = equilibrate(psi, place(psi, system, walkers, rng), rng, sweeps=2)
        steps: list[int] = []
        found = search(
            psi, system, start, objective=objective, optimiser=optimiser, steps=20, rng=rng,  # pyright: ignore[reportArgumentType]
            record=[lambda progress, steps=steps: steps.append(progress.step)], checkpoint=folder / f"{optimiser}.safetensors",
        )  # fmt: skip
        last = evaluate(psi, system, found.walkers, sweeps=3, burn=1, rng=rng)
        numbers = torch.cat([p.detach().flatten() for p in psi.parameters()])
        seen[optimiser] = {"params": numbers.tolist(), "x": found.walkers.x.flatten().tolist(), "energy": last.energy.value, "steps": steps}
    return seen


SCRIPT = """
import importlib.util, json, os, sys, pathlib, torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("test_processes", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
folder, rank = pathlib.Path(sys.argv[2]), int(os.environ["RANK"])
seen = module.job(folder)
try:
    module.job(folder / str(rank), walkers=15)
except ValueError as error:
    seen["odd"] = str(error)
(folder / f"{rank}.json").write_text(json.dumps(seen))
"""


def test_two_processes_search_as_one(tmp_path: Path, torchrun) -> None:
    (tmp_path / "one").mkdir()
    alone = job(tmp_path / "one")
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun(tmp_path / "script.py", __file__, tmp_path, processes=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for name in RUNS:
        assert first[name]["params"] == second[name]["params"]
        for key in ("params", "x", "energy"):
            assert first[name][key] == pytest.approx(alone[name][key], rel=1e-6, abs=1e-8), (name, key)
        assert first[name]["steps"] == alone[name]["steps"] == [10, 20]
        assert second[name]["steps"] == []
        assert (tmp_path / f"{name}.safetensors").exists()
    assert "15" in first["odd"]
    assert "multiple of the 2 processes" in first["odd"]
