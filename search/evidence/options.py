"""What the evidence has options for; imports nothing."""

from typing import Literal

# What decides among trials that cannot be told apart: the least expected error, or the least cost.
Preference = Literal["accurate", "cheap"]
