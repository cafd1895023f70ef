"""`popflow demo --all`: one page for all demos; one that fails is listed with its message, stops no other, and nothing hostile is rendered."""

import json
import os
from pathlib import Path

import pytest

from popflow.cli.app import main
from popflow.cli.gallery import demonstrate
from popflow.registry import Method, Task, method

PLUGIN = Path(__file__).parent / "plugin"


@pytest.fixture
def tempering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Method:
    """A quick method of another package, known to the processes of demos too, and a working directory."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.chdir(tmp_path)
    return method("tempering")


def test_every_demo_is_on_one_page_with_its_figure_and_a_link(tempering: Method, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    hostile = Method("absent", "<script>alert(1)</script>", (), Task(config="", run=""))
    assert demonstrate([tempering, hostile], tmp_path / "all", "cpu", as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    good, bad = told["demos"]
    assert good["passed"]
    assert good["statement"].startswith("log Z =")
    assert not bad["passed"]
    assert "absent" in bad["statement"]
    assert bad["link"] is None
    page = Path(told["html"]).read_text(encoding="utf-8")
    assert f'href="{good["link"]}"' in page
    assert (tmp_path / "all" / good["link"]).exists()
    assert page.count('<img src="data:image/') == 1
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert demonstrate([tempering], tmp_path / "all", "cpu", as_json=False) == 0  # goes on in the same folder


@pytest.mark.parametrize("more", [["wqmc"], ["--seed", "1"], ["--config", "c.json"]])
def test_settings_of_one_demo_are_refused(more: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["demo", *more, "--all"]) == 2
    assert "leave out METHOD and its options" in capsys.readouterr().err
