"""`popflow view`: what is missing, and bad usage."""

from __future__ import annotations

import socket
import sys

import popflow
from popflow.cli.app import main


def test_the_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(popflow, "view", None, raising=False)  # put back afterwards: the modules below are imported anew
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    for name in [name for name in sys.modules if name.startswith("popflow.view")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["view", "--no-browser"]) == 1
    assert "Fix: pip install 'popflow[view]'" in capsys.readouterr().err


def test_bad_usage_of_the_command(capsys, tmp_path):
    assert main(["view", str(tmp_path / "nothing"), "--no-browser"]) == 2
    assert "nothing is no folder" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["view", "--port", str(port), "--no-browser"]) == 1
    assert f"port={port} cannot be had" in capsys.readouterr().err
