"""Who is answered: a page of this server alone, under the address with its token, by the name of this machine.

Another page in the same browser can send requests here, and a name that it owns can be made to mean 127.0.0.1. So a request is refused unless its Host is
that of this server (which no rebound name is), its address begins with the token, and its Origin, where there is one, is this server; a request that
changes something has to have one.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import PlainTextResponse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

BODY = 2**18
"""Bytes that a request may hold."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def guarded(app: App, token: str, port: int) -> App:
    """Return the application behind the checks; its paths are those after ``/TOKEN``. All answers have headers that forbid foreign scripts."""
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def answer(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
        elif scope["type"] == "http":
            refused = _refused(scope, token, hosts)
            inside = "/" + scope["path"].removeprefix("/").partition("/")[2]
            inner = app if refused is None else refused
            await inner({**scope, "path": inside, "raw_path": inside.encode("utf-8", "surrogatepass")}, receive, _with_headers(send))

    return answer


def _refused(scope: Any, token: str, hosts: set[str]) -> PlainTextResponse | None:
    given: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        given.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    host, origin = given.get("host", []), given.get("origin", [])
    if len(host) != 1 or host[0].lower() not in hosts:
        return PlainTextResponse("This server answers to 127.0.0.1 and localhost alone.", 421)
    segment, slash, _ = scope["path"].removeprefix("/").partition("/")
    if not (hmac.compare_digest(segment.encode("utf-8", "surrogatepass"), token.encode()) and slash):
        return PlainTextResponse("Nothing here: open the address that `popflow view` has printed, to the last character.", 404)
    changes = scope["method"] not in ("GET", "HEAD")
    foreign = origin != [f"http://{host[0].lower()}"] if origin or changes else False
    if foreign or any(site not in ("same-origin", "none") for site in given.get("sec-fetch-site", [])):
        return PlainTextResponse("Another page asked for this.", 403)
    if changes and given.get("content-type") != ["application/json"]:
        return PlainTextResponse("A request has to be JSON.", 415)
    length = given.get("content-length", ["x" if changes else "0"])
    if not (length[0].isdecimal() and int(length[0][:20]) <= BODY):
        return PlainTextResponse(f"A request has to say its length, at most {BODY} bytes.", 413)
    return None


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *((name.encode(), value.encode()) for name, value in _HEADERS.items() if name.encode() not in there),
            ]
        await send(message)

    return sending
