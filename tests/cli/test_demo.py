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
from popflow.cli.output import ProgressLine

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
    assert "tempering From the package popflow-tempering." in " ".join(capsys.readouterr().out.split())
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
    assert main(["demo", "tempering", "--quick", "--seed", "1", "--out", "a"]) == 2
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


@pytest.mark.usefixtures("plugin")
def test_only_a_checkpoint_that_can_be_read_is_promised(capsys, monkeypatch, tmp_path):
    arguments = ["demo", "tempering", "--quick", "--out", "a"]

    def interrupted_at(step):
        def progress(self, stage, done, total):
            if done == step:
                raise KeyboardInterrupt

        return progress

    for step, promise in ((2, "starts anew"), (7, "resumes from the last checkpoint")):
        monkeypatch.setattr(ProgressLine, "__call__", interrupted_at(step))
        assert main(arguments) == 1
        assert capsys.readouterr().err.endswith(f"error: interrupted; the same command {promise}\n")
    (tmp_path / "a" / "temper.safetensors").write_bytes(b"damaged")
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "cannot read a/temper.safetensors as safetensors" in said
    assert "resumes" not in said


@pytest.mark.usefixtures("plugin")
def test_sizes_beyond_memory_are_named(capsys, tmp_path):
    """Memory of 8 PB lies beyond what a processor can address."""
    assert main(["demo", "tempering", "--particles", str(10**15), "--steps", "3", "--out", "a"]) == 1
    said = capsys.readouterr().err
    assert "Fix: lower the sizes; the largest are particles=1000000000000000, steps=3.\nTraceback: a/log.txt.\n" in said
    assert main(["demo", "tempering", "--particles", str(2**63), "--out", "b"]) == 2
    assert "particles=9223372036854775808, wanted an integer below 2^63" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.usefixtures("plugin")
def test_a_directory_that_cannot_serve_is_bad_usage(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    for out, message in (("file/run", "cannot write the run directory"), ("thesis", "do not belong to a run")):
        assert main(["demo", "tempering", "--quick", "--out", out]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("plugin")
def test_paths_are_quoted_where_they_are_to_be_typed(capsys):
    assert main(["demo", "tempering", "--quick", "--out", "my run"]) == 0
    assert "Next   popflow cite 'my run'" in capsys.readouterr().out
    assert main(["report", "my run"]) == 0
    assert "Next   popflow cite 'my run'" in capsys.readouterr().out
    assert main(["demo", "tempering", "--quick", "--seed", "1", "--out", "my run"]) == 2
    assert "--config 'my run/config.json' to resume that one" in capsys.readouterr().err
    assert main(["tempering", "--config", "my run/config.json"]) == 2
    assert "give `popflow demo tempering --config 'my run/config.json'`" in capsys.readouterr().err


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
    for verb, message in (("cite", "elsewhere is not a run directory"), ("report", "cannot read elsewhere/report.json")):
        assert main([verb, "elsewhere"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("plugin")
def test_a_gpu_that_is_not_there_is_bad_usage(capsys, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: nothing to refuse")
    assert main(["demo", "tempering", "--device", "cuda", "--out", "a"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
