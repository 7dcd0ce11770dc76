"""Places that keep a study, each of which can fail and come back: a journal file, SQLite, and real database servers."""

import os
import pwd
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy
from local_patience import PATIENCE

PASSWORD = "s3cret/p:w@"
QUOTED = "s3cret%2Fp%3Aw%40"


class Place(Protocol):
    """Attributes: url of the storage; None for the journal file in the run directory."""

    url: str | None

    def fail(self) -> None: ...

    def come_back(self) -> None: ...


class Journal:
    """Fails as a full disk does."""

    url: str | None = None

    def fail(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, self._limits[1]))

    def come_back(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


class Sqlite:
    """Fails while another process has the file for itself."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.url: str | None = f"sqlite:///{path}?timeout=0.1"

    def fail(self) -> None:
        self._other = sqlite3.connect(self._path, isolation_level=None)
        self._other.execute("BEGIN EXCLUSIVE")

    def come_back(self) -> None:
        self._other.close()


class Server:
    """A server process on a free port of the loopback; fails as one that is killed.

    Args:
        command: that runs it in the foreground, with {port}.
        stop: the signal that ends it at once.
        user: that it runs as; this process's own without.
        url: of a database in it, with {port}.
        folder: where it works.
    """

    def __init__(self, command: list[str], stop: signal.Signals, user: str | None, url: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = _as(user, [part.format(port=self.port) for part in command])
        self._stop, self._folder = stop, folder
        self.url: str | None = url.format(port=self.port)
        self.come_back()

    def come_back(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process: subprocess.Popen[Any] = subprocess.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0 and self._answers():
                    return
            time.sleep(0.05)
        self.fail()
        raise RuntimeError((self._folder / "log").read_text(errors="replace")[-2000:])

    def fail(self) -> None:
        self._process.send_signal(self._stop)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        assert self.url is not None
        engine = sqlalchemy.create_engine(self.url)
        try:
            engine.connect().close()
        except sqlalchemy.exc.OperationalError:
            return False
        finally:
            engine.dispose()
        return True


@contextmanager
def postgresql() -> Iterator[Server]:
    """A PostgreSQL server that asks for a password; `missing_postgresql` says whether there can be one."""
    programs, user = _postgresql_programs(), "postgres" if os.geteuid() == 0 else None
    with _folder(user) as folder:
        (folder / "password").write_text(PASSWORD)
        secret = ["--auth=scram-sha-256", "--username=tester", f"--pwfile={folder / 'password'}"]
        _run(
            [str(programs / "initdb"), "--no-sync", "--encoding=UTF8", "--locale=C", *secret, f"--pgdata={folder / 'data'}"],
            user,
        )
        options = [
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "port={port}",
            "-c",
            f"unix_socket_directories={folder}",
            "-c",
            "fsync=off",
        ]
        command = [str(programs / "postgres"), "-D", str(folder / "data"), *options]
        url = f"postgresql+psycopg://tester:{QUOTED}@127.0.0.1:{{port}}/postgres"
        yield from _serve(Server(command, signal.SIGQUIT, user, url, folder))


@contextmanager
def mariadb() -> Iterator[Server]:
    """A MariaDB server that asks for a password; `missing_mariadb` says whether there can be one."""
    user = "nobody" if os.geteuid() == 0 else None
    with _folder(user) as folder:
        start = folder / "start.sql"
        start.write_text(
            f"CREATE DATABASE IF NOT EXISTS trials;\n"
            f"CREATE USER IF NOT EXISTS tester@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n"
            "GRANT ALL ON *.* TO tester@'127.0.0.1';\n"
        )
        data = ["--no-defaults", f"--datadir={folder / 'data'}"]
        _run([_program("mariadb-install-db"), *data, "--auth-root-authentication-method=normal", "--skip-test-db"], user)
        options = ["--bind-address=127.0.0.1", "--port={port}", f"--socket={folder / 'socket'}", f"--init-file={start}"]
        command = [_program("mariadbd"), *data, *options, "--skip-name-resolve", "--innodb-flush-log-at-trx-commit=2"]
        yield from _serve(
            Server(command, signal.SIGKILL, user, f"mysql+pymysql://tester:{QUOTED}@127.0.0.1:{{port}}/trials", folder)
        )


def missing_postgresql() -> str | None:
    """Why no PostgreSQL server can be started, if so."""
    return None if _postgresql_programs().exists() else "PostgreSQL's server is not installed"


def missing_mariadb() -> str | None:
    """Why no MariaDB server can be started, if so."""
    return None if shutil.which("mariadbd", path=_PATH) else "MariaDB's server is not installed"


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def _program(name: str) -> str:
    return shutil.which(name, path=_PATH) or name


def _postgresql_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else Path("/usr/lib/postgresql/none")


def _serve(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.fail()


def _as(user: str | None, command: list[str]) -> list[str]:
    """As another user, since servers refuse to be root; the process ends with this one, however that ends."""
    who = [] if user is None else [f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
    return ["setpriv", *who, "--pdeathsig=KILL", *command]


def _run(command: list[str], user: str | None) -> None:
    done = subprocess.run(_as(user, command), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


@contextmanager
def _folder(user: str | None) -> Iterator[Path]:
    """A folder that the server's user can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="server", ignore_cleanup_errors=True) as name:
        if user is not None:
            shutil.chown(name, user)
        yield Path(name)
