"""The job of ``popflow ground``: what a run keeps, and what it goes on with."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from popflow.electrons import HartreeFock, Molecule, job as module
from popflow.electrons.config import GroundConfig
from popflow.runs import ConfigError, Run

TINY = GroundConfig("Li", walkers=4, steps=2, moves=1, width=4, layers=1, determinants=1, pretrain_steps=2, sweeps=1, basis="sto-3g")


def opened(folder: Path) -> Run:
    """Open the run of `TINY`."""
    return Run.open(folder, {"molecule": TINY.molecule}, job="ground")


def test_a_run_goes_on_with_its_own_orbitals_without_pyscf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyscf")
    with opened(tmp_path / "run") as run:
        module.run(TINY, run)
        energy = float(run.load("hartree-fock")[0]["energy"])
    wrote = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.safetensors")}
    assert energy == pytest.approx(HartreeFock(Molecule.of("Li"), "sto-3g").energy, abs=1e-9)
    (tmp_path / "run" / "search.safetensors").unlink()
    (tmp_path / "run" / "evaluation.safetensors").unlink()

    def solved(*_: object) -> None:
        raise AssertionError("calculated again")

    monkeypatch.setattr(import_module("popflow.electrons.pretrain"), "_solve", solved)
    monkeypatch.setattr("popflow.electrons.job.importlib.util.find_spec", lambda name: None)
    with opened(tmp_path / "run") as run:
        found = module.run(TINY, run)
    assert "Hartree-Fock, sto-3g" in str(found.comparison)
    assert len(wrote) == 5
    assert all(path.read_bytes() == before for path, before in wrote.items())


def test_a_wave_function_whose_evaluation_fails_is_kept_for_another_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*_: object, **__: object) -> None:
        raise ArithmeticError("no energy")

    config = GroundConfig("H", walkers=4, steps=2, moves=1, width=4, layers=1, determinants=1, sweeps=1)
    with monkeypatch.context() as patch, Run.open(tmp_path / "one", {}, job="ground") as run:
        patch.setattr(module, "evaluate", failed)
        with pytest.raises(ArithmeticError, match="no energy"):
            module.run(config, run)
    with Run.open(tmp_path / "two", {}, job="ground") as run:
        module.run(replace(config, double=True, start=tmp_path / "one"), run)
        assert run.load("psi")[0]["embed.weight"].dtype == torch.float64
    with Run.open(tmp_path / "three", {}, job="ground") as run, pytest.raises(ConfigError, match=r"absent' has no psi\.safetensors"):
        module.run(replace(config, start=tmp_path / "absent"), run)
