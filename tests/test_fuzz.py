"""Hundreds of damaged descriptions of an exported folder, by chance and by seed: each is read, or refused in one line."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from local_folders import Folder, write_folder
from local_vits import MakeVit
from PIL import Image
from torch import Tensor

from objectives.deploy.classify import classify
from search.deploy.model_card import read_summary
from spaces.errors import CompressionError
from spaces.folder.compressed import dense_architecture, load_compressed
from spaces.folder.description import fingerprint_of, read_description

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, -(10**400), 0.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), "",
    "a", "\x00", "\x1b[2J", "\ud800", "../..", "/etc/passwd", "x" * 10_000, [], [[]], {}, {"": {}}, [None], [0] * 1000,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(make_vit: MakeVit, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return write_folder(tmp_path_factory.mktemp("fuzz") / "model", make_vit, images)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def nested(chance: random.Random) -> Any:
    value: Any = chance.choice(ODD)
    for _ in range(chance.choice((3, 300))):
        value = [value] if chance.random() < 0.5 else {"a": value}
    return value


def changed(content: dict[str, Any], chance: random.Random) -> str:
    """The same description with one or two values changed."""
    copy = json.loads(json.dumps(content))
    for _ in range(chance.choice((1, 1, 2))):
        container, key = chance.choice(list(places(copy)))
        action = chance.randrange(6)
        if action == 0:
            del container[key]
        elif action == 1:
            container[key] = nested(chance)
        elif action == 2 and isinstance(container[key], int | float):
            container[key] *= chance.choice((-1, 0, 1.5, 1000, 10**9))
        elif action == 3 and isinstance(container, dict):
            container[key + chance.choice(("", ".0", ".9", "\n"))] = container.pop(key)
        else:
            container[key] = chance.choice(ODD)
    return json.dumps(copy)


def damaged(text: str, chance: random.Random) -> bytes:
    """Cut short, or with a byte changed."""
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    if chance.random() < 0.5:
        return bytes(content[: chance.randrange(len(content))])
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def tried(what: Callable[[], object]) -> bool:
    """Whether it succeeds; the only other end is one line."""
    try:
        what()
    except CompressionError as error:
        said = str(error)
    else:
        return True
    assert "\n" not in said
    assert len(said) < 2000
    return False


def test_nothing_but_one_line_comes_out_of_a_damaged_description(folder: Folder, tmp_path: Path) -> None:
    picture, copy = tmp_path / "picture.png", Path(shutil.copytree(folder.path, tmp_path / "copy"))
    Image.new("RGB", (20, 20)).save(picture)
    content = json.loads((copy / "config.json").read_text())
    counts = {"read": 0, "loaded": 0, "classified": 0, "dense": 0}
    for seed in range(400):
        chance = random.Random(seed)
        text = changed(content, chance)
        (copy / "config.json").write_bytes(damaged(text, chance) if chance.random() < 0.25 else text.encode())
        if not tried(lambda: read_description(copy)):
            continue
        counts["read"] += 1
        counts["loaded"] += tried(lambda: load_compressed(copy))
        counts["classified"] += tried(lambda: list(classify(copy, [picture])))
        counts["dense"] += tried(lambda: dense_architecture(copy))
    assert 50 < counts["read"] < 350, counts
    assert 10 < counts["classified"] <= counts["loaded"] < counts["read"], counts
    assert counts["dense"] > 10, counts


def test_a_damaged_file_of_weights_is_one_line(folder: Folder, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder.path, tmp_path / "copy"))
    content, description = (copy / "model.safetensors").read_bytes(), json.loads((copy / "config.json").read_text())
    read = 0
    for seed in range(100):
        chance = random.Random(seed)
        broken = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            broken[chance.randrange(min(len(broken), 3000))] ^= 1 << chance.randrange(8)
        (copy / "model.safetensors").write_bytes(broken)
        description["files"]["model.safetensors"] = fingerprint_of(copy / "model.safetensors")
        (copy / "config.json").write_text(json.dumps(description))
        read += tried(lambda: load_compressed(copy)(torch.zeros(1, 3, 16, 16)))
    assert 0 < read < 100, "bytes of the header, and of weights"


@pytest.mark.parametrize("content", [b"", b"---\n", b"# a title", b"\xff\xfe", b"---\na: 1\n---\n# t\x1b[2J\n\n## more"])
def test_a_card_that_is_none_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "README.md").write_bytes(content)
    if tried(lambda: read_summary(tmp_path)):
        assert read_summary(tmp_path) == r"# t\x1b[2J"
