"""The form and the command line both come from the declaration of a task, and agree with the command itself."""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Literal

import pytest
from typer.main import get_command

from popflow import registry
from popflow.cli.app import build
from popflow.registry import BUILT_IN, TASKS, Task
from popflow.runs.config import ConfigError, Flag, options
from popflow.view.forms import Job, again, arguments, jobs, plain_jobs

FOLDER = Path("/runs/a")


def test_every_verb_and_every_demo_has_a_form_with_every_option():
    found, broken = jobs()
    assert broken == {}
    assert set(found) == {*TASKS, *(f"demo {method.name}" for method in BUILT_IN)}
    for form in plain_jobs(found):
        name = form["name"]
        task = TASKS[name] if name in TASKS else next(one.demo for one in BUILT_IN if f"demo {one.name}" == name)
        declared = options(task.load("config"))
        assert [field["name"] for field in form["fields"]] == [option.name for option in declared]
        assert [field["help"] for field in form["fields"]] == [option.help for option in declared]


@dataclasses.dataclass(frozen=True)
class Everything:
    """A task.

    Attributes:
        data: A file.
        steps: Steps.
        beta: Exponents.
        width: A width. If None: the median.
        mode: How.
        on: A switch.
        off: Another.
        both: Both sides.
        label: A label.
        more: More files.
    """

    data: Annotated[Path, Flag("DATA")]
    steps: Annotated[int, Flag("--steps", "-n", ge=1)] = 3
    beta: tuple[float, ...] = ()
    width: float | None = None
    mode: Literal["one", "two"] = "one"
    on: Annotated[bool, Flag("--quick")] = False
    off: bool = True
    both: Annotated[bool, Flag("--ode/--sde")] = False
    label: str = "x"
    more: Annotated[tuple[Path, ...], Flag("MORE")] = ()

    def __post_init__(self):
        from popflow.runs.config import check

        check(self)


JOB = Job("work", "Work.", Task(Everything, print), options(Everything))


def test_values_become_the_command_that_reads_them_back(monkeypatch):
    """The command line goes through the real command, and gives the configuration that was asked for."""
    values = {
        "data": "-a b.csv",
        "steps": 5,
        "beta": [0.5, 1e-9],
        "width": "inf",
        "mode": "two",
        "on": True,
        "off": False,
        "both": False,
        "label": "--out=x;$(y)",
        "more": ["c", "-d"],
    }
    line = arguments(JOB, values, FOLDER, "cpu")
    assert line[:3] == ["work", "--out=/runs/a", "--device=cpu"]
    seen = {}
    monkeypatch.setattr("popflow.cli.app.TASKS", {"work": JOB.task})
    monkeypatch.setattr(
        "popflow.cli.verbs.carry_out",
        lambda job, task, given, **shared: seen.update(given=given, out=shared["out"], device=shared["device"].value),
    )
    get_command(build()).main(line, prog_name="popflow", standalone_mode=False)
    from popflow.cli.verbs import _read
    from popflow.runs.config import config_of, plain

    read = {name: plain(value) for name, value in _read(Everything, seen["given"]).items() if value not in (None, [])}
    assert config_of(Everything, read) == config_of(Everything, values)
    assert (seen["out"], seen["device"]) == (FOLDER, "cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "a", "steps": 0}, "steps=0, wanted an integer >= 1"),
        ({"data": "a", "steps": "many"}, "steps='many', wanted an integer"),
        ({"data": "a", "step": 1}, "did you mean 'steps'"),
        ({}, "lacks data"),
        ({"data": "a", "mode": "three"}, "mode"),
        ({"data": ["a"]}, "data"),
    ],
)
def test_bad_values_are_refused_before_anything_starts(values, message):
    with pytest.raises(ConfigError, match=message):
        arguments(JOB, values, FOLDER, "auto")


def test_nothing_given_is_nothing_said(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert arguments(JOB, {"data": "a"}, tmp_path / "runs" / "a", "auto") == ["work", "--out=runs/a", "--", "a"]
    assert again(JOB, tmp_path / "runs" / "a", "cuda") == ["work", "--config=runs/a/config.json", "--out=runs/a", "--device=cuda"]


def test_methods_of_other_packages_have_forms_and_broken_ones_are_told(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "cli" / "plugin"))
    bad = EntryPoint(name="gone", value="no_such_module:METHOD", group=registry.GROUP)
    real = registry.entry_points
    monkeypatch.setattr(registry, "entry_points", lambda group: [*real(group=group), bad])
    found, broken = jobs()
    assert {"tempering", "demo tempering"} <= set(found)
    assert [option.name for option in found["tempering"].options][:3] == ["seed", "quick", "precision"]
    assert arguments(found["demo tempering"], {"precision": 2.0}, FOLDER, "auto") == [
        "demo",
        "tempering",
        "--out=/runs/a",
        "--precision=2.0",
    ]
    assert list(broken) == ["gone = no_such_module:METHOD"]
