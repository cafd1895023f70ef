"""`demo`, `report` and `cite` on a method that a package adds: runs, resumes after a kill, and fails in words."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from popflow.cli.app import main

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture
def plugin(monkeypatch, tmp_path):
    """The package installed beside popflow, and a working directory of its own."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.chdir(tmp_path)


def start(*arguments, pause="0"):
    path = os.pathsep.join([str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "popflow.cli.app", *arguments],
        env={**os.environ, "PYTHONPATH": path, "TEMPERING_PAUSE": pause},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


FILES = ("config.json", "env.json", "metrics.jsonl", "temper.safetensors", "samples.safetensors", "report.json", "report.html")


@pytest.mark.usefixtures("plugin")
def test_it_runs_prints_and_says_what_to_do_next(capsys, tmp_path):
    assert main(["demo", "tempering", "--seed", "3", "--quick"]) == 0
    said = capsys.readouterr()
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("demo-tempering-")
    assert "Criterion met: log Z =" in said.out
    assert "truth         -0.6931" in said.out
    assert f"Wrote  runs/{folder.name}/report.html" in said.out
    assert f"Next   popflow cite runs/{folder.name}" in said.out
    assert "temper  40/40" in said.err
    assert {file.name for file in folder.iterdir()} == {*FILES, "log.txt", ".lock"}
    content = json.loads((folder / "report.json").read_text())
    assert content["run"]["environment"]["command"] == "popflow demo tempering --seed 3 --quick"
    assert content["run"]["config"]["seed"] == 3
    assert content["run"]["config"]["quick"] is True


@pytest.mark.usefixtures("plugin")
def test_json_alone_is_on_standard_output(capsys):
    assert main(["demo", "tempering", "--quick", "--json", "--out", "here"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert answer["out"] == "here"
    assert answer["verdict"]["passed"] is True
    assert abs(answer["results"]["log Z"]["value"] - answer["results"]["log Z (truth)"]["value"]) < 0.2
    assert "data:image" not in json.dumps(answer)


@pytest.mark.usefixtures("plugin")
def test_the_same_command_goes_on_and_changes_nothing(capsys, tmp_path):
    arguments = ["demo", "tempering", "--quick", "--out", "here"]
    assert main(arguments) == 0
    before = {name: (tmp_path / "here" / name).read_bytes() for name in FILES}
    assert main(arguments) == 0
    assert "Resuming in here" in capsys.readouterr().err
    assert before == {name: (tmp_path / "here" / name).read_bytes() for name in FILES}


@pytest.mark.usefixtures("plugin")
def test_a_configuration_is_accepted_back_and_options_win(capsys, tmp_path):
    (tmp_path / "mine.json").write_text('{"precision": 9, "particles": 64}')
    assert main(["demo", "tempering", "--config", "mine.json", "--seed", "5", "--out", "a"]) == 0
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["job"] == "demo tempering"
    assert (config["precision"], config["seed"]) == (9.0, 5)
    assert main(["demo", "tempering", "--config", "a/config.json", "--out", "b"]) == 0
    for name in ("config.json", "metrics.jsonl", "samples.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    capsys.readouterr()
    assert main(["demo", "fkc", "--config", "a/config.json"]) in (1, 2)
    assert "'demo tempering', wanted 'demo fkc'" in capsys.readouterr().err


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"precison": 9}', "unknown key of Tempering 'precison': did you mean 'precision'"),
        ('{"steps": "many"}', "steps='many', wanted an integer"),
        ('{"particles": 1}', "particles=1, wanted an integer >= 2"),
        ("{", "mine.json is not JSON"),
    ],
)
def test_wrong_configurations_are_bad_usage_and_leave_no_directory(capsys, tmp_path, content, message):
    (tmp_path / "mine.json").write_text(content)
    assert main(["demo", "tempering", "--config", "mine.json", "--out", "a"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("plugin")
def test_the_package_has_a_verb_of_its_own(capsys, tmp_path):
    """One file of another package: a verb with its options, a demo with the same, a report, a line of `popflow methods`."""
    assert main(["--help"]) == 0
    assert "tempering  From the package popflow-tempering." in capsys.readouterr().out
    for verb in (["tempering"], ["demo", "tempering"]):
        assert main([*verb, "--help"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "--precision NUMBER Precision of the last distribution. [default: 4.0; range: > 0]" in said
    assert main(["tempering", "--quick", "--precision", "9", "--out", "a"]) == 0
    assert "truth         -1.099" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "config.json").read_text())["job"] == "tempering"
    assert main(["tempering", "--precison", "9"]) == 2
    assert "--precision" in capsys.readouterr().err
    assert main(["tempering", "--precision", "-1", "--out", "b"]) == 2
    assert "precision=-1.0, wanted a number > 0" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert main(["cite", "a"]) == 0
    assert capsys.readouterr().out.startswith("@misc{neal1998annealed")
    assert main(["methods"]) == 0
    assert "tempering  Tempering between two normal distributions." in capsys.readouterr().out


@pytest.mark.usefixtures("plugin")
def test_another_run_in_the_directory_is_a_failure_in_words(capsys):
    assert main(["demo", "tempering", "--quick", "--out", "a"]) == 0
    capsys.readouterr()
    assert main(["demo", "tempering", "--quick", "--seed", "1", "--out", "a"]) == 1
    assert "a holds another run: seed is 0 there and 1 now" in capsys.readouterr().err


@pytest.mark.usefixtures("plugin")
def test_a_failure_is_one_message_and_its_traceback_is_in_the_log(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPERING_FAILS", "1")
    assert main(["demo", "tempering", "--out", "a", "--json"]) == 1
    said = capsys.readouterr()
    assert "error: NotImplementedError: asked to fail" in said.err
    assert "Traceback: a/log.txt" in said.err
    assert "File " not in said.err
    assert json.loads(said.out)["error"]["type"] == "NotImplementedError"
    assert "raise NotImplementedError" in (tmp_path / "a" / "log.txt").read_text()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch, how):
    arguments = ["demo", "tempering", "--quick", "--out", "run"]
    monkeypatch.chdir(tmp_path)
    killed = start(*arguments, pause="0.02")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 8):
        time.sleep(0.02)
    killed.send_signal(how)
    _, error = killed.communicate(timeout=900)
    assert killed.returncode == (1 if how is signal.SIGINT else -signal.SIGKILL)
    if how is signal.SIGINT:
        assert "error: interrupted; the same command resumes" in error
        assert "File " not in error
    assert not (tmp_path / "run" / "report.json").exists()
    assert 8 <= metrics.read_bytes().count(b"\n") < 41
    resumed = start(*arguments)
    assert resumed.wait(timeout=900) == 0
    assert re.search(r"temper: resuming from step [1-9]", (tmp_path / "run" / "log.txt").read_text())
    found = {name: (tmp_path / "run" / name).read_bytes() for name in FILES}
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    assert start(*arguments).wait(timeout=900) == 0
    assert found == {name: (other / "run" / name).read_bytes() for name in FILES}


@pytest.mark.usefixtures("plugin")
def test_report_and_cite(capsys, tmp_path):
    assert main(["demo", "tempering", "--quick", "--out", "a"]) == 0
    page = (tmp_path / "a" / "report.html").read_bytes()
    (tmp_path / "a" / "report.html").unlink()
    capsys.readouterr()
    assert main(["report", "a"]) == 0
    assert "Wrote  a/report.html" in capsys.readouterr().out
    assert (tmp_path / "a" / "report.html").read_bytes() == page
    assert main(["report", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "html": "a/report.html"}
    assert main(["cite", "a"]) == 0
    assert capsys.readouterr().out.startswith("@misc{neal1998annealed")
    assert main(["cite", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cite"][0].startswith("@misc{neal1998annealed")
    assert main(["cite", "elsewhere"]) == 1
    assert "elsewhere is not a run directory" in capsys.readouterr().err


@pytest.mark.usefixtures("plugin")
def test_a_gpu_that_is_not_there_is_bad_usage(capsys, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: nothing to refuse")
    assert main(["demo", "tempering", "--device", "cuda", "--out", "a"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
