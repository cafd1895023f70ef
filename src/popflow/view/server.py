"""The server of the local page: what it answers, and how it runs."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from popflow.runs.config import ConfigError
from popflow.view.folders import Folders, is_run, key_of, read_file, text
from popflow.view.forms import again, arguments, jobs, plain_jobs
from popflow.view.guard import App, guarded
from popflow.view.populations import Populations
from popflow.view.processes import Processes
from popflow.view.records import Record, detail, summary
from popflow.view.series import Series

T = TypeVar("T")
_ASSETS = {
    "": ("popflow.view", "static/index.html", "text/html; charset=utf-8"),
    "report.css": ("popflow.runs", "style.css", "text/css; charset=utf-8"),
    "view.css": ("popflow.view", "static/view.css", "text/css; charset=utf-8"),
    **{
        f"{name}.js": ("popflow.view", f"static/{name}.js", "text/javascript; charset=utf-8")
        for name in ("view", "elements", "form", "run", "plots", "population")
    },
}
_REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
)
_LARGEST_REPORT = 64 * 2**20
_CURVES_OF, _POPULATIONS_OF = 12, 4
"""Runs whose curves and populations are kept in memory."""


class View:
    """What the page knows: the folders, the jobs, the processes, and what was read of runs."""

    def __init__(self, folders: Folders):
        self.folders, self.processes = folders, Processes()
        self.jobs, self.broken = jobs()
        self._records: dict[Path, Record] = {}
        self._series: dict[Path, Series] = {}
        self._populations: dict[Path, Populations] = {}

    def folder(self, request: Request) -> Path:
        """Folder of the run that a request names by its key."""
        found = self.folders.find(request.path_params["key"])
        if found is None:
            raise HTTPException(404, "there is no such run.")
        return found

    def record(self, folder: Path) -> Record:
        """What was read of a run."""
        return self._records.setdefault(folder, Record(folder))

    def series(self, folder: Path) -> Series:
        """The curves of a run."""
        return _remembered(self._series, folder, Series, _CURVES_OF)

    def populations(self, folder: Path) -> Populations:
        """The populations of a run."""
        return _remembered(self._populations, folder, Populations, _POPULATIONS_OF)


def application(folders: Folders, token: str, port: int) -> App:
    """Return the ASGI application of the page at ``http://127.0.0.1:PORT/TOKEN/``; runs that it started are interrupted when it ends."""
    view = View(folders)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        view.processes.close()

    routes = [
        Route("/state", _answer(view, _state)),
        Route("/start", _answer(view, _start), methods=["POST"]),
        Route("/runs/{key}", _answer(view, _detail)),
        Route("/runs/{key}/metrics", _answer(view, _metrics)),
        Route("/runs/{key}/population", _answer(view, _population)),
        Route("/runs/{key}/report.html", _answer(view, _report)),
        Route("/runs/{key}/stop", _answer(view, _stop), methods=["POST"]),
        Route("/runs/{key}/resume", _answer(view, _resume), methods=["POST"]),
        Route("/forms", _answer(view, _forms)),
        Route("/{asset}", _asset),
        Route("/", _asset),
    ]
    return guarded(Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _failed}), token, port)


