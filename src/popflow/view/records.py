"""What the page says of a run, from its files and from the process that was started for it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popflow.core.locks import locked
from popflow.view.folders import is_run, key_of, open_file, read_file, stamps, text
from popflow.view.processes import Processes

_JSON, _REPORT, _LOG = 2**20, 32 * 2**20, 16_000
_ENTRY = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", re.MULTILINE)
_FACTS = ("device", "gpu", "threads", "platform", "seed", "command")


@dataclass(slots=True)
class Record:
    """The files of a run that say what it is; each is read again when it has changed."""

    folder: Path
    _seen: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)

    def values(self, name: str, limit: int = _JSON, keep: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> dict[str, Any]:
        """The JSON object in a file, or what is to be kept of it; empty when there is none that can be read."""
        stamp = stamps(self.folder).get(name)
        if stamp is None:
            return {}
        if name not in self._seen or self._seen[name][0] != stamp:
            try:
                found = json.loads(read_file(self.folder, name, limit))
            except (OSError, ValueError, RecursionError):
                found = {}
            self._seen[name] = (stamp, keep(found) if isinstance(found, dict) else {})
        return self._seen[name][1]

    def verdict(self) -> dict[str, Any] | None:
        """What the report of the run says of its criterion."""
        return self.values("report.json", _REPORT, _verdict) or None

    def log(self) -> str:
        """The end of log.txt."""
        try:
            return text(read_file(self.folder, "log.txt", _LOG, tail=True).decode("utf-8", "replace"), _LOG)
        except OSError:
            return ""


def summary(record: Record, name: str, processes: Processes) -> dict[str, Any]:
    """One line of the list of runs, for JSON."""
    folder, started = record.folder, processes.find(record.folder)
    config, environment = record.values("config.json"), record.values("env.json")
    state, why = state_of(record, processes)
    changed = max((stamp[0] for stamp in stamps(folder).values()), default=0)
    return {
        "key": key_of(folder),
        "name": name,
        "job": text(config.get("job", ""), 100),
        "seed": text(environment["seed"], 30) if environment.get("seed") is not None else "",
        "state": state,
        "why": why,
        "ours": processes.running(folder),
        "stopping": started is not None and started.running and started.asked,
        "process": started.process.pid if started is not None and started.running else None,
        "progress": started.progress() if started is not None and started.running else None,
        "changed": changed / 1e9,
        "report": "report.html" in stamps(folder),
    }


def detail(record: Record, processes: Processes) -> dict[str, Any]:
    """All that the page says of a run besides its curves and populations, for JSON."""
    config, environment, started = record.values("config.json"), record.values("env.json"), processes.find(record.folder)
    versions = environment.get("versions")
    facts = {name: environment[name] for name in _FACTS if environment.get(name) is not None}
    return {
        "folder": text(record.folder),
        "settings": [[text(name, 100), _setting(value)] for name, value in list(config.items())[:300] if name != "inputs"],
        "verdict": record.verdict(),
        "environment": [
            [text(name, 100), text(value)] for name, value in (facts | (versions if isinstance(versions, dict) else {})).items()
        ],
        "log": record.log(),
        "messages": text(started.said(), 8_000) if started is not None else "",
        "command": started.command if started is not None else "",
    }


def state_of(record: Record, processes: Processes) -> tuple[str, str]:
    """Return ``starting``, ``running``, ``done``, ``stopped`` or ``failed``, and why it failed."""
    started, run = processes.find(record.folder), is_run(record.folder)
    if started is not None and started.running:
        return ("running" if run else "starting"), ""
    if not run:
        why = started.said().strip() if started is not None else ""
        return "failed", text(why.rpartition("error: ")[2] or "it ended before it began", 1_000)
    if _open_elsewhere(record.folder):
        return "running", ""
    entries = [one.strip() for one in _ENTRY.split(record.log()) if one.strip()]
    last = entries[-1] if entries else ""
    if last.startswith("done;") or not last:
        return ("done" if "report.json" in stamps(record.folder) else "stopped"), ""
    if last.startswith("Traceback"):
        return "failed", text(last.splitlines()[-1], 1_000)
    return "stopped", ""


def _verdict(content: dict[str, Any]) -> dict[str, Any]:
    report = content.get("report")
    verdict = report.get("verdict") if isinstance(report, dict) else None
    if not isinstance(verdict, dict):
        return {}
    passed = verdict.get("passed")
    return {"passed": passed if isinstance(passed, bool) else None, "statement": text(verdict.get("statement", ""))}


def _open_elsewhere(folder: Path) -> bool:
    try:
        with open_file(folder, ".lock") as file:
            return locked(file)
    except OSError:
        return False


def _setting(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return text(", ".join(map(str, value)))
    return text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
