"""Calls that can be ended: each worker hands them to a process of its own, which is killed when a call takes too long.

joblib ends all calls in flight when one of them takes too long or brings its worker down. Here a call that hangs, even in compiled code that never gives
the interpreter back, or that kills its process, ends alone, under every backend (threads and the calling process included). The process stays for the
next calls of the same function, so it is started once for each worker.

What a worker says to such a process is pickled: a function can be sent in no other way, and the process that hears it is the worker's own child. What the process
answers is one line of JSON, the number of the turn and an `Outcome`, and is never unpickled: an objective that writes where it should not, itself or by
compiled code, is an error of its call, and does nothing to the run.

This module runs in the workers, and imports no torch.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from popflow.runs.outcomes import KINDS, Outcome, ask

BACKSTOP = 2.0
"""Seconds after its limit at which a process ends by itself, because the one that should have ended it is gone."""

ORPHAN_CHECK = 0.5
"""Seconds between two looks of a worker at whether the run still lives."""

_LOADED: dict[str, Portable] = {}
_IDLE: list[_Process] = []


class Portable:
    """A function on its way to workers: pickled once, by value where it cannot be imported, and unpickled once in each worker.

    Attributes:
        function: The function.
        name: Unique to this object.
    """

    def __init__(self, function: Callable[[Any], Any], name: str | None = None, content: bytes | None = None):
        self.function, self.name, self._content = function, name or uuid.uuid4().hex, content

    def content(self) -> bytes:
        """Return the pickled function.

        Raises:
            TypeError: when it cannot be pickled.
        """
        if self._content is None:
            import cloudpickle

            try:
                self._content = cloudpickle.dumps(self.function)
            except Exception as error:
                raise TypeError(
                    f"the objective cannot be sent to another process: {type(error).__name__}: {error}. Fix: define it at the top of a module, make "
                    "what it holds (locks, connections, open files) inside the call, or use one worker or backend='threading', without a timeout."
                ) from error
        return self._content

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self.name, self.content())


def load(name: str, content: bytes) -> Portable:
    """Return the function of a `Portable`, unpickled at the first time."""
    if name not in _LOADED:
        if not _LOADED:
            threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        _LOADED.clear()
        _LOADED[name] = Portable(pickle.loads(content), name, content)
    return _LOADED[name]


def call(number: int, function: Portable, item: Any, values: int | None, timeout: float | None, alone: bool) -> tuple[int, Outcome]:
    """Make one call in a worker: in the worker itself, or in its own process when there is a timeout or it shall be alone.

    Args:
        number: Given back, to tell calls apart that finish in any order.
        function: The function.
        item: Its input.
        values: Numbers that it returns; None for a single one.
        timeout: Seconds allowed; None for any number.
        alone: Whether the call must not be able to bring the worker down.
    """
    if timeout is None and not alone:
        return number, ask(function.function, item, values)
    process = next((one for one in list(_IDLE) if one.name == function.name and _take(one)), None)
    try:
        process = process or _Process(function)
        outcome = process.ask(item, values, timeout)
    except _Ended as ended:
        return number, ended.outcome
    except BaseException:
        if process is not None:
            process.kill()
        raise
    if process.alive():
        _IDLE.append(process)
    return number, outcome


def _end_with_parent(parent: int) -> None:
    """End a worker whose run was killed, with the call it is making; joblib's own workers would stay for five minutes."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK)
    os._exit(1)


@atexit.register
def _end_idle() -> None:
    for process in list(_IDLE):
        if _take(process):
            process.kill()


def _take(process: _Process) -> bool:
    try:
        _IDLE.remove(process)
    except ValueError:  # another thread has it
        return False
    return process.alive()


class _Ended(Exception):
    """The process ended before it answered."""

    def __init__(self, outcome: Outcome):
        super().__init__(outcome.message)
        self.outcome = outcome


class _Process:
    """A Python process that makes calls of one function, one after another."""

    def __init__(self, function: Portable):
        self.name = function.name
        content = function.content()
        for old in [one for one in list(_IDLE) if one.name != self.name]:
            if _take(old):
                old.kill()
        code = f"import sys; sys.path[:] = {sys.path!r}; from popflow.runs.isolation import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._turn = 0
        self._say(content)
        loaded = self._hear()
        if loaded.kind == "error":
            self.kill()
            raise _Ended(Outcome("error", message=f"the objective cannot be loaded: {loaded.message}"))

    def alive(self) -> bool:
        """Say whether it can take another call."""
        return self._process.poll() is None

    def ask(self, item: Any, values: int | None, timeout: float | None) -> Outcome:
        """Make one call; the process is killed when it takes too long."""
        start, late = time.perf_counter(), threading.Event()

        def end() -> None:
            late.set()
            self.kill()

        timer = None if timeout is None else threading.Timer(timeout, end)
        try:
            if timer is not None:
                timer.start()
            self._say((item, values, timeout))
            return self._hear()
        except _Ended as ended:
            seconds = time.perf_counter() - start
            message = f"ended after {timeout:g} s" if late.is_set() else ended.outcome.message
            raise _Ended(Outcome("timeout" if late.is_set() else "error", message=message, seconds=seconds)) from None
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()

    def kill(self) -> None:
        """End it, with the processes that it started."""
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()

    def _say(self, message: Any) -> None:
        import cloudpickle

        assert self._process.stdin is not None
        content = cloudpickle.dumps(message)
        with contextlib.suppress(BrokenPipeError):  # it is dead: hearing will tell
            self._process.stdin.write(content)
            self._process.stdin.flush()

    def _hear(self) -> Outcome:
        """Read the answer of this turn; the process is killed when it gives none, or anything else."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            turn, kind, value, message, seconds = json.loads(line)
            if turn != self._turn or kind not in KINDS:
                raise ValueError
            self._turn += 1
            return Outcome(kind, tuple(map(float, value)) if isinstance(value, list) else value, str(message), float(seconds))
        except (ValueError, TypeError):
            self.kill()
        code = self._process.returncode
        how = f"died (signal {signal.Signals(-code).name})" if code < 0 else f"died (exit code {code})"
        if line.endswith(b"\n"):
            how = f"answered {line[:40]!r}, which is no outcome of this call. Fix: write to no file descriptor that was not opened"
        raise _Ended(Outcome("error", message=f"the process of the objective {how}"))


def serve() -> None:
    """Answer calls on standard input until it ends; what the objective prints goes to standard error."""
    hear, say = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    silent = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    function: Callable[[Any], Any] | None = None
    for turn in itertools.count():
        try:
            message = pickle.load(hear)
        except EOFError:
            return
        if turn == 0:
            try:
                function, answer = pickle.loads(message), Outcome("value")
            except Exception as error:
                answer = Outcome("error", message=f"{type(error).__name__}: {error}")
        else:
            assert function is not None
            item, values, timeout = message
            if timeout is not None:
                faulthandler.dump_traceback_later(timeout + BACKSTOP, exit=True, file=silent)
            answer = ask(function, item, values)
            faulthandler.cancel_dump_traceback_later()
        say.write(json.dumps([turn, answer.kind, answer.value, answer.message, answer.seconds]).encode() + b"\n")
        say.flush()
