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


def printable(text: str) -> str:
    """`text` on one line, with control characters as escapes: names in files and of files may hold any."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(text.splitlines()))


def shown(value: object, length: int = 60) -> str:
    """A value in a message: its repr, which has no control characters, of bounded length."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
