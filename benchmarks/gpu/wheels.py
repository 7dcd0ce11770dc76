"""Wheels of what a machine with PyTorch lacks: collected where there is a network, installed where there is none.

    make wheels                  # in wheels/1 and wheels/2, at most 60 MB each; the second part has the rest of what is largest
    make gpu                     # installs into wheels/site what is there, needed and missing, with pip and no index

What is needed follows from pyproject.toml and from what the packages themselves say; versions are those of constraints.txt. A
wheel is packed anew with LZMA, which pip reads: Ray's becomes a seventh smaller. One that does not fit is cut in two by bytes.
"""

import argparse
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PART = 60_000_000  # bytes
SITE = "site"
_TESTS = ("pytest", "hypothesis")  # what `tests/conftest.py` imports
_CUT = re.compile(r"(?P<wheel>.+\.whl)\.(?P<number>\d)of(?P<of>\d)")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the wheels are for.

    Attributes:
        python: its version, as in 3.12.
        platforms: tags of pip.
        has: packages that are there with all that they need.
    """

    python: str
    platforms: Sequence[str]
    has: Sequence[str]

    @property
    def environment(self) -> dict[str, str]:
        """What markers of requirements are evaluated in."""
        full = f"{self.python}.0"
        return {
            "python_version": self.python,
            "python_full_version": full,
            "sys_platform": "linux",
            "platform_machine": "x86_64",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["collect", "install"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--platforms", nargs="+", default=["manylinux2014_x86_64", "manylinux_2_28_x86_64"])
    parser.add_argument("--has", nargs="+", default=["torch", "torchvision"], help="what is there, with all that it needs")
    given = parser.parse_args()
    if given.what == "collect":
        collect(given.folder, Machine(python=given.python, platforms=given.platforms, has=given.has))
    else:
        install(given.folder)


def collect(folder: Path, machine: Machine) -> None:
    """Download, pack and cut. What is in the folder already is kept where it is of the same version."""
    versions = pinned()
    present = closure(map(Requirement, machine.has), machine.environment)
    wanted = sorted(closure(required(), machine.environment) - present)
    if unknown := [name for name in wanted if name not in versions]:
        raise SystemExit(f"constraints.txt has no version of {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as temporary:
        for name in wanted:
            download(f"{name}=={versions[name]}", Path(temporary), machine)
        wheels = sorted(Path(temporary).glob("*.whl"), key=lambda path: path.stat().st_size)
        for wheel in wheels:
            pack(wheel)
        share_out(sorted(wheels, key=lambda path: path.stat().st_size), folder)
    for part in sorted(path for path in folder.iterdir() if path.name.isdigit()):
        files = sorted(part.iterdir())
        print(f"{part}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB, {len(files)} files")


def required() -> list[Requirement]:
    """What the project's code and its tests for a GPU import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in (*project["dependencies"], *_TESTS)]


