"""Arguments of the form KEY=VALUE: names, and values as YAML and Python write them."""

import argparse
from typing import Any

from search.values import read_value


class KeyValues(argparse.Action):
    """Reads a list of KEY=VALUE into a dictionary."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        found: dict[str, Any] = {}
        for text in values:
            name, sign, value = text.partition("=")
            if not sign or not name.isidentifier():
                raise argparse.ArgumentError(self, f"{text!r} is not KEY=VALUE")
            if name in found:
                raise argparse.ArgumentError(self, f"{name} is given twice")
            try:
                found[name] = read_value(value)
            except ValueError as error:
                raise argparse.ArgumentError(self, f"{text!r} {error}") from error
        setattr(namespace, self.dest, found)
