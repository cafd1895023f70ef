"""The registry: built-in methods without imports, those of other packages, and plug-ins that fail."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from popflow import registry
from popflow.registry import BUILT_IN, TASKS, Method, MethodError, Task, UnknownMethodError, method, methods, task


def points(monkeypatch, *found):
    listed = [EntryPoint(name=name, value=value, group=registry.GROUP) for name, value in found]
    monkeypatch.setattr(registry, "entry_points", lambda group: listed)


def test_it_imports_neither_torch_nor_rooms():
    code = "import sys, popflow.registry; popflow.registry.methods(); print([m for m in sys.modules if m == 'torch' or m.startswith('popflow.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['popflow.citations', 'popflow.registry']"


def test_every_built_in_method_is_described_and_cited():
    assert len({one.name for one in BUILT_IN}) == len(BUILT_IN)
    for one in BUILT_IN:
        assert one.summary.endswith(".")
        assert "\n" not in one.summary
        for entry in one.cite:
            assert entry.startswith("@")
            assert entry.count("{") == entry.count("}")
            for key in ("title", "author", "year"):
                assert f"{key}  " in entry


def test_unknown_names_are_told_the_closest():
    with pytest.raises(UnknownMethodError, match="unknown method 'superdif': did you mean 'superdiff'"):
        method("superdif")


def test_a_package_adds_a_method(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0] + "/cli/plugin")
    points(monkeypatch, ("tempering", "popflow_tempering:METHOD"))
    assert method("tempering").summary == "Tempering between two normal distributions."
    assert method("fkc").name == "fkc"


def test_broken_plug_ins_are_reported_and_disturb_nothing(monkeypatch):
    taken = Method("fkc", "", (), Task(dict, print))
    monkeypatch.setattr(sys, "taken", taken, raising=False)
    points(monkeypatch, ("gone", "no_such_module:METHOD"), ("odd", "sys:path"), ("bare", "sys:no_such"), ("fkc", "sys:taken"))
    found = methods()
    assert set(found.methods) == {one.name for one in BUILT_IN}
    assert "No module named 'no_such_module'" in found.broken["gone = no_such_module:METHOD"]
    assert "is a list, wanted a popflow.registry.Method" in found.broken["odd = sys:path"]
    assert "no_such" in found.broken["bare = sys:no_such"]
    assert "the name 'fkc' is taken" in found.broken["fkc = sys:taken"]
    assert method("fkc") is BUILT_IN[0]
    with pytest.raises(UnknownMethodError, match=r"The plug-in gone = no_such_module:METHOD could not be loaded"):
        method("gone")


def test_no_other_package_is_loaded_for_a_method(monkeypatch):
    monkeypatch.setattr(sys, "mine", Method("mine", "", (), Task(dict, print)), raising=False)
    points(monkeypatch, ("mine", "sys:mine"), ("slow", "sys:slow"))
    loaded = []
    monkeypatch.setattr(registry, "_load", lambda point: loaded.append(point.name) or sys.mine)
    assert method("fkc").name == "fkc"
    assert method("mine").name == "mine"
    with pytest.raises(UnknownMethodError, match="unknown method 'slwo': did you mean 'slow'"):
        method("slwo")
    assert loaded == ["mine"]


def test_a_package_that_ends_the_process_is_reported(monkeypatch, tmp_path):
    (tmp_path / "ending.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    points(monkeypatch, ("ending", "ending:METHOD"))
    assert "importing ending:METHOD ends the process with code 3" in methods().broken["ending = ending:METHOD"]


def test_a_method_is_called_as_its_entry_point(monkeypatch):
    monkeypatch.setattr(sys, "odd", Method("other", "", (), Task(dict, print)), raising=False)
    points(monkeypatch, ("mine", "sys:odd"))
    assert "calls itself 'other' and its entry point 'mine'" in methods().broken["mine = sys:odd"]


def test_every_verb_has_a_task_and_every_method_a_verb():
    for verb, one in TASKS.items():
        assert task(verb) is one
        assert one.summary.endswith(".")
    assert {one.task for one in BUILT_IN} == set(TASKS)
    assert task("absent") is None


def test_a_part_that_cannot_be_loaded_is_named():
    one = Task("no_such:Config", "popflow.registry:absent")
    with pytest.raises(MethodError, match=r"cannot load popflow\.registry:absent"):
        one.load("run")
    with pytest.raises(MethodError, match="No module named 'no_such'"):
        one.load("config")
    assert Task(dict, print).load("config") is dict


def test_what_is_cited_follows_the_configuration():
    assert Task(dict, print, cite=lambda config: (config["op"],)).cited({"op": "and"}) == ("and",)
    assert Task(dict, print, cite=("@misc{a}",)).cited({}) == ("@misc{a}",)
