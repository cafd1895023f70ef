"""A field added to a configuration is a field everywhere: no other line says it again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from popflow import registry
from popflow.cli.app import main
from popflow.cli.verbs import verb
from popflow.registry import Task
from popflow.runs import Report
from popflow.view import forms
from popflow.view.forms import jobs, plain_jobs


@dataclasses.dataclass(frozen=True)
class Before:
    """A task.

    Attributes:
        seed: Random seed.
    """

    seed: int = 0


@dataclasses.dataclass(frozen=True)
class After:
    """A task.

    Attributes:
        seed: Random seed.
        kernel_steps: Langevin steps at each level. They do not change the weights.
    """

    seed: int = 0
    kernel_steps: int = 5


def report(config: Before | After, run: object) -> Report:
    return Report("It ran", f"{config}")


@pytest.mark.parametrize("config", [Before, After])
def test_a_new_field_is_in_help_config_and_errors(config: type, monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(registry, "TASKS", {"work": Task(config, report, summary="Work.")})
    monkeypatch.setattr("popflow.cli.app.TASKS", registry.TASKS)
    monkeypatch.chdir(tmp_path)
    new = config is After
    assert main(["work", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("--kernel-steps INTEGER Langevin steps at each level. [default: 5]" in said) is new
    monkeypatch.setattr(forms, "TASKS", registry.TASKS)
    (form,) = (one for one in plain_jobs(jobs()[0]) if one["name"] == "work")
    shown = {field["label"]: (field["help"], field["default"]) for field in form["fields"]}
    assert (shown.get("--kernel-steps") == ("Langevin steps at each level.", "5")) is new
    (tmp_path / "mine.json").write_text('{"kernel_steps": 7}')
    assert main(["work", "--config", "mine.json", "--seed", "1", "--out", "a"]) == (0 if new else 2)
    if new:
        assert json.loads((tmp_path / "a" / "config.json").read_text()) == {"job": "work", "seed": 1, "kernel_steps": 7}
        assert main(["work", "--config", "a/config.json", "--kernel-steps", "8", "--out", "b"]) == 0
        assert json.loads((tmp_path / "b" / "config.json").read_text()) == {"job": "work", "seed": 1, "kernel_steps": 8}
    capsys.readouterr()
    (tmp_path / "mine.json").write_text('{"kernel_step": 7}')
    assert main(["work", "--config", "mine.json"]) == 2
    assert ("did you mean 'kernel_steps'?" in capsys.readouterr().err) is new
    assert main(["work", "--kernel-step", "7"]) == 2
    assert ("--kernel-steps" in capsys.readouterr().err) is new


@pytest.mark.parametrize("name", ["out", "device", "job", "inputs", "json", "help"])
def test_a_field_of_a_taken_name_is_refused(name: str) -> None:
    """Options of every verb, and keys that config.json holds beside the configuration."""
    doc = f"A task.\n\nAttributes:\n    {name}: A field."
    config = dataclasses.make_dataclass("Config", [(name, str, "")], frozen=True, namespace={"__doc__": doc})
    with pytest.raises(TypeError, match=rf"has fields \['{name}'\], wanted other names"):
        verb("work", Task(config, report))
