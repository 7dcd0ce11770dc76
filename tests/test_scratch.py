"""Temporary folders go with their process, however it ends, and never another's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spaces.scratch import Scratch, remove_abandoned


def killed(parent: Path) -> Path:
    """What a process that kills itself leaves."""
    code = (
        "import os, signal; from pathlib import Path; from spaces.scratch import Scratch\n"
        f"scratch = Scratch(Path({str(parent)!r})); (scratch.path / 'deep').mkdir()\n"
        "(scratch.path / 'deep' / 'weights').write_text('weights'); print(scratch.path, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return Path(done.stdout.strip())


def test_a_folder_goes_when_it_is_closed_or_its_block_ends(tmp_path: Path) -> None:
    with Scratch(tmp_path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("text")
        assert folder.parent == tmp_path
        assert oct(folder.stat().st_mode & 0o777) == "0o700"
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), Scratch(tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next_one_and_a_living_ones_is_not(tmp_path: Path) -> None:
    left = killed(tmp_path)
    assert (left / "deep" / "weights").exists()
    with Scratch(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder], "the one that was left is gone"
        remove_abandoned(tmp_path)
        assert folder.exists()
        with Scratch(tmp_path) as other:
            assert sorted(tmp_path.iterdir()) == sorted([folder, other])


def test_folders_of_others_are_left(tmp_path: Path) -> None:
    """One of the same beginning that holds no lock, a link to a folder that does, and a file."""
    (tmp_path / "vcs-mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".lock").touch()
    (tmp_path / "vcs-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "vcs-file").touch()
    remove_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "vcs-file", "vcs-link", "vcs-mine"]
    assert (tmp_path / "elsewhere" / ".lock").exists()


def test_a_forked_process_does_not_take_the_folder_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = Scratch(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        scratch.close()
    assert scratch.path.exists()
