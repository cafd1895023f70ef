"""The command: exit codes, what goes to which stream, and how fast it starts."""

import json
import os
import subprocess
import sys

import pytest

from popflow import __version__
from popflow.cli.app import build, main
from popflow.registry import TASKS
from popflow.runs import options

VERBS = [
    "cite",
    "completion",
    "demo",
    "doctor",
    "evolve",
    "flow",
    "ground",
    "methods",
    "optimize",
    "path",
    "report",
    "sample",
    "search",
    "view",
]


def popflow(*arguments, **kwargs):
    """Run the real command in its own process."""
    return subprocess.run([sys.executable, "-m", "popflow.cli.app", *arguments], capture_output=True, text=True, check=False, **kwargs)


def test_help_and_methods_do_not_import_torch():
    code = (
        "import sys; from popflow.cli.app import main\n"
        "for arguments in (['--help'], *([verb, '--help'] for verb in ('demo', 'sample', 'flow', 'search')), ['methods'], ['--version'], []): assert main(arguments) == 0\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("[]")
    for verb in VERBS:
        assert verb in done.stdout


def test_help_shows_what_stands_for_a_default_of_none(capsys):
    assert main(["sample", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for option in options(TASKS["sample"].load("config")):
        if option.otherwise:
            assert f"[default: {option.otherwise}" in said
    assert "[default: 1, or a pipeline's own default]" in said


@pytest.mark.parametrize("verb", [[], ["demo"], ["sample"], ["flow"], ["search"]], ids=str)
def test_help_costs_little(verb):
    """Processor time, which other work on the machine lengthens little; 0.2 s on a quiet one."""
    before = os.times()
    assert popflow(*verb, "--help").returncode == 0
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.6


def test_the_verbs_are_those_of_the_documentation():
    from typer.main import get_command

    assert sorted(get_command(build()).commands) == VERBS


def test_a_directory_called_like_a_method_is_a_directory(capsys):
    for arguments in (["demo", "--out", "wlf"], ["demo", "--config", "wlf", "fkc"]):
        assert main([*arguments, "--help"]) == 0
        assert "those of `popflow demo fkc`" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"popflow {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smaple"], "unknown command 'smaple': did you mean 'sample'"),
        (["demos"], "unknown command 'demos': did you mean 'demo'"),
        (["demo", "fkk"], "unknown method 'fkk': did you mean 'fkc'"),
        (["demo", "--sed", "1"], "No such option"),
        (["demo", "--seed", "1.5"], "seed='1.5', wanted an integer"),
        (["demo", "--device", "tpu"], "tpu"),
        (["report"], "RUN"),
        (["demo", "--config", "/no/such/file.json"], "cannot read the configuration /no/such/file.json"),
    ],
)
def test_bad_usage_is_told_once_and_ends_with_2(capsys, arguments, message):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert main([*arguments, "--json"]) == 2
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert answer["ok"] is False
    assert message in answer["error"]["message"]


def test_the_process_ends_with_the_same_codes(tmp_path):
    assert popflow("--version").returncode == 0
    wrong = popflow("demo", "--seed", "x")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    absent = popflow("report", str(tmp_path))
    assert (absent.returncode, absent.stdout) == (2, "")
    assert absent.stderr.startswith(f"error: cannot read {tmp_path}/report.json: No such file")
    assert "Traceback" not in absent.stderr


def test_methods_are_listed_and_broken_plug_ins_told(monkeypatch, capsys):
    from importlib.metadata import EntryPoint

    from popflow import registry

    point = EntryPoint(name="gone", value="no_such_module:METHOD", group=registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert main(["methods"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].startswith("fkc ")
    assert "could not load the plug-in gone" in said.err
    assert main(["methods", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in answer["methods"]][:2] == ["fkc", "superdiff"]
    assert "no_such_module" in answer["broken"]["gone = no_such_module:METHOD"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["demo", "--out", "qhn"], "fkc"),
        (["demo", "--out=x", "qhn"], "qhn"),
        (["demo", "--restarts", "4", "--out", "wlf", "qhn"], "qhn"),
        (["demo", "--quick", "wlf"], "wlf"),
        (["demo", "--json", "--no-quick", "wlf", "--out", "qhn"], "wlf"),
        (["demo", "--", "superdiff"], "superdiff"),
        (["sample", "qhn"], "fkc"),
    ],
)
def test_the_value_of_an_option_is_not_the_method(arguments, name):
    from popflow.cli.app import _demonstrated

    assert _demonstrated(arguments).name == name


@pytest.mark.parametrize("name", ["demo", "doctor", "sample"])
def test_a_package_that_takes_a_name_disturbs_nothing(monkeypatch, capsys, name):
    from importlib.metadata import EntryPoint

    from popflow import registry

    point = EntryPoint(name=name, value="no_such_module:METHOD", group=registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert main([name, "--help"]) == 0
    assert "--out" in capsys.readouterr().out


def test_arguments_that_are_not_text_are_named(capsys):
    assert main(["sample", "--out", "b\udcffd"]) == 2
    assert "the argument 'b\\udcffd' is not UTF-8 text" in capsys.readouterr().err


def test_a_configuration_may_begin_with_a_byte_order_mark(tmp_path):
    from popflow.runs import read_values

    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"steps": 6}')
    assert read_values(tmp_path / "a.json") == {"steps": 6}


def test_lost_metrics_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["sample", "--expert", "zoo:digits-even", "--steps", "2", "--particles", "8", "--runs", "1", "--out", "run"]
    assert main(line) == 0
    (tmp_path / "run" / "metrics.jsonl").write_text("garbage")
    assert main(line) == 1
    assert "metrics.jsonl is damaged: it lacks step 2 of sample" in capsys.readouterr().err


def test_a_warning_is_one_message(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ["--steps", "2", "--particles", "1", "--runs", "1", "--out", "run"]
    assert main(["sample", "--expert", "zoo:digits-even", *size]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "particles=1" in line)
    assert line.startswith("warning: particles=1 with resampling: one particle has nothing to compete with")
