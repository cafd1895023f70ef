"""The run directory: who may open it, what it refuses, and that what is written is whole."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from popflow.core import CheckpointError
from popflow.runs import Measured, Report, Run, RunBusyError, cited
from popflow.runs.run import digest


@dataclass(frozen=True)
class Job:
    beta: float = 1.0
    seed: int = 0


def test_the_same_job_is_gone_on_with(tmp_path):
    with Run.open(tmp_path / "a/b", Job(), job="sample", cite=["@misc{x}"]) as run:
        assert not run.resumed
        run.save("state", {"x": torch.arange(3)}, {"k": 2})
    with Run.open(tmp_path / "a/b", Job(), job="sample") as run:
        assert run.resumed
        tensors, about = run.load("state")
        assert tensors["x"].tolist() == [0, 1, 2]
        assert about == {"k": 2}
    assert json.loads((run.path / "config.json").read_text()) == {"job": "sample", "beta": 1.0, "seed": 0}
    assert cited(run.path) == ["@misc{x}"]


def test_metrics_are_on_disk_before_what_is_saved_after_them(tmp_path, monkeypatch):
    """Checkpoints and reports speak of earlier rows, so a crash of the machine must not take these away."""
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino) or fsync(number))
    with Run.open(tmp_path / "run", Job(), job="sample") as run:
        synced.clear()
        run.metrics.add("sample", 0, {"ess": 1.0})
        run.save("state", {"x": torch.ones(1)})
        run.finish(Report("Done", "Summary."))
    names = {path.stat().st_ino: path.name for path in run.path.iterdir() if path.suffix in (".jsonl", ".safetensors", ".html")}
    order = [names[number] for number in synced if number in names]
    assert order == ["metrics.jsonl", "state.safetensors", "metrics.jsonl", "report.html"]


def test_another_job_is_refused_and_named(tmp_path):
    with Run.open(tmp_path, Job(), job="sample") as run:
        run.save("state", {"x": torch.ones(1)})
    before = {name: (tmp_path / name).read_bytes() for name in ("config.json", "env.json", "log.txt")}
    with pytest.raises(CheckpointError, match=r"beta is 1\.0 there and 2\.0 now.*another --out"):
        Run.open(tmp_path, Job(beta=2.0), job="sample")
    with pytest.raises(CheckpointError, match="job is 'sample' there and 'demo fkc' now"):
        Run.open(tmp_path, Job(), job="demo fkc")
    with pytest.raises(CheckpointError, match=r"beta is 1\.0 there and absent now; seed"):
        Run.open(tmp_path, {}, job="sample")
    with pytest.raises(CheckpointError, match="device is 'cpu' there and 'meta' now"):
        Run.open(tmp_path, Job(), job="sample", device="meta")
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_a_directory_without_results_belongs_to_the_next_job(tmp_path):
    """What a kill leaves before anything was computed locks nothing."""
    Run.open(tmp_path, Job(), job="sample").close()
    with Run.open(tmp_path, Job(beta=2.0), job="sample") as run:
        assert not run.resumed
    assert json.loads((tmp_path / "config.json").read_text())["beta"] == 2.0


@pytest.mark.parametrize(
    ("error", "stays"),
    [(ValueError, False), (FileNotFoundError, False), (CheckpointError, False), (KeyboardInterrupt, False), (RuntimeError, True)],
)
@pytest.mark.parametrize("computed", [False, True])
def test_an_error_of_the_input_before_anything_was_computed_leaves_no_directory(tmp_path, error, stays, computed):
    def job(run):
        if computed:
            run.metrics.add("sample", 0, {"ess": 1.0})
        raise error("the column 'dya' is not there")

    with pytest.raises(error), Run.open(tmp_path / "run", Job(), job="sample") as run:
        job(run)
    assert (tmp_path / "run").exists() is (stays or computed)
    if error is not KeyboardInterrupt and (stays or computed):
        assert "the column 'dya' is not there" in (tmp_path / "run" / "log.txt").read_text()


@dataclass(frozen=True)
class Reading:
    """A job that reads a file, and another one that its text names."""

    cells: Path
    more: str = ""

    def inputs(self):
        return [Path(self.more)] if self.more else []


def test_a_changed_input_is_another_run(tmp_path):
    one, other = tmp_path / "one.csv", tmp_path / "folder"
    one.write_text("1")
    other.mkdir()
    (other / "part").write_text("1")
    config, path = Reading(one, str(other)), tmp_path / "run"
    with Run.open(path, config, job="flow") as run:
        run.save("fit", {"x": torch.ones(1)})
    assert json.loads((path / "config.json").read_text())["inputs"].keys() == {str(one), str(other)}
    with Run.open(path, config, job="flow") as run:
        assert run.resumed
    one.write_text("2")
    with pytest.raises(CheckpointError, match=r"one\.csv changed since that run read it.*another --out"):
        Run.open(path, config, job="flow")
    one.unlink()
    with pytest.raises(CheckpointError, match=r"one\.csv is missing since that run read it"):
        Run.open(path, config, job="flow")
    one.write_text("1")
    (other / "part").rename(other / "renamed")
    with pytest.raises(CheckpointError, match="folder changed since that run read it"):
        Run.open(path, config, job="flow")


def test_foreign_files_are_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"not belong to a run \(thesis.tex\)"):
        Run.open(tmp_path, Job(), job="sample")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_the_configuration_of_another_program_is_foreign(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["UNet"]}')
    with pytest.raises(CheckpointError, match="not belong to a run"):
        Run.open(tmp_path, Job(), job="sample")
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize(("name", "text"), [("env.json", '{"PATH": "/bin"}'), ("env.json", "A=1"), ("env.json", "[]"), ("log.txt", "mine")])
def test_a_lone_file_of_a_name_that_runs_use_is_foreign(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=rf"holds files that do not belong to a run \({name}\)"):
        Run.open(tmp_path, Job(), job="sample")
    assert (tmp_path / name).read_text() == text


def test_a_run_killed_before_its_configuration_was_written_starts_anew(tmp_path):
    Run.open(tmp_path, Job(), job="sample").close()
    for name in ("config.json", "log.txt"):
        (tmp_path / name).unlink()
    with Run.open(tmp_path, Job(), job="sample") as run:
        assert not run.resumed
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("damage", ["", "{", "[]"])
@pytest.mark.parametrize("name", ["config.json", "env.json"])
def test_a_damaged_file_is_named(tmp_path, damage, name):
    Run.open(tmp_path, Job(), job="sample").close()
    (tmp_path / name).write_text(damage)
    with pytest.raises(CheckpointError, match=f"{name}.*restore the file"):
        Run.open(tmp_path, Job(), job="sample")


def test_what_a_kill_left_is_cleared_and_a_kill_before_the_first_write_is_no_run(tmp_path):
    (tmp_path / ".state.safetensors.ab12_x.tmp").write_bytes(b"half")
    with Run.open(tmp_path, Job(), job="sample") as run:
        assert not run.resumed
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json", "env.json", "log.txt"]


def test_two_processes_cannot_have_it(tmp_path):
    held = Run.open(tmp_path, Job(), job="sample")
    other = (
        "import sys; from popflow.runs import Run, RunBusyError\n"
        "try: Run.open(sys.argv[1], {'beta': 1.0, 'seed': 0}, job='sample')\n"
        "except RunBusyError as error: print(error)"
    )

    said = subprocess.run([sys.executable, "-c", other, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert "open in another process" in said
    with pytest.raises(RunBusyError, match=r"wait for it, stop it"):
        Run.open(tmp_path, Job(), job="sample")
    held.close()
    Run.open(tmp_path, Job(), job="sample").close()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write the run directory .*Not a directory.*another --out"):
        Run.open(tmp_path / "file" / "run", Job(), job="sample")


def test_a_folder_without_permission_is_named(tmp_path):
    """Permissions do not bind the superuser, who therefore gives up the privilege first."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    code = (
        "import os, sys; from popflow.core import CheckpointError; from popflow.runs import Run\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: Run.open(sys.argv[1], {}, job='sample')\n"
        "except CheckpointError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(closed)], capture_output=True, text=True, check=True)
    assert f"cannot write the run directory {closed}: Permission denied" in done.stdout


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path):
    """A file-size limit stands for the full disk: the kernel refuses the write either way."""
    code = """
import resource, signal, sys, torch
from popflow.core import CheckpointError
from popflow.runs import Run
with Run.open(sys.argv[1], {}, job="sample") as run:
    run.save("state", {"x": torch.ones(8)}, {"k": 1})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    try:
        run.save("state", {"x": torch.zeros(100000)}, {"k": 2})
    except CheckpointError as error:
        print(error)
    try:
        while True:
            run.metrics.add("sample", len(run.metrics._begun), {"text": "x" * 1000})
    except CheckpointError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout.splitlines()[0]
    assert "state.safetensors" in done.stdout.splitlines()[0]
    assert "metrics.jsonl" in done.stdout.splitlines()[1]
    with Run.open(tmp_path, {}, job="sample") as run:
        tensors, about = run.load("state")
        assert tensors["x"].tolist() == [1.0] * 8
        assert about == {"k": 1}
        assert all(row["text"] == "x" * 1000 for row in run.metrics.rows())
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_a_disk_that_fills_while_the_report_is_written(tmp_path, monkeypatch):
    with Run.open(tmp_path, {}, job="sample") as run:
        run.finish(Report("first", "text"))
        before = (tmp_path / "report.json").read_bytes()

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match=r"report\.json: No space left on device"):
            run.finish(Report("second", "text"))
    assert (tmp_path / "report.json").read_bytes() == before


def test_a_truncated_checkpoint_is_named(tmp_path):
    with Run.open(tmp_path, {}, job="sample") as run:
        file = run.save("state", {"x": torch.ones(100)})
        file.write_bytes(file.read_bytes()[:200])
        with pytest.raises(CheckpointError, match=r"state\.safetensors"):
            run.load("state")


def test_a_report_holds_no_time_and_equal_runs_equal_bytes(tmp_path):
    pages = []
    for name in ("a", "b"):
        with Run.open(tmp_path / name, Job(), job="sample", command="popflow sample") as run:
            run.finish(Report("title", "text", results={"log Z": Measured(1.5, 0.1)}))
        pages.append([(tmp_path / name / file).read_bytes() for file in ("report.json", "report.html", "config.json", "env.json")])
    assert pages[0] == pages[1]


def test_an_unreadable_input_leaves_no_directory(tmp_path):
    with pytest.raises(CheckpointError), Run.open(tmp_path / "run", {"seed": 0}, job="flow"):
        raise CheckpointError("cannot read cells.h5ad")
    assert not (tmp_path / "run").exists()


def test_another_job_is_told_in_one_clause(tmp_path):
    with Run.open(tmp_path / "run", {"seed": 0}, job="flow") as run:
        run.save("fit", {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"another run: job is 'flow' there and 'sample' now\. Fix"):
        Run.open(tmp_path / "run", {"steps": 3}, job="sample")


def test_a_folder_may_hold_names_that_are_not_text(tmp_path):

    (tmp_path / os.fsdecode(b"caf\xe9")).write_text("x")
    assert len(digest(tmp_path)) == 64
