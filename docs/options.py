"""Writes docs/options.md, the options of every command, from the parser itself. Run: python docs/options.py"""

import argparse
from pathlib import Path

from search.terminal.parser import build_parser

PAGE = Path(__file__).with_suffix(".md")

_INTRODUCTION = """# Options

Every option of every command, as `--help` prints them. `python docs/options.py` writes this page.

Options of `launch` can also be given in a YAML file (`launch --config FILE`) or in Python (`SearchConfig`), with names that
have `_` in place of `-`. Flags win over the file. `--no-NAME` switches a yes/no option off.
"""


def page() -> str:
    """The whole page, as Markdown. An option that a command shares with an earlier one is only named there."""
    known: set[str] = set()
    return "\n".join([_INTRODUCTION, *(_section(name, command, known) for name, command in _commands().items())])


def _commands() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def _section(name: str, parser: argparse.ArgumentParser, known: set[str]) -> str:
    own, shared = [], []
    for group in parser._action_groups:
        rows = {_name(action): _row(action) for action in group._group_actions if action.dest != "help"}
        shared += [option for option, row in rows.items() if row in known]
        fresh = [row for row in rows.values() if row not in known]
        known.update(row for row in fresh if row.startswith("| `-"))
        if fresh:
            title = (group.title or "").replace("positional ", "")
            own.append("\n".join([f"| {title} | meaning |", "|---|---|", *fresh, ""]))
    described = [f"{parser.description}\n"] if parser.description else []
    return "\n".join(
        [f"## {name}\n", *described, *own, *([f"As in the commands above: {', '.join(shared)}.\n"] if shared else [])]
    )


def _name(action: argparse.Action) -> str:
    return f"`{action.option_strings[0] if action.option_strings else action.metavar or action.dest}`"


def _row(action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": ""}
    if action.default not in (None, False, []) and "default:" not in text:
        text += f" (default: {action.default})"
    if action.choices:
        text += f"; one of {', '.join(map(str, action.choices))}"
    return f"| {_name(action)} | {text} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