def serve(named: Iterable[Path], out: Path, *, port: int = 0, ready: Callable[[str], None]) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C.

    Args:
        named: Runs, and folders of runs.
        out: Folder of new runs; its runs are shown where none is named.
        port: Port; 0 takes a free one.
        ready: Called with the address once it is answered.

    Raises:
        RunDirectoryError: when a folder that was named does not exist.
        ValueError: when the port cannot be had.
    """
    folders, token = Folders(named, out), secrets.token_urlsafe(24)
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        listening.close()
        raise ValueError(f"port={port} cannot be had: {error.strerror}. Fix: give another one, or none.") from error
    with listening:
        port = listening.getsockname()[1]
        app = application(folders, token, port)
        listening.listen()  # from here on a request waits until it is answered
        ready(f"http://127.0.0.1:{port}/{token}/")
        settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2)
        with suppress(KeyboardInterrupt):  # which is how it ends
            uvicorn.Server(settings).run(sockets=[listening])


def _answer(view: View, handler: Callable[[View, Request, Any], Response]) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        content: Any = None
        if request.method == "POST":
            try:
                content = json.loads(await request.body())
            except (ValueError, RecursionError) as error:
                raise HTTPException(400, f"the request is no JSON: {error}.") from error
            if not isinstance(content, dict):
                raise HTTPException(400, "the request is no JSON object.")
        return handler(view, request, content)

    return answer


def _state(view: View, request: Request, content: Any) -> Response:
    runs = view.folders.runs()
    listed = [summary(view.record(folder), name, view.processes) for name, folder in runs.values()]
    return JSONResponse({"runs": listed, "out": text(view.folders.out), "roots": [text(root) for root in view.folders.roots]})


def _forms(view: View, request: Request, content: Any) -> Response:
    broken = [f"{text(name, 100)}: {text(why)}" for name, why in view.broken.items()]
    return JSONResponse({"jobs": plain_jobs(view.jobs), "broken": broken})


def _detail(view: View, request: Request, content: Any) -> Response:
    return JSONResponse(detail(view.record(view.folder(request)), view.processes))


def _metrics(view: View, request: Request, content: Any) -> Response:
    series = view.series(view.folder(request))
    series.read()
    return JSONResponse({"version": series.version, "same": True} if _seen(request) == series.version else series.plain())


def _population(view: View, request: Request, content: Any) -> Response:
    found, asked = view.populations(view.folder(request)), request.query_params
    if "frame" in asked:
        try:
            axes = (int(asked["x"]), int(asked["y"])) if "x" in asked else None
            return JSONResponse(found.frame(asked["film"], int(asked["frame"]), axes))
        except (LookupError, ValueError) as error:
            raise HTTPException(404, "there is no such frame.") from error
    found.look()
    return JSONResponse({"version": found.version, "same": True} if _seen(request) == found.version else found.plain())


def _report(view: View, request: Request, content: Any) -> Response:
    try:
        page = read_file(view.folder(request), "report.html", _LARGEST_REPORT)
    except (OSError, ValueError) as error:
        raise HTTPException(404, "there is no report.") from error
    return Response(page, media_type="text/html; charset=utf-8", headers={"content-security-policy": _REPORT_POLICY})


def _start(view: View, request: Request, content: Any) -> Response:
    job, values, name = view.jobs.get(str(content.get("job"))), content.get("values"), content.get("folder", "")
    device = content.get("device", "auto")
    if job is None or not isinstance(values, dict) or not isinstance(name, str) or device not in ("auto", "cpu", "cuda"):
        raise HTTPException(400, "wanted {job, values, device, folder} of a form of this page.")
    try:
        folder = view.folders.new(name, job.name)
        command = arguments(job, values, folder, device)
    except (ConfigError, ValueError, TypeError) as error:
        raise HTTPException(400, text(error)) from error
    return _begun(view, command, folder)


def _resume(view: View, request: Request, content: Any) -> Response:
    folder = view.folder(request)
    record = view.record(folder)
    name, device = record.values("config.json").get("job"), str(record.values("env.json").get("device", "auto")).partition(":")[0]
    if not isinstance(name, str) or name not in view.jobs:
        raise HTTPException(400, f"no installed method has the job {text(name, 100)!r}. Fix: install the package that has it.")
    if not is_run(folder) or device not in ("auto", "cpu", "cuda"):
        raise HTTPException(400, "the run cannot be resumed: its env.json is damaged.")
    return _begun(view, again(view.jobs[name], folder, device), folder)


def _stop(view: View, request: Request, content: Any) -> Response:
    try:
        view.processes.stop(view.folder(request))
    except ValueError as error:
        raise HTTPException(409, text(error)) from error
    return JSONResponse({"ok": True})


def _begun(view: View, command: list[str], folder: Path) -> Response:
    try:
        started = view.processes.start(command, folder)
    except (ValueError, OSError) as error:
        raise HTTPException(409, text(error)) from error
    view.folders.started[key_of(folder)] = folder
    return JSONResponse({"key": key_of(folder), "command": started.command, "process": started.process.pid})


async def _asset(request: Request) -> Response:
    found = _ASSETS.get(request.path_params.get("asset", ""))
    if found is None:
        raise HTTPException(404, "there is no such page.")
    package, name, kind = found
    return Response(files(package).joinpath(name).read_bytes(), media_type=kind)


async def _failed(request: Request, error: Exception) -> Response:
    code, why = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "it failed")
    return JSONResponse({"error": why}, code)


def _seen(request: Request) -> int:
    seen = request.query_params.get("seen", "")
    return int(seen) if seen.isdecimal() and len(seen) < 16 else -1


def _remembered(kept: dict[Path, T], folder: Path, make: Callable[[Path], T], most: int) -> T:
    """What is kept for a folder, as the last of a few."""
    kept[folder] = kept.pop(folder, None) or make(folder)
    if len(kept) > most:
        del kept[next(iter(kept))]
    return kept[folder]
