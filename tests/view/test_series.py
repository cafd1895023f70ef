"""Curves: torn, damaged, replaced and huge files of metrics."""

from __future__ import annotations

import json

import pytest

from popflow.runs import Metrics
from popflow.view import series
from popflow.view.series import POINTS, Series, number


def curve(found, name="loss", stage="fit"):
    (one,) = [one for one in found.plain()["curves"] if (one["stage"], one["name"]) == (stage, name)]
    return one


def test_rows_appear_as_they_are_written_and_a_torn_one_when_it_is_whole(tmp_path, new_run):
    run = new_run(tmp_path / "a")
    found, metrics = Series(run), Metrics(run / "metrics.jsonl")
    found.read()
    assert found.plain()["curves"] == []
    metrics.add("fit", 1, {"loss": 2.0, "grad_norm": float("nan"), "note": "text", "flag": True})
    found.read()
    assert curve(found)["values"] == [2.0]
    assert curve(found, "grad_norm")["values"] == [None]
    assert {one["name"] for one in found.plain()["curves"]} == {"loss", "grad_norm"}
    before = found.version
    found.read()
    assert found.version == before
    line = b'{"stage": "fit", "step": 2, "loss": 1.0}\n'
    for part in (line[:25], line[25:]):
        with open(run / "metrics.jsonl", "ab") as file:
            file.write(part)
        found.read()
    assert curve(found)["steps"] == [1, 2]
    assert found.skipped == 0


def test_a_resumed_run_replaces_its_curves(tmp_path, new_run):
    """`Metrics` cuts the file when a stage begins again: rows that were read before are gone."""
    run = new_run(tmp_path / "a")
    first = Metrics(run / "metrics.jsonl")
    for step in range(6):
        first.add("fit", step, {"loss": float(step)})
    found = Series(run)
    found.read()
    first.close()
    Metrics(run / "metrics.jsonl").add("fit", 3, {"loss": -1.0})
    found.read()
    assert curve(found)["values"] == [0.0, 1.0, 2.0, -1.0]
    (run / "metrics.jsonl").unlink()
    found.read()
    assert found.plain()["curves"] == []


def test_damaged_lines_are_skipped_and_counted(tmp_path, new_run, monkeypatch):
    run = new_run(tmp_path / "a")
    monkeypatch.setattr(series, "AT_ONCE", 1 << 16)
    monkeypatch.setattr(series, "LONGEST_LINE", 1 << 12)
    bad = [
        b"garbage",
        b"[1]",
        b'{"stage": 1, "step": 1}',
        b'{"stage": "a", "step": true}',
        b"\xff\xfe",
        b"[" * 4000,
        b'{"a": ' + b"1" * 4000,
        b"x" * 300_000,
        b"",
        b'{"stage": "a", "step": 1e400}',
    ]
    good = json.dumps({"stage": "fit", "step": 1, "loss": 1.0}).encode()
    (run / "metrics.jsonl").write_bytes(b"\n".join([good, *bad, good]) + b"\n")
    found = Series(run)
    for _ in range(8):
        found.read()
    assert found.behind == 0
    assert curve(found)["count"] == 2
    assert found.skipped == len(bad)


def test_a_huge_file_is_read_in_parts_and_thinned(tmp_path, new_run, monkeypatch):
    run, rows = new_run(tmp_path / "a"), 5_000
    monkeypatch.setattr(series, "AT_ONCE", 1 << 16)
    (run / "metrics.jsonl").write_text("".join(f'{{"stage": "fit", "step": {i}, "loss": {i}.5}}\n' for i in range(rows)))
    found = Series(run)
    found.read()
    assert found.behind > 0
    reads = 1
    while found.behind:
        found.read()
        reads += 1
    assert reads == -(-(run / "metrics.jsonl").stat().st_size // (1 << 16))
    one = curve(found)
    assert POINTS / 2 <= len(one["steps"]) <= POINTS
    assert (one["count"], one["last"], one["steps"][0]) == (rows, rows - 0.5, 0)
    gaps = {b - a for a, b in zip(one["steps"], one["steps"][1:], strict=False)}
    assert len(gaps) == 1
    assert [value - step for step, value in zip(one["steps"], one["values"], strict=True)] == [0.5] * len(one["steps"])


def test_what_is_sent_is_bounded(tmp_path, new_run):
    run = new_run(tmp_path / "a")
    rows = [{"stage": "s" * 5000, "step": i, **{f"{'m' * 5000}{j}": 1.0 for j in range(90)}} for i in range(3)]
    rows += [{"stage": str(i), "step": 0, "loss": 1.0} for i in range(500)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Series(run)
    found.read()
    sent = found.plain()
    assert len(sent["curves"]) == series.CURVES
    assert sent["unseen"] > 0
    assert max(len(one["name"]) for one in sent["curves"]) <= 101


@pytest.mark.parametrize(
    ("value", "found"), [([1, 2, "nan"], 1.5), (["inf"], None), (float("inf"), None), ("nan", None), (-3, -3.0), (10**400, None)]
)
def test_one_number_of_a_value(value, found):
    assert number(value) == found
