"""What the page says of runs: hostile text as text, damaged files as nothing, states as they are."""

from __future__ import annotations

import json
import os

import pytest

from popflow.core.locks import lock

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">\u2028\u202e"


def test_a_run_is_told_as_text(ask, tmp_path, new_run):
    """Hostile text travels as JSON strings, cut, and values that are no numbers break nothing."""
    run = new_run(tmp_path / "runs" / "a", prompt=HOSTILE, long="x" * 10**5, job=HOSTILE, odd=[float("nan")], **{"__proto__": HOSTILE})
    (run / "metrics.jsonl").write_text(json.dumps({"stage": HOSTILE, "step": 1, "__proto__": 2.0, HOSTILE: [1.0, "nan"]}) + "\n")
    (run / "log.txt").write_bytes(b"2026-01-01 00:00:00  started " + HOSTILE.encode() + b"\xff\n2026-01-01 00:00:01  interrupted\n")
    (run / "report.json").write_text(json.dumps({"run": {}, "report": {"verdict": {"passed": "yes", "statement": HOSTILE}}}))
    (one,) = ask("state")["runs"]
    assert (one["name"], one["job"], one["state"]) == ("a", HOSTILE, "stopped")
    detail = ask(f"runs/{one['key']}")
    assert detail["verdict"] == {"passed": None, "statement": HOSTILE}
    settings = dict(map(tuple, detail["settings"]))
    assert settings["prompt"] == settings["__proto__"] == HOSTILE
    assert len(settings["long"]) == 2001
    assert HOSTILE in detail["log"]
    curves = ask(f"runs/{one['key']}/metrics")["curves"]
    assert [(c["stage"], c["name"], c["values"]) for c in curves] == [(HOSTILE, "__proto__", [2.0]), (HOSTILE, HOSTILE, [1.0])]
    assert "no installed method has the job" in ask(f"runs/{one['key']}/resume", {}, code=400)["error"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe", b'{"job": ["x"], "seed": {}}', b'{"a": 1' + b"0" * 5000 + b"}", b" " * 2**21]
)
def test_damaged_files_of_a_run_break_nothing(ask, tmp_path, new_run, content):
    run = new_run(tmp_path / "runs" / "a")
    for name in ("config.json", "env.json", "report.json", "metrics.jsonl", "log.txt", "sample.safetensors", "report.html"):
        (run / name).write_bytes(content)
    (one,) = ask("state")["runs"]
    ask(f"runs/{one['key']}")
    assert ask(f"runs/{one['key']}/metrics")["curves"] == []
    ask(f"runs/{one['key']}/population")
    ask(f"runs/{one['key']}/resume", {}, code=400)


def test_states_of_runs(ask, tmp_path, new_run):
    logs = {
        "done": "2026-01-01 00:00:00  started demo fkc; popflow demo fkc\n2026-01-01 00:01:00  done; runs/a/report.html\n",
        "stopped": "2026-01-01 00:00:00  started demo fkc; popflow demo fkc\n2026-01-01 00:01:00  interrupted\n",
        "failed": "2026-01-01 00:00:00  started demo fkc; x\n2026-01-01 00:01:00  Traceback (most recent call last):\n  File\nValueError: too small\n",
        "killed": "2026-01-01 00:00:00  started demo fkc; popflow demo fkc\n",
    }
    for name, log in logs.items():
        run = new_run(tmp_path / "runs" / name)
        (run / "log.txt").write_text(log)
        (run / ".lock").touch()
    (tmp_path / "runs" / "done" / "report.json").write_text("{}")
    held = new_run(tmp_path / "runs" / "running")
    with open(held / ".lock", "a") as file:
        assert lock(file)
        found = {one["name"]: one for one in ask("state")["runs"]}
        assert {name: one["state"] for name, one in found.items()} == {
            "done": "done",
            "stopped": "stopped",
            "failed": "failed",
            "killed": "stopped",
            "running": "running",
        }
        assert found["failed"]["why"] == "ValueError: too small"
        assert not any(one["ours"] for one in found.values())
        assert "stop it where it was started" in ask(f"runs/{found['running']['key']}/stop", {}, code=409)["error"]


def test_a_lock_that_is_a_pipe_is_not_waited_for(ask, tmp_path, new_run):
    os.mkfifo(new_run(tmp_path / "runs" / "a") / ".lock")
    assert ask("state")["runs"][0]["state"] == "stopped"
