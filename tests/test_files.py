"""Files and folders are whole under their names, whatever ends the writing."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from local_runs import content

from spaces.files import partial_beside, remove_partials, replacing
from spaces.tensors import save_tensors

# Writers are forked, so that they begin at once; not from this process, whose libraries have threads.
LOOP = """
import itertools, os, signal, sys, time
from pathlib import Path
from spaces.files import replacing

def begin(folder, name):
    pid = os.fork()
    if pid:
        return pid
    for turn in itertools.count():
        with replacing(folder) as partial:
            partial.mkdir()
            for file in range(20):
                (partial / str(file)).write_text(f"{name} {turn}")
        folder.with_name(name).write_text(str(turn))

def turns(folder, name, count):
    progress, end = folder.with_name(name), time.monotonic() + 60
    while not progress.exists() or int(progress.read_text() or 0) < count:
        assert time.monotonic() < end and os.waitpid(-1, os.WNOHANG) == (0, 0), "a writer has failed"

def kill(*pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
"""


def forking(code: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", f"{LOOP}\nfolder = Path(sys.argv[1])\n{code}", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr


def one_writer(folder: Path) -> str:
    """What all files of the folder hold; fails where they come from two writings."""
    assert len(list(folder.iterdir())) == 20
    (text,) = {path.read_text() for path in folder.iterdir()}
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "folder"


def test_kills_leave_a_whole_folder_and_what_they_leave_beside_is_removed(folder: Path) -> None:
    forking(
        """
for number in range(10):
    place = folder.parent / str(number) / folder.name
    pid = begin(place, "one")
    turns(place, "one", 5)
    time.sleep(0.003 * number)
    kill(pid)
""",
        folder,
    )
    for number in range(10):
        place = folder.parent / str(number) / folder.name
        if place.exists():  # for a moment, the old one is aside and the new one not there yet
            one_writer(place)
        remove_partials(place.parent)
        assert {path.name for path in place.parent.iterdir()} <= {folder.name, "one"}


def test_two_processes_may_replace_one_folder_and_the_last_one_wins(folder: Path) -> None:
    code = """
one, two = begin(folder, "one"), begin(folder, "two")
turns(folder, "one", 200)
turns(folder, "two", 200)
kill(one, two)
"""
    forking(code, folder)
    with replacing(folder) as partial:
        partial.mkdir()
        for name in range(20):
            (partial / str(name)).write_text("last")
    assert one_writer(folder) == "last"


def test_a_failure_leaves_the_old_folder(folder: Path) -> None:
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "file").write_text("old")
    before = content(folder.parent)

    def fail() -> None:
        with replacing(folder) as partial:
            partial.mkdir()
            (partial / "file").write_text("new")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert content(folder.parent) == before


def test_what_a_process_of_this_number_left_is_not_in_the_way(folder: Path) -> None:
    """In containers all runs may have the same few numbers."""
    (partial_beside(folder, folder.name) / "below").mkdir(parents=True)
    with replacing(folder) as partial:
        partial.mkdir()
    assert list(folder.parent.iterdir()) == [folder]
    assert not list(folder.iterdir())


def test_only_what_ended_processes_left_is_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for place in (tmp_path, tmp_path / "below"):
        place.mkdir(exist_ok=True)
        for pid in (gone.pid, os.getpid()):
            (place / f".name.{pid}.partial").mkdir()
    remove_partials(tmp_path, below=False)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [f".name.{os.getpid()}.partial"]
    assert len(list((tmp_path / "below").iterdir())) == 2
    remove_partials(tmp_path)
    assert [path.name for path in (tmp_path / "below").iterdir()] == [f".name.{os.getpid()}.partial"]


def test_tensors_on_a_full_disk_are_an_os_error_with_the_path(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"too large: .*weights\.safetensors"):
            save_tensors(tmp_path / "weights.safetensors", {"weight": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
