"""Files of the Hugging Face hub: from its cache, or downloaded where the hub answers within seconds."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from spaces.errors import ModelError, first_line, printable

_PATIENCE = 4.0  # seconds for the hub to answer at all, of which a name that does not resolve takes the most


@contextmanager
def quick_hub() -> Iterator[None]:
    """Within it the cache alone is asked where the hub does not answer: its client would try again for a minute."""
    if constants.HF_HUB_OFFLINE or _answers():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def why_unreachable() -> str | None:
    """Within `quick_hub`: why nothing can be downloaded, and what to do; None where the hub answers."""
    if not constants.HF_HUB_OFFLINE:
        return None
    return (
        f"{constants.ENDPOINT} does not answer, or HF_HUB_OFFLINE is set, and the cache in {constants.HF_HUB_CACHE} has no "
        "such weights: give a file with --checkpoint, or HF_HUB_CACHE with a cache that has them"
    )


def first_of_hub(name: str, files: Sequence[str]) -> Path:
    """The first of `files` that a repository of the hub has, in the local cache.

    Args:
        name: ORG/NAME, or ORG/NAME@REVISION.
        files: names, the most wanted first.

    Raises:
        ModelError: there is none, or the hub cannot be reached and none is cached.
    """
    repository, _, revision = name.partition("@")
    with quick_hub():
        for file in files:
            try:
                return Path(hf_hub_download(repository, file, revision=revision or None))
            except EntryNotFoundError:  # also what the cache says of a file that it does not have
                continue
            except Exception as error:  # the hub's client and its transport raise what they like
                raise ModelError(f"hf-hub:{printable(name)} cannot be loaded: {first_line(error)[:200]}") from error
        why = why_unreachable() or f"it has none of {', '.join(files)}"
    raise ModelError(f"hf-hub:{printable(name)} cannot be loaded: {why}")


def _answers() -> bool:
    """Whether the hub answers a request; in a thread, since looking up a name knows no timeout."""
    found: list[bool] = []

    def ask() -> None:
        try:
            found.append(get_session().head(constants.ENDPOINT, timeout=_PATIENCE).status_code < 500)
        except Exception:  # whatever the transport or a proxy raises: it does not answer
            found.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return found == [True]
