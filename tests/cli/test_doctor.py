"""`doctor`: what it finds is what is there."""

import json
import tomllib
from pathlib import Path

import pytest
import torch

from popflow.cli import installation, self_test
from popflow.cli.app import main
from popflow.cli.installation import EXTRAS, REQUIRED, UNLOCKS
from popflow.cli.self_test import ROOMS, Room
from popflow.core import MissingExtraError


def names(requirements):
    return tuple(requirement.partition(">")[0].partition("[")[0] for requirement in requirements)


def test_it_knows_what_the_project_asks_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert names(project["dependencies"]) == REQUIRED
    extras = project["optional-dependencies"]
    for_users = extras["all"][0].removeprefix("popflow[").removesuffix("]").split(",")
    assert {name: names(extras[name]) for name in for_users} == EXTRAS


def test_it_tells_versions_extras_and_the_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("POPFLOW_DATA", str(tmp_path))
    assert main(["doctor", "--out", str(tmp_path / "new"), "--json"]) == 0
    checks = {one["name"]: one for one in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["torch"]["detail"] == torch.__version__
    assert checks["GPU"]["status"] == ("ok" if torch.cuda.is_available() else "absent")
    assert checks["folder for runs"]["status"] == "ok"
    assert checks["POPFLOW_DATA"]["detail"] == str(tmp_path)
    for extra in EXTRAS:
        one = checks[f"extra {extra}"]
        assert one["status"] == "ok" or one["fix"] == f'pip install "popflow[{extra}]"'
        assert one["detail"].startswith(UNLOCKS[extra])
    assert list(tmp_path.iterdir()) == []


def test_what_is_broken_fails_with_a_fix(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POPFLOW_DATA", str(tmp_path / "absent"))
    assert main(["doctor", "--out", str(tmp_path / "file" / "runs")]) == 1
    said = capsys.readouterr().out
    assert "FAILED  folder for runs" in said
    assert "FAILED  POPFLOW_DATA" in said
    assert "Fix    folder for runs: give --out a folder that can be written" in said


def test_an_absent_requirement_fails(capsys, tmp_path, monkeypatch):

    found = installation._version
    monkeypatch.setattr(installation, "_version", lambda name: None if name == "POT" else found(name))
    assert main(["doctor", "--out", str(tmp_path)]) == 1
    assert 'Fix    POT: pip install "POT"' in capsys.readouterr().out


def test_every_room_is_tested_and_its_figure_is_the_truth(capsys, tmp_path):
    """All rooms that `import popflow` offers."""
    import popflow

    assert {room.name for room in ROOMS} == set(popflow.__all__)
    assert main(["doctor", "--self-test", "--out", str(tmp_path), "--json"]) == 0
    checks = {one["name"]: one for one in json.loads(capsys.readouterr().out)["checks"] if one["name"].startswith("self-test ")}
    assert len(checks) == len(ROOMS)
    assert {name for name, one in checks.items() if one["status"] != "ok"} <= {"self-test evolve"}
    for one in checks.values():
        assert one["status"] == "absent" or f"truth {one['truth']:.4g}" in one["detail"]


def test_a_wrong_figure_an_error_and_a_missing_extra_are_told_apart(capsys, tmp_path, monkeypatch):
    def missing():
        raise MissingExtraError("rdkit is not installed. Fix: pip install 'popflow[chem]'.")

    rooms = (
        Room("core", "a sum", lambda: (1.0, 2.0, 0.5)),
        Room("evolve", "a molecule", missing),
        Room("paths", "a quotient", lambda: (1 / 0, 1.0, 0.0)),
        Room("learn", "a difference", lambda: (float("nan"), 0.0, 1.0)),
    )
    monkeypatch.setattr(self_test, "ROOMS", rooms)
    assert main(["doctor", "--self-test", "--out", str(tmp_path), "--json"]) == 1
    checks = {one["name"].removeprefix("self-test "): one for one in json.loads(capsys.readouterr().out)["checks"]}
    assert [checks[room.name]["status"] for room in rooms] == ["failed", "absent", "failed", "failed"]
    assert "a sum 1, truth 2 within 0.5" in checks["core"]["detail"]
    assert "pip install 'popflow[chem]'" in checks["evolve"]["detail"]
    assert "ZeroDivisionError" in checks["paths"]["detail"]
    assert checks["learn"]["found"] is None


@pytest.mark.parametrize(
    "room", [room for room in ROOMS if room.name in ("optim", "runs", "electrons", "circuits")], ids=lambda room: room.name
)
def test_exact_figures_are_exact(room):
    found, truth, within = room.run()
    assert abs(found - truth) <= within <= 1e-6
