"""Run folders for the page, written by hand, and a client that asks as a browser does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TOKEN = "a-token"
ORIGIN = "http://127.0.0.1:8000"


def write_run(folder: Path, **config: Any) -> Path:
    """Write the files that make a folder a run."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"job": "demo fkc", "seed": 0, **config}))
    (folder / "env.json").write_text(json.dumps({"versions": {"popflow": "0"}, "device": "cpu", "seed": 0}))
    return folder


@pytest.fixture
def new_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the page of ``tmp_path/runs``; its runs are interrupted at the end."""
    pytest.importorskip("starlette", reason="starlette is not installed (extra view)")
    from starlette.testclient import TestClient

    from popflow.view.folders import Folders
    from popflow.view.server import application

    monkeypatch.chdir(tmp_path)
    with TestClient(application(Folders([], Path("runs")), TOKEN, 8000), base_url=ORIGIN, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def ask(client: Any) -> Callable[..., Any]:
    """Ask the page under its token; with a body, as its own script does."""

    def ask(path: str, body: Any = None, code: int = 200) -> Any:
        answer = client.get(f"/{TOKEN}/{path}") if body is None else client.post(f"/{TOKEN}/{path}", json=body, headers={"origin": ORIGIN})
        assert answer.status_code == code, answer.text
        return answer.json() if answer.headers["content-type"] == "application/json" else answer

    return ask
