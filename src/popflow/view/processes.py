"""Runs that the page started: each is a `popflow` command in a process of its own."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_TAIL = 8_000
_PATIENCE = 10.0
"""Seconds that runs have to end when the page is closed."""
_PROGRESS = re.compile(r"(.{1,200})  (\d{1,15})/(\d{1,15})")


@dataclass(slots=True)
class Started:
    """A process that was started.

    Attributes:
        command: Its command line.
        process: The process, in a session of its own: Ctrl-C in the terminal of the page does not reach it.
        asked: Whether it was asked to stop.
    """

    command: str
    process: subprocess.Popen[bytes]
    messages: IO[bytes]
    asked: bool = False

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def said(self) -> str:
        """The end of what it wrote to standard error."""
        size = self.messages.seek(0, 2)
        self.messages.seek(max(0, size - _TAIL))
        return self.messages.read(_TAIL).decode("utf-8", "replace")

    def progress(self) -> tuple[str, int, int] | None:
        """The last line of progress: stage, done, total."""
        found = [match for line in self.said().splitlines() if (match := _PROGRESS.fullmatch(line))]
        return (found[-1][1], int(found[-1][2]), int(found[-1][3])) if found else None


class Processes:
    """The processes by the folder of their run.

    Example:
        >>> processes, folder = Processes(), Path("run")
        >>> started = processes.start(["--version"], folder)
        >>> started.command, started.process.wait(), processes.running(folder)
        ('popflow --version', 0, False)
    """

    def __init__(self) -> None:
        self.started: dict[Path, Started] = {}

    def start(self, arguments: Sequence[str], folder: Path) -> Started:
        """Start a command whose run is in a folder.

        Raises:
            ValueError: when one that was started here still runs there.
        """
        if self.running(folder):
            raise ValueError(f"{folder.name} is running. Fix: stop it first, or give another folder.")
        messages = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "-m", "popflow.cli.app", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            start_new_session=True,
        )
        self.started[folder] = Started(shlex.join(["popflow", *arguments]), process, messages)
        return self.started[folder]

    def find(self, folder: Path) -> Started | None:
        """The process that was started last for a folder."""
        return self.started.get(folder)

    def running(self, folder: Path) -> bool:
        """Whether a process that was started here runs for a folder."""
        return folder in self.started and self.started[folder].running

    def stop(self, folder: Path) -> None:
        """Interrupt a run, as Ctrl-C does; asked again, end it at once. It can be resumed either way.

        Raises:
            ValueError: when no process that was started here runs there.
        """
        one = self.find(folder)
        if one is None or not one.running:
            raise ValueError(f"no process that this page started runs in {folder.name}. Fix: stop it where it was started.")
        _end(one, at_once=one.asked)
        one.asked = True

    def close(self) -> None:
        """Interrupt all that runs, and end what has not ended by itself soon after."""
        left = [one for one in self.started.values() if one.running]
        for one in left:
            _end(one)
        until = time.monotonic() + _PATIENCE
        for one in left:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0.0, until - time.monotonic()))
            if one.running:
                _end(one, at_once=True)
                one.process.wait()


def _end(one: Started, *, at_once: bool = False) -> None:
    if at_once or sys.platform == "win32":
        one.process.kill()
    else:
        one.process.send_signal(signal.SIGINT)
