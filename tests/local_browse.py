"""`browse` in a process of its own."""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import run_search


class Server:
    """`browse` in a process of its own."""

    def __init__(self, run: Path, *options: str) -> None:
        command = [sys.executable, "-W", "ignore", str(Path(run_search.__file__)), "browse", "--no-open", *options, str(run)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        self.url = self.said.partition(" at ")[2].partition(" (")[0]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def wait(self) -> None:
        """Until it answers."""
        end = time.monotonic() + 60
        while True:
            try:
                self.get("/")
                return
            except ConnectionError:
                assert time.monotonic() < end

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer, body

    def content(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/content.json")[1]))


@contextmanager
def served(run: Path, *options: str) -> Iterator[Server]:
    server = Server(run, *options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()
