"""Which files the page can reach: those of run folders, and none through a link."""

from __future__ import annotations

import os

import pytest

from popflow.core.errors import RunDirectoryError
from popflow.view.folders import Folders, key_of, open_file, read_file, text


def test_runs_are_found_below_the_folders_that_were_named(tmp_path, new_run):
    new_run(tmp_path / "runs" / "a")
    new_run(tmp_path / "runs" / "demos" / "b")
    new_run(tmp_path / "runs" / ".hidden")
    new_run(tmp_path / "elsewhere" / "c")
    (tmp_path / "runs" / "no-run").mkdir()
    names = {name for name, _ in Folders([], tmp_path / "runs").runs().values()}
    assert names == {"a", "demos/b"}
    both = Folders([tmp_path / "runs" / "a", tmp_path / "elsewhere"], tmp_path / "runs").runs()
    assert {name for name, _ in both.values()} == {"a", "elsewhere/c"}
    assert all(key == key_of(folder) for key, (_, folder) in both.items())


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"nothing is no folder. Fix: give a run directory"):
        Folders([tmp_path / "nothing"], tmp_path)


def test_links_lead_nowhere(tmp_path, new_run):
    """A run behind a link is not listed, and a file behind one is not read: not the file, not a folder on its way."""
    run, secret = new_run(tmp_path / "runs" / "a"), tmp_path / "secret"
    secret.mkdir()
    (secret / "log.txt").write_text("secret")
    new_run(tmp_path / "outside" / "b")
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "outside" / "b")
    (run / "log.txt").symlink_to(secret / "log.txt")
    (run / "inner").symlink_to(secret)
    folders = Folders([], tmp_path / "runs")
    assert [folder for _, folder in folders.runs().values()] == [run]
    for name in ("log.txt", "inner/log.txt", "../../secret/log.txt", str(secret / "log.txt"), "..", "."):
        with pytest.raises(OSError, match="does not stand in the run folder"):
            open_file(run, name)
    run.rename(tmp_path / "moved")
    run.symlink_to(secret)
    with pytest.raises(OSError, match="does not stand in the run folder"):
        open_file(run, "log.txt")


def test_a_pipe_is_not_waited_for(tmp_path, new_run):
    run = new_run(tmp_path / "a")
    os.mkfifo(run / "log.txt")
    with pytest.raises(OSError, match="no regular file"):
        open_file(run, "log.txt")


def test_the_end_of_a_file_and_files_that_are_too_long(tmp_path, new_run):
    run = new_run(tmp_path / "a")
    (run / "log.txt").write_text("0123456789")
    assert read_file(run, "log.txt", 4, tail=True) == b"6789"
    assert read_file(run, "log.txt", 10) == b"0123456789"
    with pytest.raises(ValueError, match=r"log.txt has 10 bytes, more than 9"):
        read_file(run, "log.txt", 9)


def test_new_runs_have_plain_names_in_the_folder_of_runs(tmp_path, new_run):
    folders = Folders([], tmp_path / "runs")
    assert folders.new("", "demo fkc") == tmp_path / "runs" / "demo-fkc-1"
    new_run(tmp_path / "runs" / "demo-fkc-1")
    assert folders.new("", "demo fkc") == tmp_path / "runs" / "demo-fkc-2"
    folders.started["key"] = tmp_path / "runs" / "demo-fkc-2"  # it has no folder yet
    assert folders.new("", "demo fkc") == tmp_path / "runs" / "demo-fkc-3"
    assert folders.new("my_run-3.b", "flow") == tmp_path / "runs" / "my_run-3.b"
    for name in ("..", "../a", "a/b", "/tmp/a", "-x", ".a", "a\0b", "a b", "é", "a" * 101, "a\\b"):
        with pytest.raises(ValueError, match="wanted a name of letters"):
            folders.new(name, "flow")
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="leads out of"):
        folders.new("linked", "flow")


def test_names_that_are_no_text_can_be_told(tmp_path, new_run):
    run = new_run(tmp_path / "runs" / "b\udcffd")
    ((name, folder),) = Folders([], tmp_path / "runs").runs().values()
    assert (name, folder) == ("b?d", run)
    assert text("\ud800" * 3, 2) == "??…"
