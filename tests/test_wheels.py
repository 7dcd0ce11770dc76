"""The wheels for a machine without a network: what is needed, packed, cut, and put together again."""

import zipfile
from pathlib import Path

import pytest
from gpu import wheels
from gpu.wheels import closure, joined, pack, pinned, required, share_out, suffices
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

LINUX = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux", "platform_machine": "x86_64"}


def test_a_closure_has_what_packages_say_that_they_need() -> None:
    """Alembic needs Mako, Mako needs MarkupSafe; an extra is followed where it is asked for."""
    plain = closure([Requirement("alembic")], LINUX)
    assert {"alembic", "mako", "markupsafe", "sqlalchemy", "typing-extensions"} <= plain
    assert "psycopg-binary" not in closure([Requirement("psycopg")], LINUX)
    assert "psycopg-binary" in closure([Requirement("psycopg[binary]")], LINUX)


def test_all_that_is_needed_has_a_version() -> None:
    assert closure(required(), LINUX) <= set(pinned())


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(SystemExit, match="no-such-package is not installed here"):
        closure([Requirement("no-such-package")], LINUX)


def test_a_version_out_of_bounds_does_not_suffice() -> None:
    assert suffices("pytest", None) and suffices("pytest", SpecifierSet(">=1"))
    assert not suffices("pytest", SpecifierSet(">=1000"))
    assert not suffices("no-such-package", None)


def test_a_packed_wheel_has_the_same_files(tmp_path: Path) -> None:
    wheel, content = tmp_path / "one-1.0-py3-none-any.whl", {"one/a.py": b"a = 1\n" * 1000, "one/b.bin": bytes(range(256)) * 8}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    before = wheel.stat().st_size
    pack(wheel)
    with zipfile.ZipFile(wheel) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == content
    assert wheel.stat().st_size < before / 4


@pytest.mark.parametrize(("size", "first"), [(150, 50), (90, 0)])
def test_the_largest_is_cut_where_it_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, first: int
) -> None:
    """Parts of 100 bytes: a small wheel of 30, and of the large one what the second part cannot hold."""
    monkeypatch.setattr(wheels, "PART", 100)
    small, large = tmp_path / "small-1.0-py3-none-any.whl", tmp_path / "large-1.0-py3-none-any.whl"
    small.write_bytes(bytes(30))
    large.write_bytes(content := bytes(number % 251 for number in range(size)))
    folder, out = tmp_path / "wheels", tmp_path / "out"
    out.mkdir()
    share_out([small, large], folder)
    sizes = {part: sum(path.stat().st_size for path in (folder / part).iterdir()) for part in "12"}
    assert sizes == {"1": 30 + first, "2": size - first}
    found = joined(folder, out)
    assert [path.read_bytes() for path in found] == ([content] if first else [])
    for path in (folder / "1").glob("*.1of2"):
        path.unlink()
        assert joined(folder, out) == []  # one half is no wheel


def test_what_does_not_fit_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "PART", 100)
    small, large = tmp_path / "small-1.0-py3-none-any.whl", tmp_path / "large-1.0-py3-none-any.whl"
    small.write_bytes(bytes(60))
    large.write_bytes(bytes(150))
    with pytest.raises(SystemExit, match="do not fit in two parts"):
        share_out([small, large], tmp_path / "wheels")
