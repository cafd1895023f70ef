"""A client of chat endpoints that speak the OpenAI protocol (vLLM, llama.cpp, Ollama, LM Studio, OpenAI): it expects the worst of them.

Every question has one outcome, written to a replay file (a `popflow.runs.Ledger`) before it is used: a reply, or why there is none. A run that is repeated with
the file asks nothing, needs no key and makes the same molecules. What is sent twice on purpose has different draws, and so different keys.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from popflow.core.errors import MissingExtraError, unknown
from popflow.evolve.addresses import plain_address, shown
from popflow.runs import Ledger, Outcome, key_of

LARGEST_REPLY = 2**20
"""Bytes of a reply that are read; a longer one is an error."""
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""HTTP states that may pass: the question is put again after a pause."""
SKIPPED = "not asked: the endpoint failed too often in a row"


class ChatError(RuntimeError):
    """An endpoint cannot be used as configured; the message says what to change, and never holds the key."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers, and how patient we are with it.

    Attributes:
        url: Base address, such as ``http://localhost:8000/v1``; ``/chat/completions`` is added.
        model: Name of the model there.
        key_variable: Environment variable that holds the key; no key is sent when it is unset. The key is read for each request and kept nowhere.
        temperature: Sampling temperature of the model. At 0 equal questions get equal answers.
        max_tokens: Tokens of a reply at most.
        seconds: Time for one attempt, connecting and reading included; a server that sends a byte a second does not get more.
        attempts: How often a question is put before it has failed.
        pause: Seconds before the second attempt, doubled for each later one, with random jitter; ``Retry-After`` is obeyed instead.
        longest_pause: Seconds waited at most; a server that asks for more has failed.
        breaker: Failures in a row after which the rest of a round is not asked; the next round begins with one question alone.
        workers: Questions in flight.

    Raises:
        ValueError: for an address that is not http or https or holds a password, or a number out of range.
    """

    url: str
    model: str
    key_variable: str = "POPFLOW_CHAT_KEY"
    temperature: float = 0.8
    max_tokens: int = 1024
    seconds: float = 60.0
    attempts: int = 3
    pause: float = 1.0
    longest_pause: float = 60.0
    breaker: int = 5
    workers: int = 4

    def __post_init__(self) -> None:
        plain_address("url", self.url, self.key_variable)
        for name in ("max_tokens", "seconds", "attempts", "breaker", "workers"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}, wanted a positive number.")
        for name in ("temperature", "pause", "longest_pause"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)!r}, wanted a number from 0 up.")


@dataclass(frozen=True, slots=True)
class Reply:
    """Outcome of one question: ``text``, or ``error`` when there is none; tokens as counted by the server, attempts made now (0: replayed or skipped)."""

    text: str | None
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 0
    replayed: bool = False


@dataclass
class ChatCounts:
    """What the questions came to, summed over the rounds. Tokens are those of the replies, replayed ones included."""

    questions: int = 0
    replies: int = 0
    replayed: int = 0
    failed: int = 0
    skipped: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, reply: Reply) -> None:
        """Count one outcome."""
        self.questions += 1
        self.replies += reply.text is not None
        self.replayed += reply.replayed
        self.skipped += reply.error == SKIPPED
        self.failed += reply.text is None and reply.error != SKIPPED
        self.requests += reply.attempts
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens


@dataclass
class _Breaker:
    """Counts failures in a row; open after ``limit`` of them."""

    limit: int
    failures: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def open(self) -> bool:
        return self.failures >= self.limit

    def report(self, well: bool) -> None:
        with self.lock:
            self.failures = 0 if well else self.failures + 1


