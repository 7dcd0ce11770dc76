"""What must not be shown: passwords and keys in the URLs of databases, wherever such a URL, or what holds it, is written."""

import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"
_NAMES = r"pass|pwd|pw\b|secret|token|key|credential|auth|signature"
_SECRET = re.compile(_NAMES, re.IGNORECASE)  # in the name of an option
_HOLDS_SECRET = re.compile(rf"({_NAMES})\w*\s*=", re.IGNORECASE)  # in its value, as odbc_connect has it
_WORDS = re.compile(rf"(\w*(?:{_NAMES})\w*\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&;]+)", re.IGNORECASE)  # host=H password=P, no URL
_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"]+")
_LOGIN = re.compile(r"(?<![^\s'\"(=])(?://)?[^\s/:@'\"]+:[^\s'\"]*@\S+")  # USER:PASSWORD@HOST, where the scheme was forgotten


def masked(url: str) -> str:
    """A URL as it may be shown: without its password, and without the values of options that look like secrets.

    A password is all from the first ``:`` behind the scheme to the last ``@``, also where it should have been escaped; what is
    masked stays as it is when it is masked again.
    """
    scheme, rest = _split(url)
    start, end = _password(rest)
    if start < end:
        rest = f"{rest[:start]}{HIDDEN}{rest[end:]}"
    query = _query(rest)
    text = f"{scheme}{rest.removesuffix(query)}{''.join(_masked_options(query))}"
    return text if "://" in scheme else _WORDS.sub(rf"\1{HIDDEN}", text)


def is_masked(url: str) -> bool:
    """Whether something of a URL was left out when it was stored."""
    return any(secret == HIDDEN for secret in secrets_of(url))


def secrets_of(url: str) -> list[str]:
    """All that `masked` leaves out, as it is written and as it is meant."""
    scheme, rest = _split(url)
    start, end = _password(rest)
    found = [rest[start:end]] if start < end else []
    if "://" not in scheme:
        found += [match[2] for match in _WORDS.finditer(rest[end:])]
    for part in re.split("([&;])", _query(rest[end:])):
        name, _, value = part.partition("=")
        if value and _is_secret(name, value):
            found.append(value)
    return list(dict.fromkeys(text for secret in found for text in (secret, unquote(secret), unquote_plus(secret))))


def without_secrets(text: str, url: str | None = None) -> str:
    """A text, an error of a driver for one, without the secrets of the URLs in it.

    Args:
        text: any.
        url: whose secrets may stand in the text alone, as a driver repeats them.
    """
    for secret in sorted(secrets_of(url or ""), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    text = _URL.sub(lambda match: masked(match[0]), text)
    return _LOGIN.sub(lambda match: masked(match[0]), text)


def masked_command(words: Iterable[str]) -> list[str]:
    """The words of a command, without the secrets of a database, as ``--storage URL`` or ``--storage=URL`` and elsewhere."""
    shown, before = list[str](), ""
    for word in words:
        option, separator, value = word.partition("=") if word.startswith("--") else ("", "", word)
        text = masked(value) if "://" in value or _is_storage(option) or _is_storage(before) else without_secrets(value)
        shown.append(f"{option}{separator}{text}")
        before = word
    return shown


def _is_storage(option: str) -> bool:
    """Whether a word is the option, which argparse takes abbreviated too."""
    return len(option) > 3 and "--storage".startswith(option)


def _split(url: str) -> tuple[str, str]:
    """The scheme with its slashes, and what follows; slashes alone where the scheme was forgotten."""
    scheme, separator, rest = url.partition("://")
    if separator:
        return scheme + separator, rest
    slashes = "//" if url.startswith("//") else ""
    return slashes, url.removeprefix(slashes)


def _query(rest: str) -> str:
    """The options in what follows the scheme, from behind the ``?``, or the ``;`` of other URLs than SQLAlchemy's."""
    return "".join(re.split("[?;]", rest, maxsplit=1)[1:])


def _password(rest: str) -> tuple[int, int]:
    """Where the password is in what follows the scheme; nowhere where both are the same."""
    head, mark, _ = rest.partition("?")
    colon, last = head.find(":"), rest.rfind("@")
    if colon < 0 or last < colon or rest.startswith("/"):  # sqlite:///FILE
        return 0, 0
    if "@" not in head and mark and head[colon + 1 :].partition("/")[0].isdecimal():
        return 0, 0  # a port, and an @ in an option
    return colon + 1, last


def _masked_options(query: str) -> Iterator[str]:
    for part in re.split("([&;])", query):
        name, separator, value = part.partition("=")
        yield f"{name}={HIDDEN}" if separator and _is_secret(name, value) else part


def _is_secret(name: str, value: str) -> bool:
    return value == HIDDEN or bool(_SECRET.search(unquote(name)) or _HOLDS_SECRET.search(unquote_plus(value)))
