"""The version of this project. Nothing is imported here, so that the build can read it without torch."""

__version__ = "0.1.0"
