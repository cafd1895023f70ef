"""Who is answered: no other host, no other site, nobody without the token."""

from __future__ import annotations

import json

import pytest

from .conftest import ORIGIN, TOKEN

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


def test_all_answers_forbid_foreign_scripts(client):
    for path, headers in ((f"/{TOKEN}/", {}), (f"/{TOKEN}/state", {}), (f"/{TOKEN}/nothing", {}), ("/", {}), ("/", {"host": "evil"})):
        given = client.get(path, headers=headers).headers
        assert "default-src 'none'; script-src 'self'" in given["content-security-policy"]
        assert "unsafe" not in given["content-security-policy"]
        assert given["x-content-type-options"] == "nosniff"
        assert given["referrer-policy"] == "no-referrer"
        assert given["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in given
