"""What the server answers: its own parts, files of runs and nothing else; and how it starts and ends."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from popflow.view.folders import key_of

from .conftest import ORIGIN, TOKEN

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "3",
        "[" * 100_000,
        '{"job": 3}',
        '{"job": "demo fkc"}',
        '{"job": "demo fkc", "values": []}',
        '{"job": "rm", "values": {}}',
        '{"job": "demo fkc", "values": {}, "folder": 3}',
        '{"job": "demo fkc", "values": {}, "device": "--help"}',
        '{"job": "demo fkc", "values": {}, "folder": "../x"}',
        '{"job": "demo fkc", "values": {"sed": 1}}',
    ],
)
def test_a_bad_request_starts_nothing(client, content, tmp_path):
    answer = client.post(f"/{TOKEN}/start", content=content, headers={"origin": ORIGIN, "content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert not (tmp_path / "runs").exists()


def test_the_page_and_its_parts_come_from_the_package_and_parse_nothing_as_html(client):
    """Every asset that the page names is answered, none is fetched from elsewhere, and no script has a way to make markup of text."""
    page = client.get(f"/{TOKEN}/").text
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', page)) - {"data:,"}
    scripts = [name for name in named if name.endswith(".js")]
    while scripts:
        text = client.get(f"/{TOKEN}/{scripts.pop()}").text
        found = {f"{name}.js" for name in re.findall(r'from "\./(\w+)\.js"', text)} - named
        named |= found
        scripts += found
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|srcdoc|https?://(?!www\.w3\.org/2000/svg)", text
        )
    assert len(named) == 8
    for name in named:
        answer = client.get(f"/{TOKEN}/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/javascript" if name.endswith(".js") else "text/css")


@pytest.mark.parametrize(
    "path",
    [
        "../config.json",
        "..%2fconfig.json",
        "%2e%2e/%2e%2e/etc/passwd",
        "runs/../../secret.txt",
        "static/view.js",
        "/etc/passwd",
        "runs/..%2f..%2fsecret.txt/metrics",
        "server.py",
    ],
)
def test_no_path_leads_out(client, tmp_path, path):
    (tmp_path / "secret.txt").write_text("a secret")
    answer = client.get(f"/{TOKEN}/{path}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_a_report_is_shown_without_scripts(ask, client, tmp_path, new_run):
    run = new_run(tmp_path / "runs" / "a")
    address = f"runs/{key_of(run)}/report.html"
    assert ask(address, code=404)["error"] == "there is no report."
    (run / "report.html").write_text("<script>document.title='taken'</script>")
    answer = client.get(f"/{TOKEN}/{address}")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert policy.endswith("sandbox")
    assert "script-src" not in policy
    (tmp_path / "secret.html").write_text("secret")
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(tmp_path / "secret.html")
    assert "secret" not in client.get(f"/{TOKEN}/{address}").text


def test_a_population_is_sent_by_frame(ask, tmp_path, new_run):
    import torch

    from popflow.core.checkpoint import save_tensors

    run = new_run(tmp_path / "runs" / "a")
    save_tensors(run / "sample.safetensors", {"x": torch.tensor([[1.0, 2.0, 3.0]]), "log_w": torch.zeros(1)}, {"k": 4})
    path = f"runs/{key_of(run)}/population"
    first = ask(path)
    assert first["films"][0]["frames"] == ["step 4"]
    assert ask(f"{path}?seen={first['version']}") == {"version": first["version"], "same": True}
    assert ask(f"{path}?film=sample.safetensors&frame=0&x=2&y=0")["x"] == [3.0]
    for query in (
        "film=sample.safetensors&frame=9",
        "film=../sample.safetensors&frame=0",
        "frame=0",
        "film=sample.safetensors&frame=x",
        "film=sample.safetensors&frame=0&x=1",
    ):
        ask(f"{path}?{query}", code=404)


def test_a_run_that_cannot_begin_says_why(ask, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "letter.txt").write_text("not of a run")
    started = ask("start", {"job": "demo qhn", "values": {"quick": True}, "device": "cpu", "folder": "mine"})
    assert started["command"] == "popflow demo qhn --out=runs/mine --device=cpu --quick"
    until = time.monotonic() + 60
    while (one := ask("state")["runs"][0])["state"] == "starting" and time.monotonic() < until:
        time.sleep(0.1)
    assert one["state"] == "failed"
    assert "runs/mine holds files that do not belong to a run (letter.txt)" in one["why"]
    assert [file.name for file in (tmp_path / "runs" / "mine").iterdir()] == ["letter.txt"]


def test_the_server_listens_to_this_machine_alone_and_imports_no_torch(tmp_path):
    """The token is drawn anew, and Ctrl-C ends the server."""
    code = "import sys; from popflow.cli.app import main; code = main(); print('torch' in sys.modules, code)"
    addresses = []
    for _ in range(2):
        server = subprocess.Popen(
            [sys.executable, "-c", code, "view", "--no-browser", "--json", "--out", str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )
        assert server.stdout is not None
        addresses.append(json.loads(server.stdout.readline())["address"])
        port = int(addresses[-1].split(":")[2].split("/")[0])
        with urllib.request.urlopen(addresses[-1] + "state") as answer:
            assert json.load(answer)["runs"] == []
        others = [
            info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET) if not info[4][0].startswith("127.")
        ]
        for address in others:
            with pytest.raises(OSError), socket.create_connection((address, port), timeout=2):
                pass
        server.send_signal(2)
        assert server.communicate(timeout=60)[0].split() == ["False", "0"]
    assert addresses[0].split("/")[3] != addresses[1].split("/")[3]
    assert min(len(address.split("/")[3]) for address in addresses) >= 32
