"""A chat server on the loopback, as bad as the test wants it: it answers request k by the k-th of the behaviours it was given, the last one from then on."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def do_GET(self):
        self.serve(None)

    def serve(self, body):
        server = self.server
        with server.mutex:
            number = len(server.seen)
            server.seen.append((self.path, body, self.headers.get("Authorization")))
        server.behaviours[min(number, len(server.behaviours) - 1)](self)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **{key.replace("_", "-"): value for key, value in headers.items()}}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


def completion(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 11, "completion_tokens": 5}}).encode()


def says(text: str) -> Behaviour:
    return lambda handler: handler.send(200, completion(text))


def status(number: int, **headers: str) -> Behaviour:
    return lambda handler: handler.send(number, b"<script>alert(1)</script>", **headers)


def raw(body: bytes) -> Behaviour:
    return lambda handler: handler.send(200, body)


def slow(handler: Handler) -> None:
    """A byte now and then: no single read ever times out."""
    body = completion("CCO")
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    try:
        for k in range(len(body)):
            handler.wfile.write(body[k : k + 1])
            handler.wfile.flush()
            time.sleep(0.02)
    except OSError:
        pass


def half(handler: Handler) -> None:
    body = completion("c1ccccc1CCO")
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:20])
    handler.close_connection = True


def closes(handler: Handler) -> None:
    handler.close_connection = True


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**40))
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * 2**16)
    except OSError:
        pass


@contextmanager
def chat_server(behaviours: Sequence[Behaviour]) -> Iterator[ThreadingHTTPServer]:
    """A server and what it was asked: ``server.url``, ``server.seen`` (path, body, authorisation)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.behaviours, server.seen, server.mutex = list(behaviours), [], threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
