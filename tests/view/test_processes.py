"""Processes of the page: what they say, how they are stopped, and that none is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import popflow.view.processes as module
from popflow.view.processes import Processes

POLITE = """trap 'echo "error: interrupted" >&2; exit 1' INT"""
STUBBORN = "trap '' INT"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script in the place of Python: it tells its progress and goes on until it is stopped."""

    def command(trap: str) -> None:
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{trap}\necho 'fit  3/10' >&2\nwhile :; do sleep 0.05; done\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return command


def until(told: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not told():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_process_is_interrupted_and_only_one_runs_in_a_folder(command):
    command(POLITE)
    processes, folder = Processes(), Path("runs/a")
    started = processes.start(["demo", "fkc", "--out=a b"], folder)
    assert started.command == "popflow demo fkc '--out=a b'"
    until(started.progress)
    assert started.progress() == ("fit", 3, 10)
    with pytest.raises(ValueError, match="a is running"):
        processes.start(["demo", "fkc"], folder)
    processes.stop(folder)
    assert started.process.wait(60) == 1
    assert started.said() == "fit  3/10\nerror: interrupted\n"
    with pytest.raises(ValueError, match="stop it where it was started"):
        processes.stop(folder)
    again = processes.start(["demo", "fkc"], folder)
    assert processes.find(folder) is again
    processes.close()
    assert not again.running


def test_one_that_does_not_listen_is_ended_when_asked_again(command):
    command(STUBBORN)
    processes, folder = Processes(), Path("runs/a")
    started = processes.start([], folder)
    until(started.progress)
    processes.stop(folder)
    time.sleep(0.2)
    assert started.running
    assert started.asked
    processes.stop(folder)
    assert started.process.wait(60) == -9


def test_closing_leaves_none(command, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.3)
    command(STUBBORN)
    processes = Processes()
    several = [processes.start([], Path(f"runs/{i}")) for i in range(3)]
    until(lambda: all(one.progress() for one in several))
    processes.close()
    assert [one.process.returncode for one in several] == [-9, -9, -9]


def test_a_long_message_is_cut(command):
    command("i=0; while [ $i -lt 400 ]; do echo '0123456789012345678901234567890123456789' >&2; i=$((i+1)); done")
    processes, folder = Processes(), Path("runs/a")
    started = processes.start([], folder)
    until(started.progress)
    assert len(started.said()) == 8_000
    processes.stop(folder)
    processes.close()
