"""Ctrl-C once and twice, and SIGTERM."""

import signal
import threading
from contextlib import suppress

import pytest

from search.driver.interrupts import Interrupts


@pytest.fixture
def noted() -> list[bool]:
    return []


def handlers() -> tuple[object, object]:
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


def test_the_first_is_noted_and_the_second_raises(noted: list[bool]) -> None:
    with Interrupts(lambda: noted.append(True)) as interrupts:
        assert not interrupts.asked
        signal.raise_signal(signal.SIGINT)
        assert interrupts.asked and noted == [True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert noted == [True], "once is enough"


def test_sigterm_raises_at_once(noted: list[bool]) -> None:
    with Interrupts(lambda: noted.append(True)) as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert not interrupts.asked and not noted


def test_handlers_are_as_before_afterwards(noted: list[bool]) -> None:
    before = handlers()
    with suppress(RuntimeError), Interrupts(lambda: noted.append(True)):
        assert all(now is not then for now, then in zip(handlers(), before, strict=True))
        raise RuntimeError
    assert handlers() == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert noted == []


def test_outside_of_the_main_thread_nothing_changes(noted: list[bool]) -> None:
    before, found = handlers(), []

    def body() -> None:
        with Interrupts(lambda: noted.append(True)) as interrupts:
            found.append((handlers(), interrupts.asked))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [(before, False)]
    assert handlers() == before