def pinned() -> dict[str, Version]:
    """Package -> version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(name): Version(version) for name, _, version in (line.partition("==") for line in lines)}


def closure(roots: Iterable[Requirement], environment: dict[str, str]) -> set[str]:
    """Names of packages and of all that they need, by the metadata of those that are installed here.

    Args:
        roots: where to begin.
        environment: of the machine that they are for.

    Raises:
        SystemExit: a package is needed there that is not installed here.
    """
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = list(roots)
    while waiting:
        root = waiting.pop()
        key = canonicalize_name(root.name), frozenset(root.extras)
        if key in found:
            continue
        found.add(key)
        try:
            needs = importlib.metadata.requires(root.name) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise SystemExit(f"{root.name} is not installed here: what it needs is not known; make install") from error
        for need in map(Requirement, needs):
            extras = ("", *root.extras)
            if need.marker is None or any(need.marker.evaluate({**environment, "extra": extra}) for extra in extras):
                waiting.append(need)
    return {name for name, _ in found}


def download(requirement: str, folder: Path, machine: Machine) -> None:
    """One wheel; where there is none, one is built of the sources, if that is good for every machine.

    Raises:
        SystemExit: there is neither.
    """
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    tags = [argument for platform in machine.platforms for argument in ("--platform", platform)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", machine.python, "--implementation", "cp", *tags]
    found = subprocess.run([*pip, "download", *options, "--dest", str(folder), requirement], capture_output=True, text=True)
    if found.returncode == 0:
        return
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), requirement], capture_output=True, text=True
    )
    name = canonicalize_name(Requirement(requirement).name)
    if built.returncode or not any(path.name.endswith("-none-any.whl") for path in wheels_of(folder, name)):
        raise SystemExit(
            f"no wheel of {requirement} for {machine.python}, {', '.join(machine.platforms)}:\n{found.stderr}{built.stderr}"
        )


def wheels_of(folder: Path, name: str) -> list[Path]:
    """The wheels of a package in a folder."""
    return [path for path in folder.glob("*.whl") if parse_wheel_filename(path.name)[0] == name]


def pack(wheel: Path) -> None:
    """Pack a wheel anew, in place: the same files, compressed better."""
    packed = wheel.with_suffix(".packed")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as target:
        for entry in source.infolist():
            target.writestr(entry, source.read(entry), zipfile.ZIP_LZMA)
    packed.replace(wheel)


def share_out(wheels: Sequence[Path], folder: Path) -> None:
    """Write wheels into `folder`/1 and `folder`/2. The second part takes the end of the largest, as much as it may hold.

    So that the first part is small: it is the one that travels with images.

    Raises:
        SystemExit: they do not fit.
    """
    *small, largest = wheels
    content, room = largest.read_bytes(), PART
    head, tail = content[: max(0, len(content) - room)], content[max(0, len(content) - room) :]
    if sum(path.stat().st_size for path in small) + len(head) > PART:
        raise SystemExit(f"the wheels do not fit in two parts of {PART / 1e6:.0f} MB")
    parts: dict[Path, bytes] = {folder / "1" / path.name: path.read_bytes() for path in small}
    names = (f"{largest.name}.1of2", f"{largest.name}.2of2") if head else ("", largest.name)
    parts |= {folder / number / name: data for number, name, data in zip("12", names, (head, tail), strict=True) if name}
    for number in "12":
        for old in (folder / number).glob("*"):
            old.unlink()
        (folder / number).mkdir(parents=True, exist_ok=True)
    for path, data in parts.items():
        path.write_bytes(data)


def install(folder: Path) -> None:
    """Install into `folder`/site what is needed, and not here in a version that will do; say what is still missing."""
    site, bounds = folder / SITE, {canonicalize_name(need.name): need.specifier for need in required()}
    sys.path.insert(0, str(site))
    with tempfile.TemporaryDirectory() as temporary:
        wheels = [*folder.glob("[12]/*.whl"), *joined(folder, Path(temporary))]
        wanted = [path for path in wheels if not suffices(name := parse_wheel_filename(path.name)[0], bounds.get(name))]
        if wanted:
            options = ["--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(site)]
            pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *options]
            code = subprocess.run([*pip, *map(str, wanted)], env={**os.environ, "PIP_FIND_LINKS": ""}).returncode
            print(f"wheels: {len(wanted)} installed" if code == 0 else f"wheels: pip ended with status {code}", flush=True)
    importlib.invalidate_caches()
    if missing := [str(need) for need in required() if not suffices(need.name, need.specifier)]:
        print(f"missing: {', '.join(missing)}: make wheels, and bring wheels/1 and wheels/2", flush=True)


def suffices(name: str, bound: object) -> bool:
    """Whether a package is here in a version within its bounds."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return bound is None or version in bound  # type: ignore[operator]


def joined(folder: Path, temporary: Path) -> list[Path]:
    """The wheels that were cut, put together again; those of which a part is missing are left out."""
    pieces: dict[str, dict[int, Path]] = {}
    counts: dict[str, int] = {}
    for path in folder.glob("[12]/*.whl.*of*"):
        if match := _CUT.fullmatch(path.name):
            pieces.setdefault(match["wheel"], {})[int(match["number"])] = path
            counts[match["wheel"]] = int(match["of"])
    found = []
    for name, parts in pieces.items():
        if len(parts) == counts[name]:
            (temporary / name).write_bytes(b"".join(parts[number].read_bytes() for number in sorted(parts)))
            found.append(temporary / name)
    return found


if __name__ == "__main__":
    main()
