"""The page that shows runs: the front, its allocations, what runs and what went wrong. One file that requests nothing.

It is written as report.html (write.py), and served while a search runs (browse/server.py): the same page, whose script
then asks for new content.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from objectives.cost.spec import MAIN, Cost
from search.report.comparison import differences, run_names
from search.report.first_shown import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from search.report.page_data import Content
from search.report.site_grid import SHARES
from search.run.first_answer import READING

_TEMPLATES = Path(__file__).with_name("templates")
_PARTS = ("head", "first", "rows", "notes")  # of the page, by the ids of their elements; each has a template
_DRAWING = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
_SCRIPTS = ("front.js", "charts.js", "sensitivity.js", "allocation.js", "page.js")


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """All that changes on the page, as JSON values. Any text of a search is shown as text, never as markup.

    Attributes:
        title: of the page.
        data: what its script reads of every run; None without a trial to draw.
        costs: that all runs have: cost -> word.
        parts: id of an element -> HTML.
    """

    title: str
    data: list[dict[str, Any]] | None
    costs: Mapping[Cost, str]
    parts: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """As content.json has it."""
        return {"title": self.title, "data": self.data, "costs": self.costs, "parts": self.parts}


def assemble(contents: Sequence[Content], waiting: Sequence[tuple[str, str]] = ()) -> Assembled:
    """All that changes on the page.

    Args:
        contents: of the runs that it shows together, in the order of their colours.
        waiting: directories of runs that cannot be read, or not yet, each with the reason.
    """
    names = run_names([content.run for content in contents])
    costs = _shared_costs(contents)
    shown = {
        "runs": contents,
        "names": names,
        "main": MAIN,
        "costs": costs,
        "differences": differences([content.summary for content in contents], [content.options for content in contents]),
        "waiting": waiting,
        "size": _DRAWING,
        "reading": READING,
    }
    templates = _environment()
    parts = {name: templates.get_template(f"{name}.html.j2").render(shown) for name in _PARTS}
    is_drawn = any(content.data.points for content in contents)
    data = [content.data.to_json(name) for name, content in zip(names, contents, strict=True)] if is_drawn else None
    return Assembled(title=_title(contents, waiting), data=data, costs=costs, parts=parts)


def page(assembled: Assembled, live: bool = False) -> str:
    """The whole page.

    Args:
        assembled: by `assemble`.
        live: whether its script asks for new content, at content.json beside the page, every two seconds.
    """
    names = [*(_SCRIPTS if live or assembled.data else ()), *(["live.js"] if live else [])]
    scripts = [get_plotlyjs(), "\n".join(map(_read, names))] if names else []
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=assembled.title,
            data=assembled.data,
            costs=assembled.costs,
            parts={name: Markup(html) for name, html in assembled.parts.items()},
            live=live,
            shares=[f"{100 * share:.0f}" for share in SHARES],
            style=Markup(_read("page.css")),
            scripts=[Markup(text) for text in scripts],
            # Only these scripts may run, so markup that slipped through could not.
            policy=" ".join(_digest(text) for text in scripts) or "'none'",
        )
    )


def _shared_costs(contents: Sequence[Content]) -> dict[Cost, str]:
    """Cost -> word, of the costs that all runs have."""
    first, *others = [{spec.name: spec.word for spec in content.summary.costs} for content in contents] or [{}]
    return {cost: word for cost, word in first.items() if all(cost in other for other in others)}


def _title(contents: Sequence[Content], waiting: Sequence[tuple[str, str]]) -> str:
    models = list(dict.fromkeys(content.summary.model for content in contents))
    if not models:
        return ", ".join(directory for directory, _ in waiting)
    return f"{', '.join(models)}: {'front' if len(contents) == 1 else 'fronts'} of error and {MAIN.word}"


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    return environment
