"""The client of chat endpoints against a server that does everything wrong."""

import email.utils
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

from popflow.evolve.chat_client import SKIPPED, ChatClient, ChatError, Endpoint
from popflow.runs import Ledger

_SPEC = importlib.util.spec_from_file_location("chat_server", Path(__file__).parent / "chat_server.py")
server_module = importlib.util.module_from_spec(_SPEC)
sys.modules["chat_server"] = server_module
_SPEC.loader.exec_module(server_module)
chat_server, says, status, raw = server_module.chat_server, server_module.says, server_module.status, server_module.raw
slow, half, closes, endless = server_module.slow, server_module.half, server_module.closes, server_module.endless

KEY = "sk-very-secret-0123456789"
QUESTION = [{"role": "user", "content": "?"}]


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("POPFLOW_CHAT_KEY", raising=False)


def endpoint(server, **settings):
    return Endpoint(server.url, "m", **{"pause": 0.001, "seconds": 2.0, "workers": 1, **settings})


def ask(server, n=1, replay=None, **settings):
    client = ChatClient(endpoint(server, **settings), replay)
    replies = client.round([(QUESTION, draw) for draw in range(n)])
    client.close()
    return replies, client.counts


def test_a_good_reply_with_its_tokens():
    with chat_server([says("CCO")]) as server:
        (reply,), counts = ask(server)
        path, body, authorisation = server.seen[0]
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.attempts) == ("CCO", 11, 5, 1)
    assert (counts.replies, counts.requests, counts.prompt_tokens, counts.completion_tokens) == (1, 1, 11, 5)
    assert path == "/v1/chat/completions"
    assert body == {"model": "m", "temperature": 0.8, "max_tokens": 1024, "messages": QUESTION}
    assert authorisation is None


@pytest.mark.parametrize(
    "bad", [status(500), status(429), status(429, Retry_After="0"), slow, half, closes, endless, raw(b"<html>"), raw(b"[]")]
)
def test_what_may_pass_is_asked_again(bad):
    with chat_server([bad, says("CCO")]) as server:
        (reply,), counts = ask(server)
    assert reply.text == "CCO"
    assert (counts.requests, counts.replies, counts.failed) == (2, 1, 0)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (status(503), "HTTP 503"),
        (slow, "no whole reply in 0.3 s"),
        (half, "the connection failed (RemoteProtocolError)"),
        (closes, "the connection failed (RemoteProtocolError)"),
        (endless, "the reply is longer than 1048576 bytes"),
        (raw(b'{"choices": []}'), "the reply is no completion"),
        (raw(b"[" * 200_000), "the reply is no completion"),
        (raw(json.dumps({"choices": [{"message": {"content": None}}]}).encode()), "the reply holds no text"),
    ],
)
def test_what_stays_bad_is_a_failure_with_a_reason(bad, error):
    with chat_server([bad]) as server:
        (reply,), counts = ask(server, attempts=2, seconds=0.3)
    assert (reply.text, reply.error) == (None, error)
    assert (counts.requests, counts.replies, counts.failed) == (2, 0, 1)


def test_a_refusal_is_not_repeated():
    with chat_server([status(400)]) as server:
        (reply,), counts = ask(server)
    assert (reply.error, counts.requests) == ("HTTP 400", 1)


@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_obeyed(date):
    wait = email.utils.format_datetime(email.utils.localtime()) if date else "0.3"
    with chat_server([status(429, Retry_After=wait), says("CCO")]) as server:
        start = time.monotonic()
        (reply,), _ = ask(server, pause=30.0)
    assert reply.text == "CCO"
    assert (0 if date else 0.3) <= time.monotonic() - start < 10


def test_a_server_that_wants_hours_has_failed():
    with chat_server([status(429, Retry_After="7200")]) as server:
        (reply,), counts = ask(server)
    assert reply.error == "HTTP 429; the server asks to wait 7200 s"
    assert counts.requests == 1


