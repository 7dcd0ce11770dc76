"""Waiting for what is sure to come, on a machine of any speed."""

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 240.0  # seconds; reached where a test fails, and nowhere else


def poll(condition: Callable[[], Any], seconds: float = PATIENCE, pause: float = 0.1) -> bool:
    """Whether the condition came true within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(pause)
    return bool(condition())
