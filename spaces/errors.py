"""The exceptions of this project, in one tree; the lowest layer, so that every package may raise from it.

CompressionError                 anything the user can put right: printed as one line, exit status 2
├── ModelError (ValueError)      unknown model, no compressible site, class count that does not fit
│   └── CheckpointError          file missing, corrupt, pickled, or made for another model
├── AllocationError (ValueError) a size that its site does not offer, an unknown site
├── DataError (ValueError)       empty folder, one class, unreadable images, unknown split
├── TargetError (ValueError)     malformed or unreachable budget
├── ConfigError (ValueError)     unknown key, value out of range
├── RunError (RuntimeError)      run directory of another model, nothing finished, not writable
└── CountError (RuntimeError)    a cost that cannot be counted; never reported as zero
DivergedError (ArithmeticError)  a fine-tune whose loss became NaN or infinite; fails one trial, not the search
"""

import errno
import re
import reprlib
import unicodedata

_ELSEWHERE = "choose another place (--output)"
_REMEDIES = {
    errno.ENOSPC: "make room there, or " + _ELSEWHERE,
    errno.EDQUOT: "your share of that disk is used up: make room, or " + _ELSEWHERE,
    errno.EFBIG: "the disk or a limit (ulimit -f) allows no file of this size: raise it, or " + _ELSEWHERE,
    errno.EACCES: "ask for the right to read and write it, or " + _ELSEWHERE,
    errno.EPERM: "ask for the right to read and write it, or " + _ELSEWHERE,
    errno.EROFS: "that disk can only be read: " + _ELSEWHERE,
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer --workers",
    errno.ENFILE: "this machine has too many open files: end other programs",
    errno.ENAMETOOLONG: "choose a shorter name (--output)",
    errno.ENOENT: "correct the path, or " + _ELSEWHERE,
    errno.ENOTDIR: "a part of the path is a file, not a folder: " + _ELSEWHERE,
    errno.EISDIR: "this is a folder where a file belongs: move it away, or " + _ELSEWHERE,
    errno.EEXIST: "move what is there away, or " + _ELSEWHERE,
    errno.ELOOP: "its links lead in a circle: correct them",
    errno.EIO: "the disk cannot be read or written: check it, and restore the file from a backup",
    errno.ESTALE: "the network disk has lost it: mount it again",
    errno.ENOMEM: "there is too little memory: end other programs",
}
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60
_DIRECTIONS = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # which reorder what is read


class CompressionError(Exception):
    """Something that the user can put right; the message says what was wrong, the value and what is allowed."""


class ModelError(CompressionError, ValueError):
    """The model is unknown, or has nothing that this project can compress."""


class CheckpointError(ModelError):
    """The weights cannot be read, or belong to another model."""


class AllocationError(CompressionError, ValueError):
    """The allocation names an unknown site, or a size that the site does not offer."""


class DataError(CompressionError, ValueError):
    """The images cannot be used."""


class TargetError(CompressionError, ValueError):
    """The budget is malformed, or outside the reachable range."""


class ConfigError(CompressionError, ValueError):
    """An option is unknown or its value is not allowed."""


class RunError(CompressionError, RuntimeError):
    """The run directory cannot be used for what was asked."""


class CountError(CompressionError, RuntimeError):
    """A cost cannot be counted."""


class DivergedError(ArithmeticError):
    """The loss of a fine-tune became NaN or infinite."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, without what follows; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown(value: object, longest: int = 100) -> str:
    """A foreign value in a message: short, however long or deep it is."""
    text = _SHOWN.repr(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def printable(text: str, longest: int = 10_000) -> str:
    """Foreign text for a terminal: what would steer it, break the line or reorder what is read is written as an escape."""
    cut = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return "".join(_escaped(sign) if _steers(sign) else sign for sign in cut)


def _steers(sign: str) -> bool:
    return sign in _DIRECTIONS or unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


def explained(error: OSError) -> str:
    """What the system could not do in one line: the file as its owner knows it, why, and what to do."""
    paths = [named(str(path)) for path in (error.filename2, error.filename) if path is not None]
    why = why_not(error)
    return f"{paths[0]}: {why}" if paths else why


def told(error: Exception) -> str:
    """An error for a person, in one line: this project's in its own words, the system's explained."""
    return " ".join((explained(error) if isinstance(error, OSError) else str(error)).splitlines())


def why_not(error: OSError) -> str:
    """Why the system could not do something, and what to do."""
    code = error.errno if error.errno is not None else code_in(str(error))
    reason = error.strerror or first_line(error)
    return f"{reason}: {_REMEDIES.get(code, 'put that right')}" if code is not None else reason


def named(path: str) -> str:
    """A path; for what is written beside it until it is whole (`spaces.files.replacing`), that of what it becomes."""
    return re.sub(r"\.([^/]+?)(\.old)?\.\d+\.partial(?=/|$)", r"\1", path)


def code_in(text: str) -> int | None:
    """The number of an error of the system, as libraries of other languages write it."""
    match = re.search(r"os error (\d+)", text)
    return int(match[1]) if match else None
