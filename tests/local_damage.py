"""Damage to files, as disks, editors and half-done copies do it: seeded, so that a failure can be looked at again."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

NESTED = "[" * 100_000
INSERTED = (b"\x00" * 8, b"\xff\xfe", b'"', b",", b"\n", b"null", b"1e999", b"{", b"- [")
CONTENTS = (b"", b"\n", b"null\n", b"[]\n", b"3\n", b'"x"\n', NESTED.encode(), b"\xff\xff", b"{}\n")
LINES = (b"null\n", b"{}\n", b"[1]\n", b"3\n", b"\n")
JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, 1e300, -1e300, float("nan"), float("inf"), 10**30, 10**400, "", "x", "\x00", "1",
    "<b>", "üü", [], {}, [[]], [None], {"x": None}, [1, 2], "macs", "COMPLETE", "0001-01-01T00:00:00",
)  # fmt: skip


def damaged_text(content: bytes, seed: int) -> bytes:
    """A file whose bytes or lines were damaged."""
    rng = random.Random(seed)
    lines = content.splitlines(keepends=True)
    line, place = rng.randrange(len(lines)), rng.randrange(len(content))
    kind = seed % 10
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + content[place + rng.randint(1, 30) :]
    if kind == 3:
        return content[:place] + rng.choice(INSERTED) + content[place:]
    if kind == 4:
        return b"".join((*lines[: line + 1], *lines[line:]))
    if kind == 5:
        return b"".join((*lines[:line], *lines[line + 1 :]))
    if kind == 6:
        other = rng.randrange(len(lines))
        lines[line], lines[other] = lines[other], lines[line]
        return b"".join(lines)
    if kind == 7:
        return content.replace(
            rng.choice((b"0", b"1", b"2", b"e", b'"', b"a")), rng.choice((b"9", b"-", b"x", b"")), rng.randint(1, 5)
        )
    if kind == 8:
        return rng.choice(CONTENTS)
    return b"".join((*lines[:line], rng.choice(LINES), *lines[line:]))


def damaged_value(value: Any, seed: int) -> Any:
    """A JSON value one part of which was replaced, removed, doubled or called otherwise."""
    rng, value = random.Random(seed), copy.deepcopy(value)
    places = list(_places(value))
    holder, key = rng.choice(places)
    kind = seed % 4
    if kind == 0 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == 1:
        del holder[key]
    elif kind == 2 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = rng.choice(JUNK)
    return value


def damaged_json(content: bytes, seed: int) -> bytes:
    """A file of JSON that was damaged as text or as a value."""
    if seed % 3 == 0:
        return damaged_text(content, seed // 3)
    return json.dumps(damaged_value(json.loads(content), seed)).encode()


def damaged_lines(content: bytes, seed: int) -> bytes:
    """A file of a JSON value a line, of which one was damaged."""
    if seed % 3 == 0:
        return damaged_text(content, seed // 3)
    lines = content.splitlines()
    place = random.Random(seed).randrange(len(lines))
    lines[place] = json.dumps(damaged_value(json.loads(lines[place]), seed)).encode()
    return b"\n".join(lines) + b"\n"


def damaged_table(content: bytes, seed: int) -> bytes:
    """A file of comma-separated values that was damaged as text or in one cell or column."""
    if seed % 3 == 0:
        return damaged_text(content, seed // 3)
    rng = random.Random(seed)
    rows = [line.split(",") for line in content.decode().splitlines()]
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    if seed % 3 == 1:
        rows[row][column] = str(rng.choice(JUNK))
    else:
        for cells in rows:
            del cells[column]
    return "\n".join(map(",".join, rows)).encode() + b"\n"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every part of a value: what holds it, and by which key."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])
