"""The run directory: the files of a long job, intact after any crash, from which it resumes.

    config.json        the job, its configuration and digests of the files it reads; accepted back by --config
    env.json           versions, device, seed, command line
    metrics.jsonl      one JSON object per recorded step, the same bytes whether or not the job was interrupted
    *.safetensors      checkpoints and results
    report.html/.json  what came out
    log.txt            wall-clock times, messages, tracebacks

Nothing is pickled. One process at a time may have a run open. A directory belongs to its job once something was computed. A job that fails
before that, on its configuration or its input, leaves no directory; the directory of one that is killed that early is taken over by the next job.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from popflow.core.checkpoint import load_tensors, save_tensors, write_atomic
from popflow.core.errors import CheckpointError, RunDirectoryError
from popflow.core.locks import lock
from popflow.runs.config import ConfigError, inputs, plain, read_values
from popflow.runs.metrics import Metrics
from popflow.runs.report import Report, render

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``: called as a job proceeds."""

_LOCK = ".lock"
_INPUT_ERRORS = (ValueError, TypeError, LookupError, OSError, ImportError, CheckpointError, KeyboardInterrupt)
_BEFORE_RESULTS = {_LOCK, "config.json", "env.json", "log.txt"}
_LEFT_BY_A_KILL = re.compile(r"\.(?:[\w.-]+\.(?:json|jsonl|html|safetensors))\.\w+\.tmp")


class RunBusyError(CheckpointError):
    """Another process has this run directory, or this ledger, open."""


