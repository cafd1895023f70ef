"""`doctor`: what it finds is what is there."""

import json
import tomllib
from pathlib import Path

import torch

from popflow.cli import installation
from popflow.cli.app import main
from popflow.cli.installation import EXTRAS, REQUIRED


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
