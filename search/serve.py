"""A run's page over HTTP, live while a search writes the run. It reads the run's own tables, and never the study.

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
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from search.page import content_of, page, waiting
from search.run import AUDIT, Run
from search.running import RUNNING, running_of
from spaces.errors import CompressionError, RunError

_TABLES = ("trials.csv", "pareto.json", AUDIT, RUNNING)
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}


class Shown:
    """The page's content of one run, rendered again when its tables have changed.

    Args:
        directory: of the run; it may be written, gone, or not there yet.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._version = ""
        self._content: dict[str, Any] = {}

    def now(self) -> tuple[str, dict[str, Any]]:
        """Version and content."""
        with self._lock:
            version = self._look()
            if version != self._version:
                self._content = self._read()
                self._version = version
            return self._version, self._content

    def _look(self) -> str:
        """Of the files that the content is made from, and whether anything runs."""
        seen: list[Any] = [bool(running_of(self._directory))]
        for name in _TABLES:
            try:
                status = (self._directory / name).stat()
                seen.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                seen.append(None)
        return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]

    def _read(self) -> dict[str, Any]:
        try:
            return content_of(Run(self._directory), live=True)
        except (CompressionError, OSError) as error:
            return waiting(str(self._directory), str(error))


def application(directory: Path, hosts: Sequence[str]) -> Starlette:
    """The page at /, and what of it changes at /content.json.

    Args:
        directory: of the run.
        hosts: names that a request may have for this server: a page of somebody else's cannot read the run through a name of
            its own that leads here.
    """
    shown = Shown(directory)

    def get_page(request: Request) -> Response:
        return HTMLResponse(page(shown.now()[1], live=True), headers=_HEADERS)

    def get_content(request: Request) -> Response:
        version, content = shown.now()
        tag = f'"{version}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={**_HEADERS, "ETag": tag})
        return JSONResponse(content, headers={**_HEADERS, "ETag": tag})

    routes = [Route("/", get_page), Route("/content.json", get_content)]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])


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


def serve(directory: Path, listener: socket.socket, host: str) -> None:
    """Serve a run's page until Ctrl-C."""
    everywhere = host in ("0.0.0.0", "::")
    hosts = ["*"] if everywhere else ["localhost", "127.0.0.1", "[::1]", host]
    config = uvicorn.Config(application(directory, hosts), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])
