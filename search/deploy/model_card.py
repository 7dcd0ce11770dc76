"""The model card of an exported folder: its figures for people, and the metadata that the Hugging Face hub reads."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import nn

from objectives.cost.spec import MAIN, known_costs
from objectives.units import format_count, format_kept, format_size, format_spread
from search.config import SearchConfig
from search.evidence.intervals import Interval
from search.report.verdict import difference_text, expected_text, numbered
from spaces.errors import CheckpointError, printable

# Licences that the hub knows by these identifiers; those of other names are `other` there, with their name beside it.
_KNOWN_LICENSES = (
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "apple-ascl",
    "apple-amlr",
    "gemma",
    "unknown",
)


def card(report: dict[str, Any], config: SearchConfig, dense: nn.Module, space: str) -> str:
    """README.md of the folder.

    Args:
        report: content of report.json.
        config: of the run.
        dense: the dense model, whose weights are the base of this one.
        space: name of the space of the model's sizes.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, autoescape=False
    )
    templates.filters.update(points=_points, interval=_interval)
    templates.filters.update(count=format_count, kept=format_kept, size=format_size, time=_time, percent=_percent, code=_code)
    base = _base(config, dense)
    metadata = _metadata(report, config, base).to_yaml()
    return templates.get_template("card.md.j2").render(
        report=report,
        model=config.model.model,
        space=space,
        base=base,
        metadata=metadata,
        main=MAIN,
        tied=_tied(report["origin"]),
        costs=known_costs(report["costs"]),
    )


def read_summary(folder: Path) -> str:
    """The title and the figures of a folder's card, for the terminal.

    Raises:
        CheckpointError: its README.md is no card.
    """
    try:
        _, _, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'README.md'} is no model card: --force writes the folder again") from error
    return "\n".join(printable(line) for line in text.split("\n## ")[0].strip().split("\n"))


def _base(config: SearchConfig, dense: nn.Module) -> dict[str, str | None]:
    """What is known of the dense weights: their name on the hub, and their licence."""
    known = getattr(dense, "pretrained_cfg", None) or {}
    if not config.model.pretrained or config.model.checkpoint:
        return {"hub": None, "license": None}
    return {"hub": known.get("hf_hub_id"), "license": known.get("license")}


def _metadata(report: dict[str, Any], config: SearchConfig, base: dict[str, str | None]) -> ModelCardData:
    name = base["license"] or "unknown"
    known = name in _KNOWN_LICENSES
    return ModelCardData(
        library_name="vit-compression-search",
        pipeline_tag="image-classification",
        tags=["image-classification", "vision-transformer", "model-compression", *_others(report)],
        base_model=base["hub"],
        license=name if known else "other",
        license_name=None if known else name,
        model_name=f"{config.model.model}, compressed",
        eval_results=[_accuracy(report, config)],
    )


def _others(report: dict[str, Any]) -> list[str]:
    return [name for name in report["formats"] if name != "safetensors"]


def _accuracy(report: dict[str, Any], config: SearchConfig) -> EvalResult:
    data = config.data
    name = data.dataset or Path(data.data_dir or "").resolve().name
    return EvalResult(
        task_type="image-classification",
        dataset_type=data.dataset or "imagefolder",
        dataset_name=f"{name}, test split",
        metric_type="accuracy",
        metric_name="top-1",
        metric_value=round(report["test_top1"]["after_reload"], 6),
    )


def _tied(origin: dict[str, Any]) -> str | None:
    """Which trials were as good as this one, as far as the search could tell."""
    if not origin["tied"]:
        return None
    claim = f"Under {origin['target']} the search could not tell {numbered(origin['tied'])} apart from it"
    return f"{claim}, the cheapest first."


def _points(found: dict[str, float]) -> str:
    return difference_text(Interval(mean=found["mean"], low=found["low"], high=found["high"]))


def _interval(found: dict[str, float]) -> str:
    return expected_text(Interval(mean=found["mean"], low=found["low"], high=found["high"]))


def _time(timing: dict[str, Any]) -> str:
    return format_spread(timing["seconds"], *timing["quartiles"])


def _code(text: str) -> str:
    """Between backquotes: on one line, and without what ends them."""
    return printable(text).replace("`", "'")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