def test_the_breaker_spares_a_dead_server_and_tries_it_again_next_round():
    with chat_server([*[status(500)] * 3, status(500), says("CCO")]) as server:
        client = ChatClient(endpoint(server, attempts=1, breaker=3))
        questions = [(QUESTION, draw) for draw in range(12)]
        first = client.round(questions[:6])
        assert [reply.error for reply in first] == ["HTTP 500"] * 3 + [SKIPPED] * 3
        second = client.round(questions[6:8])  # one probe, which fails
        assert [reply.error for reply in second] == ["HTTP 500", SKIPPED]
        assert [reply.text for reply in client.round(questions[8:12])] == ["CCO"] * 4
        counts = client.counts
    assert (counts.questions, counts.failed, counts.skipped, counts.replies, counts.requests) == (12, 4, 4, 4, 8)


def test_a_run_is_repeated_from_its_file_without_server_and_key(tmp_path, monkeypatch):
    monkeypatch.setenv("POPFLOW_CHAT_KEY", KEY)
    path = tmp_path / "replies.jsonl"
    with chat_server([says("one"), status(400), says("three")]) as server, Ledger(path) as replay:
        live, _ = ask(server, 3, replay)
        assert server.seen[0][2] == f"Bearer {KEY}"
        where = server.url
    monkeypatch.delenv("POPFLOW_CHAT_KEY")
    client = ChatClient(Endpoint(where, "m", seconds=0.2), Ledger.read(path), offline=True)
    again = client.round([(QUESTION, draw) for draw in range(3)])
    assert [(reply.text, reply.error) for reply in again] == [(reply.text, reply.error) for reply in live]
    assert (client.counts.replayed, client.counts.requests, client.counts.completion_tokens) == (3, 0, 10)
    with pytest.raises(ChatError, match="lacks a question of this run"):
        client.round([(QUESTION, 3)])
    assert KEY not in path.read_text()


def test_the_key_is_shown_nowhere(monkeypatch, capfd, caplog):
    monkeypatch.setenv("POPFLOW_CHAT_KEY", KEY)
    caplog.set_level("DEBUG")
    with chat_server([status(401)]) as server:
        client = ChatClient(endpoint(server))
        with pytest.raises(ChatError, match="POPFLOW_CHAT_KEY; the key in it is refused") as refused:
            client.check()
        (reply,) = client.round([(QUESTION, 0)])
    shown = "".join(
        [repr(client), repr(client.endpoint), repr(vars(client)), repr(reply), str(refused.value), caplog.text, *capfd.readouterr()]
    )
    assert KEY not in shown


def test_a_key_that_no_header_holds(monkeypatch):
    monkeypatch.setenv("POPFLOW_CHAT_KEY", "sk-one\nsk-two")
    with chat_server([says("CCO")]) as server, pytest.raises(ChatError, match="POPFLOW_CHAT_KEY has characters") as error:
        ask(server)
    assert "sk-one" not in str(error.value)


def test_check_names_what_to_change():
    models = raw(json.dumps({"data": [{"id": "qwen3-8b"}, {"id": "llama-4"}]}).encode())
    with chat_server([models]) as server:
        with pytest.raises(ChatError, match="did you mean 'qwen3-8b'"):
            ChatClient(Endpoint(server.url, "qwen3-8B", seconds=5)).check()
        ChatClient(Endpoint(server.url, "llama-4", seconds=5)).check()
    with chat_server([status(401)]) as server, pytest.raises(ChatError, match="variable POPFLOW_CHAT_KEY; it is not set"):
        ChatClient(endpoint(server)).check()
    with chat_server([status(404)]) as server:
        ChatClient(endpoint(server)).check()  # a server without such a list
    with pytest.raises(ChatError, match="cannot be reached"):
        ChatClient(Endpoint("http://127.0.0.1:9/v1", "m", seconds=0.5)).check()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"url": "file:///etc/passwd"}, "wanted an address"),
        ({"url": "https://me:hunter2@host/v1"}, "put the key into POPFLOW_CHAT_KEY"),
        ({"url": "https://host/v1?api-key=hunter2"}, "put the key into POPFLOW_CHAT_KEY"),
        ({"attempts": 0}, "attempts=0, wanted a positive number"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_bad_settings(settings, wanted):
    with pytest.raises(ValueError, match=wanted) as error:
        Endpoint(**{"url": "http://host/v1", "model": "m", **settings})
    assert "hunter2" not in str(error.value)
