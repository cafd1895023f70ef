"""What the server answers, to whom, and what it never does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from popflow.cli.app import main
from popflow.core.locks import lock
from popflow.view.folders import key_of

from .conftest import ORIGIN, TOKEN

ROOT = Path(__file__).parents[2]
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">\u2028\u202e"
PATHS = ("", "state", "forms", "view.js", "runs/x", "start")


@pytest.mark.parametrize("path", PATHS)
def test_the_token_is_needed_for_everything(client, path):
    for token in ("", "a-toke", "a-token2", "A-TOKEN", "é", "%00", ".."):
        answer = client.get(f"/{token}/{path}")
        assert answer.status_code == 404, (token, path)
        assert "the address that" in answer.text
    assert client.get("/a-token").status_code == 404  # not without the slash


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1",
        "127.0.0.1:8001",
        "127.0.0.1.evil.example:8000",
        "localhost:80",
        "[::1]:8000",
        "0.0.0.0:8000",
        "",
    ],
)
def test_another_host_is_refused(client, host):
    """A name that another site owns and makes to mean 127.0.0.1 sends its own Host."""
    assert client.get(f"/{TOKEN}/state", headers={"host": host}).status_code == 421


def test_the_names_of_this_machine_are_answered(client):
    for host in ("127.0.0.1:8000", "localhost:8000", "LOCALHOST:8000"):
        assert client.get(f"/{TOKEN}/state", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:8000",
        "http://127.0.0.1:8001",
        "http://127.0.0.1:8000.evil.example",
        "http://localhost:8000",
        "",
    ],
)
def test_another_origin_is_refused(client, origin, tmp_path):
    for answer in (
        client.get(f"/{TOKEN}/state", headers={"origin": origin}),
        client.post(f"/{TOKEN}/start", json={"job": "demo fkc", "values": {}}, headers={"origin": origin}),
    ):
        assert answer.status_code == 403
    assert not (tmp_path / "runs").exists()


def test_what_changes_something_needs_the_origin_and_json(client, tmp_path):
    body = {"job": "demo fkc", "values": {}}
    address, own = f"/{TOKEN}/start", {"origin": ORIGIN}
    assert client.post(address, json=body).status_code == 403
    assert client.post(address, data=body, headers=own).status_code == 415
    assert client.post(address, content=json.dumps(body), headers=own | {"content-type": "text/plain"}).status_code == 415
    assert (
        client.post(address, content=b'{"a": "' + b"x" * 2**19 + b'"}', headers=own | {"content-type": "application/json"}).status_code
        == 413
    )
    assert client.post(address, content=iter([b"{}"]), headers=own | {"content-type": "application/json"}).status_code == 413  # no length
    assert client.get(f"/{TOKEN}/state", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.get(f"/{TOKEN}/state", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert client.get(address).status_code == 404
    assert not (tmp_path / "runs").exists()


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


def test_all_answers_forbid_foreign_scripts(client):
    for path, headers in ((f"/{TOKEN}/", {}), (f"/{TOKEN}/state", {}), (f"/{TOKEN}/nothing", {}), ("/", {}), ("/", {"host": "evil"})):
        given = client.get(path, headers=headers).headers
        assert "default-src 'none'; script-src 'self'" in given["content-security-policy"]
        assert "unsafe" not in given["content-security-policy"]
        assert given["x-content-type-options"] == "nosniff"
        assert given["referrer-policy"] == "no-referrer"
        assert given["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in given


def test_the_page_and_its_parts_come_from_the_package_and_parse_nothing_as_html(client):
    """Every asset that the page names is answered, none is fetched from elsewhere, and no script has a way to make markup of text."""
    import re

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


def test_a_run_is_told_as_text(ask, tmp_path, new_run):
    """Hostile text travels as JSON strings, cut, and values that are no numbers break nothing."""
    run = new_run(tmp_path / "runs" / "a", prompt=HOSTILE, long="x" * 10**5, job=HOSTILE, odd=[float("nan")], **{"__proto__": HOSTILE})
    (run / "metrics.jsonl").write_text(json.dumps({"stage": HOSTILE, "step": 1, "__proto__": 2.0, HOSTILE: [1.0, "nan"]}) + "\n")
    (run / "log.txt").write_bytes(b"2026-01-01 00:00:00  started " + HOSTILE.encode() + b"\xff\n2026-01-01 00:00:01  interrupted\n")
    (run / "report.json").write_text(json.dumps({"run": {}, "report": {"verdict": {"passed": "yes", "statement": HOSTILE}}}))
    (one,) = ask("state")["runs"]
    assert (one["name"], one["job"], one["state"], one["verdict"]) == ("a", HOSTILE, "stopped", {"passed": None, "statement": HOSTILE})
    detail = ask(f"runs/{one['key']}")
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


def test_the_command_says_what_is_missing(monkeypatch, capsys):
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
        import urllib.request

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
