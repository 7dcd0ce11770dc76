"""The page of runs over HTTP, live while searches write them. It reads the runs' own tables, and never a study.

However many pages are open, what has changed is read and rendered once.
"""

import hashlib
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from search.layout import AUDIT, CONFIG, RUNNING, SUMMARY, TRIALS
from search.report.html import Assembled, assemble, page
from search.report.page_data import content_of
from search.run.activity import running_of
from search.run.run import Run
from spaces.errors import CompressionError, RunError, first_line, told

_FILES = (TRIALS, SUMMARY, CONFIG, AUDIT, RUNNING)
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}


class Shown:
    """The page's content of some runs, rendered again when their tables have changed.

    Args:
        directories: of the runs; each may be written, gone, or not there yet.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories
        self._lock = threading.Lock()
        self._version = ""
        self._content = assemble([])

    def now(self) -> tuple[str, Assembled]:
        """Version and content."""
        with self._lock:
            version = self._look()
            if version != self._version:
                self._content = self._read()
                self._version = version
            return self._version, self._content

    def _look(self) -> str:
        """Of the files that the content is made from, and whether anything runs."""
        seen = [_state_of(directory) for directory in self._directories]
        return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]

    def _read(self) -> Assembled:
        contents, waiting = [], []
        for directory in self._directories:
            try:
                contents.append(content_of(Run(directory), live=True))
            except (CompressionError, OSError) as error:
                waiting.append((str(directory), told(error)))
            except Exception as error:  # a fault of this program in one run must not take the page of the others away
                waiting.append((str(directory), f"it cannot be shown ({type(error).__name__}: {first_line(error)})"))
        return assemble(contents, waiting)


def _state_of(directory: Path) -> list[Any]:
    seen: list[Any] = [bool(running_of(directory))]
    for name in _FILES:
        try:
            status = (directory / name).stat()
            seen.append((status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            seen.append(None)
    return seen


def application(directories: Sequence[Path]) -> Starlette:
    """The page of some runs at /, and what of it changes at /content.json."""
    shown = Shown(directories)

    def get_page(request: Request) -> Response:
        return HTMLResponse(page(shown.now()[1], live=True), headers=_HEADERS)

    def get_content(request: Request) -> Response:
        version, content = shown.now()
        tag = f'"{version}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={**_HEADERS, "ETag": tag})
        return JSONResponse(content.to_json(), headers={**_HEADERS, "ETag": tag})

    routes = [Route("/", get_page), Route("/content.json", get_content)]
    return Starlette(routes=routes)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one.

    Raises:
        RunError: the port is taken, or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise RunError(f"cannot listen at {host}:{port}: {error.strerror or error}: choose another --port or --host") from error


def serve(directories: Sequence[Path], listener: socket.socket, host: str) -> None:
    """Serve the page of some runs until Ctrl-C."""
    serve_application(application(directories), listener, host)


def serve_application(served: ASGIApp, listener: socket.socket, host: str) -> None:
    """Serve an application until Ctrl-C, to requests that name this server as somebody who may reach it does.

    A page of somebody else's cannot read it through a name of its own that leads here.
    """
    guarded = TrustedHostMiddleware(served, allowed_hosts=hosts_of(host))
    config = uvicorn.Config(guarded, log_level="warning", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])


def hosts_of(host: str) -> list[str]:
    """The names that a request may have for a server that listens there."""
    return ["*"] if host in ("0.0.0.0", "::") else ["localhost", "127.0.0.1", "[::1]", host]