class ChatClient:
    """Puts questions to an endpoint, in rounds, and keeps the outcomes.

    Args:
        endpoint: Where, and how patiently.
        replay: The replay file, an open ledger; in memory alone unless given.
        offline: Answer from the replay file alone.

    Attributes:
        counts: What the questions came to so far.

    Raises:
        MissingExtraError: without httpx.
    """

    def __init__(self, endpoint: Endpoint, replay: Ledger | None = None, offline: bool = False):
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError(
                "httpx is not installed and is needed to ask chat endpoints. Fix: pip install 'popflow[chem]'."
            ) from error
        self.endpoint, self.replay, self.offline = endpoint, Ledger() if replay is None else replay, offline
        self.counts = ChatCounts()
        self._breaker = _Breaker(endpoint.breaker)
        self._jitter = random.Random()  # pauses alone depend on it
        self._http = httpx.Client(timeout=endpoint.seconds, limits=httpx.Limits(max_connections=endpoint.workers))

    def check(self) -> None:
        """Ask for the list of models once: the endpoint is there, the key is right and the model is known. One without such a list passes.

        Raises:
            ChatError: when it cannot be reached, wants another key, or has no such model.
        """
        where, variable = shown(self.endpoint.url), self.endpoint.key_variable
        status, body, _ = self._request("GET", "/models", None)
        if status is None:
            raise ChatError(f"{where} cannot be reached: {body}. Fix: start the server, or give the right address.")
        if status in {401, 403}:
            have = "the key in it is refused" if os.environ.get(variable) else "it is not set"
            raise ChatError(f"{where} wants a key (HTTP {status}). Fix: put one into the environment variable {variable}; {have}.")
        names = _model_names(body) if status == 200 else []
        if names and self.endpoint.model not in names:
            raise ChatError(f"{where} does not have the model. Fix: {unknown('model', self.endpoint.model, names)}")

    def round(self, questions: Sequence[tuple[Sequence[Mapping[str, str]], int]]) -> list[Reply]:
        """Put questions ``(messages, draw)`` side by side; return their outcomes in order.

        Args:
            questions: Chat messages ``{"role": ..., "content": ...}``, and a number that tells apart what is asked twice.

        Raises:
            ChatError: when the client is offline and the replay file lacks a question.
        """
        if not questions:
            return []
        if self._breaker.open:  # half open: the first question decides for the others
            self._breaker.failures = self.endpoint.breaker - 1
            first = [self._ask(*questions[0])]
        else:
            first = []
        with ThreadPoolExecutor(self.endpoint.workers) as pool:
            replies = [*first, *pool.map(lambda question: self._ask(*question), questions[len(first) :])]
        for reply in replies:
            self.counts.add(reply)
        return replies

    def spent(self) -> ChatCounts:
        """Return what all questions in the replay file came to, in whatever process they were asked; none of them counts as replayed."""
        total = ChatCounts()
        for key in self.replay:
            note = self.replay.note(key)
            total.add(replace(_replayed(self.replay[key], note), attempts=note.get("requests", 0), replayed=False))
        return total

    def close(self) -> None:
        """Close the connections; the replay file belongs to who opened it."""
        self._http.close()

    def _ask(self, messages: Sequence[Mapping[str, str]], draw: int) -> Reply:
        sent = {"model": self.endpoint.model, "temperature": self.endpoint.temperature, "max_tokens": self.endpoint.max_tokens}
        sent["messages"] = [dict(message) for message in messages]
        key = key_of({**sent, "draw": draw})
        if self.replay.known(key):
            return _replayed(self.replay[key], self.replay.note(key))
        if self.offline:
            raise ChatError(
                f"{self.replay.path or 'the replay file'} lacks a question of this run, so it was written by a run with other settings. "
                "Fix: repeat the run with the settings it was made with, or go online."
            )
        start = time.monotonic()
        reply = Reply(None, SKIPPED) if self._breaker.open else self._attempts(sent)
        if reply.error != SKIPPED:
            self._breaker.report(reply.text is not None)
        kept = {"requests": reply.attempts}
        if reply.text is not None:
            kept |= {"reply": reply.text, "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        ok = reply.text is not None
        outcome = Outcome("value" if ok else "error", float(reply.completion_tokens) if ok else None, reply.error, time.monotonic() - start)
        with self._breaker.lock:
            self.replay.record(key, outcome, note=kept)
        return reply

    def _attempts(self, sent: Mapping[str, Any]) -> Reply:
        attempt, error, pause = 0, "", self.endpoint.pause
        for attempt in range(1, self.endpoint.attempts + 1):
            status, body, after = self._request("POST", "/chat/completions", sent)
            reply = _read(body) if status == 200 else None
            if isinstance(reply, Reply):
                return Reply(reply.text, "", reply.prompt_tokens, reply.completion_tokens, attempt)
            error = reply or (body if status is None else f"HTTP {status}")
            if status not in {None, 200, *RETRIED} or attempt == self.endpoint.attempts:
                break
            wait = after if after is not None else pause * (0.5 + self._jitter.random())
            if wait > self.endpoint.longest_pause:
                return Reply(None, f"{error}; the server asks to wait {wait:.0f} s", attempts=attempt)
            time.sleep(wait)
            pause *= 2
        return Reply(None, error, attempts=attempt)

    def _request(self, method: str, path: str, sent: Any) -> tuple[int | None, str, float | None]:
        """Return status, body, and the seconds of ``Retry-After``; or None and what went wrong, in words that hold no header."""
        import httpx

        key = os.environ.get(self.endpoint.key_variable, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ChatError(
                f"the key in {self.endpoint.key_variable} has characters that no header can hold. Fix: set it again, without line breaks."
            )
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        end, body = time.monotonic() + self.endpoint.seconds, b""
        try:
            with self._http.stream(method, self.endpoint.url.rstrip("/") + path, json=sent, headers=headers) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > LARGEST_REPLY:
                        return None, f"the reply is longer than {LARGEST_REPLY} bytes", None
                    if time.monotonic() > end:
                        return None, f"no whole reply in {self.endpoint.seconds:g} s", None
                return response.status_code, body.decode("utf-8", "replace"), _retry_after(response.headers.get("Retry-After"))
        except httpx.TimeoutException:
            return None, f"no reply in {self.endpoint.seconds:g} s", None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return None, f"the connection failed ({type(error).__name__})", None


def _read(body: str) -> Reply | str:
    """The text and the tokens of a completion, or what is wrong with it."""
    try:
        found = json.loads(body)
        text = found["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return "the reply is no completion"
    if not isinstance(text, str):
        return "the reply holds no text"
    used = found.get("usage")
    used = used if isinstance(used, dict) else {}
    counts = [used.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (n if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 10**9 else 0 for n in counts)
    return Reply(text, "", prompt, completion)


def _replayed(outcome: Outcome, note: Mapping[str, Any]) -> Reply:
    if outcome.kind != "value":
        return Reply(None, outcome.message, replayed=True)
    return Reply(note["reply"], "", note["prompt_tokens"], note["completion_tokens"], replayed=True)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header, which holds a number or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value)) if value.strip().replace(".", "", 1).isdigit() else max(0.0, _until(value))
    except (ValueError, TypeError, OverflowError):
        return None


def _until(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp() - time.time()


def _model_names(body: str) -> list[str]:
    try:
        return [one["id"] for one in json.loads(body)["data"] if isinstance(one["id"], str)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
