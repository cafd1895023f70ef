"""Completion: what bash offers is what the declarations say."""

import shutil
import subprocess
from pathlib import Path

import pytest

from popflow.cli.app import build, main
from popflow.cli.completion import verbs
from popflow.registry import BUILT_IN, TASKS
from popflow.runs import options

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture(scope="module")
def offered():
    """What bash offers for the words of a command line; the last one is being typed."""
    from popflow.cli.completion import bash

    script = bash(verbs(build))

    def ask(*words):
        line = " ".join(f"'{word}'" for word in ("popflow", *words))
        asking = f'COMP_WORDS=({line}); COMP_CWORD={len(words)}; _popflow; printf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "--norc", "-c", f"{script}\n{asking}"], capture_output=True, text=True, check=True)
        assert not done.stderr
        return done.stdout.split()

    return ask


def test_verbs_and_their_options_are_offered(offered):
    assert set(TASKS) | {"demo", "doctor", "completion"} <= set(offered(""))
    assert offered("sam") == ["sample"]
    for name, task in TASKS.items():
        wanted = {
            side for option in options(task.load("config")) for both in option.names for side in both.split("/") if side.startswith("-")
        }
        assert wanted | {"--out", "--config", "--device", "--json", "--help"} <= set(offered(name, "-")), name
    assert offered("--version", "flo") == ["flow"]


def test_choices_are_offered_for_the_value_of_an_option_and_nothing_for_a_free_one(offered):
    assert offered("sample", "--device", "c") == ["cpu", "cuda"]
    (option,) = (option for option in options(TASKS["ground"].load("config")) if option.name == "metric")
    assert offered("ground", "--metric", "") == list(option.choices)
    assert offered("sample", "--seed", "") == []
    assert "--seed" in offered("sample", "--json", "--s")


def test_methods_are_offered_after_demo(offered):
    assert {one.name for one in BUILT_IN} <= set(offered("demo", ""))
    assert offered("demo", "mol") == ["molleo"]
    assert "--restarts" in offered("demo", "qhn", "--re")
    assert offered("completion", "") == ["bash", "zsh", "fish", "--help"]


def test_methods_of_other_packages_are_completed_and_broken_ones_disturb_nothing(monkeypatch):
    monkeypatch.syspath_prepend(str(PLUGIN))
    assert "--precision" in verbs(build)["tempering"].options
    from importlib.metadata import EntryPoint

    from popflow import registry

    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint(name="gone", value="no_such_module:METHOD", group=group)])
    assert "gone" in verbs(build)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed_and_parses(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "superdiff" in script
    assert "--device" in script.replace("-l device", "--device")
    if shutil.which(shell):
        subprocess.run([shell, "-n", "-"], input=script, text=True, check=True, capture_output=True)


def test_an_unknown_shell_is_bad_usage(capsys):
    assert main(["completion", "csh"]) == 2
    assert "csh" in capsys.readouterr().err
