"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from popflow.core import CheckpointError
from popflow.core.checkpoint import load_tensors, save_tensors, write_atomic

SOURCE = Path(__file__).parents[2] / "src"
TENSORS = {
    "x": torch.arange(6.0).reshape(2, 3),
    "k": torch.tensor(3),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "none": torch.zeros(0, 2),
}


def test_tensors_and_description_come_back(tmp_path: Path) -> None:
    path = save_tensors(tmp_path / "deep" / "er" / "state.safetensors", TENSORS, {"step": 3, "name": "é"})
    tensors, about = load_tensors(path)
    assert about == {"step": 3, "name": "é"}
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    a = save_tensors(tmp_path / "a", TENSORS, {"x": 1, "y": 2}).read_bytes()
    b = save_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), {"y": 2, "x": 1}).read_bytes()
    assert a == b


def test_views_shared_memory_and_gradients_are_written_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0, requires_grad=True).reshape(3, 4)
    tensors, _ = load_tensors(save_tensors(tmp_path / "a", {"t": base.T, "row": base[1], "all": base}))
    assert torch.equal(tensors["t"], base.detach().T)
    assert torch.equal(tensors["row"], base.detach()[1])


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    for text in ("one", "twenty-two"):
        write_atomic(tmp_path / "note.txt", text)
    assert (tmp_path / "note.txt").read_text() == "twenty-two"
    assert os.listdir(tmp_path) == ["note.txt"]
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = save_tensors(tmp_path / "state", {"x": torch.ones(3)})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync", full) if failing == "fsync" else (Path, "replace", full)))
    with pytest.raises(CheckpointError, match=r"No space left.*The previous file is untouched.*free space"):
        save_tensors(path, {"x": torch.zeros(3)})
    assert torch.equal(load_tensors(path)[0]["x"], torch.ones(3))
    assert os.listdir(tmp_path) == ["state"]


def test_a_file_size_limit_leaves_the_earlier_file_whole(tmp_path: Path) -> None:
    path = save_tensors(tmp_path / "state", {"x": torch.ones(3)})
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(CheckpointError, match="File too large"):
            save_tensors(path, {"x": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.equal(load_tensors(path)[0]["x"], torch.ones(3))
    assert os.listdir(tmp_path) == ["state"]


def test_an_interrupt_while_writing_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "note", "old")

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "note", "new")
    assert (tmp_path / "note").read_text() == "old"
    assert os.listdir(tmp_path) == ["note"]


def test_killed_at_any_moment_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "note"
    write_atomic(path, "a" * 200_000)
    script = f"from popflow.core.checkpoint import write_atomic\nprint('go', flush=True)\nwhile True:\n  [write_atomic({str(path)!r}, c * 200_000) for c in 'ab']"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(SOURCE)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    for _ in range(50):
        text = path.read_text()
        assert len(text) == 200_000
        assert len(set(text)) == 1
    process.kill()
    process.communicate()
    text = path.read_text()
    assert len(text) == 200_000
    assert len(set(text)) == 1


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = save_tensors(tmp_path / "state", TENSORS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cannot read .*state as safetensors"):
        load_tensors(path)


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"{}", b"\xff" * 64])
def test_a_file_of_another_kind_is_named_and_never_unpickled(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_tensors(tmp_path / "state")


def test_absent_files_and_impossible_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        load_tensors(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_tensors(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        write_atomic(tmp_path / "file" / "below", "text")