def identity(job: str, config: Any) -> dict[str, Any]:
    """Return what identifies a run: job, configuration, and the SHA-256 of every file and folder that it reads.

    Raises:
        ConfigError: when one of them exists and cannot be read.

    >>> identity("sample", {"steps": 3})
    {'job': 'sample', 'steps': 3}
    """
    try:
        digests = {str(path): digest(path) for path in inputs(config) if path.exists()}
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}. Fix: give a file that can be read.") from error
    return {"job": job, **plain(config), **({"inputs": digests} if digests else {})}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files in a folder.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.txt"
    >>> _ = file.write_text("abc")
    >>> digest(file)[:8]
    'ba7816bf'
    """
    if path.is_dir():
        names = sorted(str(one.relative_to(path)) for one in path.rglob("*") if one.is_file())
        return hashlib.sha256("".join(f"{name}\0{digest(path / name)}\n" for name in names).encode(errors="surrogateescape")).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(slots=True)
class Run:
    """An open run directory; a context manager that releases it at the end.

    Attributes:
        path: The directory.
        job: What runs, such as ``"demo fkc"`` or ``"sample"``; part of the identity of the run.
        config: The configuration as JSON holds it; the rest of the identity.
        device: Where the job computes.
        cite: BibTeX entries of what the job uses.
        command: The command line that started it, or None from Python.
        progress: Told of every step.
        resumed: Whether the directory held this run already.
        metrics: The file ``metrics.jsonl``.

    Example:
        >>> import tempfile
        >>> from popflow.runs import Run
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> with Run.open(folder, {"beta": 1.0}, job="sample") as run:
        ...     _ = run.save("result", {"x": torch.ones(2)})
        >>> with Run.open(folder, {"beta": 1.0}, job="sample") as run:
        ...     run.resumed, run.load("result")[0]["x"].tolist()
        (True, [1.0, 1.0])
        >>> Run.open(folder, {"beta": 2.0}, job="sample")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        popflow.core.errors.RunDirectoryError: ... holds another run: beta is 1.0 there and 2.0 now. ...
    """

    path: Path
    job: str
    config: dict[str, Any]
    device: torch.device
    cite: tuple[str, ...]
    command: str | None
    progress: Progress
    resumed: bool
    metrics: Metrics = field(init=False)
    _lock: IO[str] | None = field(repr=False, default=None)

    @staticmethod
    def open(
        path: str | Path | None,
        config: Any,
        *,
        job: str,
        device: torch.device | str = "cpu",
        cite: Sequence[str] = (),
        command: str | None = None,
        progress: Progress | None = None,
    ) -> Run:
        """Make the run directory, or open the one of the same job and configuration to resume it.

        Args:
            path: The directory; absent, empty, or a run of the same job, configuration and device. None for ``runs/JOB-DIGEST``, by a digest of what
                identifies the run.
            config: A frozen dataclass (or a mapping) of what `popflow.runs.config.plain` accepts.
            job: What runs.
            device: Where it computes.
            cite: BibTeX entries.
            command: The command line, for the report.
            progress: Told of every step.

        Raises:
            RunDirectoryError: when the directory holds another run (naming the differing keys) or foreign files, or cannot be written.
            CheckpointError: when its ``config.json`` or ``env.json`` is damaged.
            RunBusyError: when another process has it open.
        """
        device, values, known = torch.device(device), plain(config), identity(job, config)
        if path is None:
            path = Path("runs") / f"{job.replace(' ', '-')}-{hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]}"
        path = Path(path)
        claim = _claim(path)
        try:
            resumed = _identify(path, known, device)
            run = Run(path, job, values, device, tuple(cite), command, progress or (lambda stage, done, total: None), resumed, claim)
            run.metrics = Metrics(path / "metrics.jsonl")
            for name in os.listdir(path):
                if _LEFT_BY_A_KILL.fullmatch(name):
                    (path / name).unlink(missing_ok=True)
            if resumed:
                before = read_values(path / "env.json").get("versions")
                if before != run.environment()["versions"]:
                    run.log(f"versions differ from those it began with: {before} then, {run.environment()['versions']} now")
            else:
                write_atomic(path / "env.json", _json({**run.environment(), "cite": run.cite}))
                write_atomic(path / "config.json", _json(known))
            run.log(f"{'resumed' if resumed else 'started'} {job}; {command or 'from Python'}")
        except BaseException:
            claim.close()
            raise
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.log("interrupted")
        elif error is not None:
            self.log("".join(traceback.format_exception(error)))
        if isinstance(error, _INPUT_ERRORS) and not _results(self.path):
            for name in _BEFORE_RESULTS:
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
        self.close()

    def close(self) -> None:
        """Release the directory."""
        self.metrics.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def log(self, text: str) -> None:
        """Add a line with the time to ``log.txt``; a failure to write it is ignored."""
        with contextlib.suppress(OSError), open(self.path / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text.rstrip()}\n")

    def save(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> Path:
        """Write named tensors to ``NAME.safetensors`` atomically; earlier metrics are on disk first."""
        self.metrics.sync()
        return save_tensors(self.path / f"{name}.safetensors", tensors, about)

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read tensors and description of ``NAME.safetensors``."""
        return load_tensors(self.path / f"{name}.safetensors")

    def has(self, name: str) -> bool:
        """Say whether ``NAME.safetensors`` exists."""
        return (self.path / f"{name}.safetensors").exists()

    def finish(self, report: Report) -> Path:
        """Write ``report.json`` and ``report.html``, and return the path of the latter."""
        self.metrics.sync()
        content = {
            "run": {
                "job": self.job,
                "config": self.config,
                "environment": self.environment(),
                "cite": list(self.cite),
            },
            "report": report.plain(),
        }
        write_atomic(self.path / "report.json", _json(content))
        html = write_atomic(self.path / "report.html", render(content))
        self.log(f"done; {html}")
        return html

    def environment(self) -> dict[str, Any]:
        """Return what the numbers may depend on besides the configuration: versions, device, threads, seed, command line."""
        from importlib.metadata import PackageNotFoundError, version

        def found(name: str) -> str | None:
            try:
                return version(name)
            except PackageNotFoundError:
                return None

        versions = {name: found(name) for name in ("popflow", "torch", "numpy")}
        return {
            "versions": {"python": platform.python_version(), **{name: one for name, one in versions.items() if one}},
            "platform": f"{platform.system()} {platform.machine()}",
            "device": str(self.device),
            "gpu": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None,
            "threads": torch.get_num_threads(),
            "seed": self.config.get("seed"),
            "command": self.command,
        }


