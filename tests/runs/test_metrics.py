"""The file of metrics: appended, and cut back on resuming so that no interruption shows."""

import errno
import json

import pytest
import torch

from popflow.core import CheckpointError
from popflow.runs import Metrics


def write(path, *stages):
    """Write stages ``(name, first, last)`` in one process."""
    metrics = Metrics(path)
    for name, first, last in stages:
        for step in range(first, last):
            metrics.add(name, step, {"loss": step / 7})
    metrics.close()
    return path.read_bytes()


@pytest.mark.parametrize("killed_at", [1, 3, 9])
@pytest.mark.parametrize("torn", [b"", b'{"stage": "b", "st', b'{"stage": "b", "step": 9, "loss": 1.0}'])
def test_an_interrupted_file_equals_an_uninterrupted_one(tmp_path, killed_at, torn):
    whole = write(tmp_path / "whole", ("a", 0, 4), ("b", 0, 10))
    path = tmp_path / "cut"
    write(path, ("a", 0, 4), ("b", 0, killed_at))
    with open(path, "ab") as file:
        file.write(torn)
    assert write(path, ("b", max(0, killed_at - 3), 10)) == whole


def test_a_stage_done_over_keeps_the_rows_of_a_later_one(tmp_path):
    whole = write(tmp_path / "whole", ("a", 0, 4), ("b", 0, 10))
    path = tmp_path / "cut"
    write(path, ("a", 0, 4), ("b", 0, 6))
    assert write(path, ("a", 0, 4), ("b", 4, 10)) == whole


def test_rows_before_a_roll_back_stay(tmp_path):
    path = tmp_path / "metrics"
    metrics = Metrics(path)
    for step in (1, 2, 3, 2, 3):
        metrics.add("fit", step, {})
    metrics.close()
    write(path, ("fit", 3, 4))
    assert [row["step"] for row in Metrics(path).rows()] == [1, 2, 3, 2, 3]


def test_values_are_strict_json(tmp_path):
    metrics = Metrics(tmp_path / "metrics")
    metrics.add("a", 0, {"nan": float("nan"), "inf": torch.tensor([-torch.inf, 1.0]), "ess": torch.tensor(2.5), "n": 3})
    line = metrics.path.read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {"stage": "a", "step": 0, "nan": "nan", "inf": ["-inf", 1.0], "ess": 2.5, "n": 3}


def test_stages_follow_one_another(tmp_path):
    metrics = Metrics(tmp_path / "metrics")
    metrics.add("a", 0, {})
    metrics.add("b", 0, {})
    with pytest.raises(ValueError, match="stage='a' continues after 'b'"):
        metrics.add("a", 1, {})


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    metrics = Metrics(tmp_path / "metrics")
    metrics.add("a", 0, {})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        metrics.sync()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot read .*metrics.jsonl: Is a directory"):
        Metrics(tmp_path / "metrics.jsonl").add("anneal", 0, {"ess": 1.0})