def cited(path: str | Path) -> list[str]:
    """Return the BibTeX entries of a run, finished or not.

    Raises:
        RunDirectoryError: when the directory is not a run.
    """
    try:
        entries = read_values(Path(path) / "env.json")["cite"]
    except (ConfigError, KeyError) as error:
        raise RunDirectoryError(f"{path} is not a run directory: it has no readable env.json. Fix: give the directory of a run.") from error
    return [str(entry) for entry in entries]


def _claim(path: Path) -> IO[str]:
    """Make the directory and take its lock, which is released when the process ends, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        held = _foreign(path)
        if held:
            raise RunDirectoryError(
                f"{path} holds files that do not belong to a run ({', '.join(held[:3])}{', ...' if len(held) > 3 else ''}), wanted an empty or new "
                "directory, or a run to resume. Fix: give another --out."
            )
        file = open(path / _LOCK, "a", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise RunDirectoryError(f"cannot write the run directory {path}: {error.strerror or error}. Fix: give another --out.") from error
    try:
        held_by_us = lock(file)
    except OSError as error:
        file.close()
        raise RunDirectoryError(f"cannot lock the run directory {path}: {error.strerror or error}. Fix: give another --out.") from error
    if not held_by_us:
        file.close()
        raise RunBusyError(f"{path} is open in another process. Fix: wait for it, stop it (the run can be resumed), or give another --out.")
    return file


def _foreign(path: Path) -> list[str]:
    """Return the files of a directory that is not a run; none when it is new, empty or a run (a damaged one too)."""
    names = sorted(name for name in os.listdir(path) if name != _LOCK and not _LEFT_BY_A_KILL.fullmatch(name))
    if "config.json" in names:
        with contextlib.suppress(ConfigError):
            return [] if isinstance(read_values(path / "config.json").get("job"), str) else names
        return []
    if names == ["env.json"]:  # written before config.json: all that a run leaves which was killed between the two
        with contextlib.suppress(ConfigError):
            return [] if {"versions", "device"} <= read_values(path / "env.json").keys() else names
    return names


def _results(path: Path) -> list[str]:
    """Names of what a job has computed in a run directory."""
    return [name for name in os.listdir(path) if name not in _BEFORE_RESULTS and not _LEFT_BY_A_KILL.fullmatch(name)]


def _identify(path: Path, known: Mapping[str, Any], device: torch.device) -> bool:
    """Say whether the directory already holds this job; refuse one that holds results of another."""
    if not (path / "config.json").exists():
        return False
    try:
        there = read_values(path / "config.json")
        environment = read_values(path / "env.json")
    except ConfigError as error:
        raise CheckpointError(f"{error} The run in {path} cannot be identified: restore the file or give another --out.") from error
    now = {**json.loads(_json(known)), "device": str(device)}
    there["device"] = environment.get("device")
    keys = dict.fromkeys([*there, *now]) if there.get("job") == now["job"] else ["job"]
    differing = [_difference(key, there, now) for key in keys if there.get(key, ...) != now.get(key, ...)]
    if differing and _results(path):
        raise RunDirectoryError(
            f"{path} holds another run: {'; '.join(differing)}. Fix: give another --out, or --config {shlex.quote(str(path / 'config.json'))} to resume that one."
        )
    return not differing


def _difference(key: str, there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if key == "inputs":
        before, after = (values.get(key, {}) for values in (there, now))
        changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        return ", ".join(f"{name} {'changed' if name in after else 'is missing'} since that run read it" for name in sorted(changed))
    return f"{key} is {_show(there, key)} there and {_show(now, key)} now"


def _show(values: Mapping[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "absent"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _json(content: Any) -> str:
    return json.dumps(plain(content), indent=1, ensure_ascii=False) + "\n"
