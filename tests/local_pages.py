"""The page of made-up tables."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from local_tables import summary_of

from search.budgets.targets import parse_target
from search.layout import TRIALS
from search.report.html import Assembled, assemble, page
from search.report.page_data import content
from search.run.finished_trial import FinishedTrial
from search.run.summary import DenseFigures, RunSummary, summarise
from search.run.summary_file import write_summary
from search.run.trial_table import trials_of
from spaces.files import write_text
from spaces.sites import DROP, Operator, Site, Space

DENSE = {"macs": 4_600_000_000, "params": 22_000_000, "latency": 0.040}
ERROR = 0.2
_KINDS = {"attn.qk": ("query_key", 64), "attn.vo": ("value_output", 64), "mlp.hidden": ("ffn_hidden", 1536)}


def write_report(path: Path, summary: RunSummary, trials: Sequence[FinishedTrial], run: str = "RUN", **options: Any) -> None:
    """Write the page as a file."""
    write_text(path, page(assemble([content(summary, trials, "", run=run, **options)])))


def data_of(assembled: Assembled) -> list[dict[str, Any]]:
    """What the script of a page with trials reads of every run."""
    assert assembled.data is not None
    return assembled.data


def made_up(count: int, costs: Sequence[str] = ("macs", "params"), seed: int = 0) -> tuple[RunSummary, pd.DataFrame]:
    """The tables of a search that could have been: a dense trial, every tenth stopped early, every fiftieth failed.

    Args:
        count: trials.
        costs: macs, params and perhaps latency.
        seed: of the errors and sizes.
    """
    space = _space(blocks=12)
    table = _trials(count, space, costs, np.random.default_rng(seed))
    dense = {cost: DENSE[cost] for cost in costs}
    reach = {cost: (value / 10, value) for cost, value in dense.items()}
    facts = summary_of(
        dense,
        space,
        model="deit_small",
        fingerprint="made-up",
        dense=DenseFigures(costs=dense, error=ERROR),
        reach=reach,
        targets=(parse_target("flops=50%").resolve(reach),),
    )
    return summarise(facts, trials_of(table, facts)), table


def write_tables(directory: Path, summary: RunSummary, table: pd.DataFrame) -> None:
    """The made-up tables of a run, as they are: its counts are not all whole."""
    table.to_csv(directory / TRIALS, index=False)
    write_summary(directory, summary)


def write_made_up(path: Path, count: int, **options: Any) -> None:
    """Write the page of `made_up` tables."""
    summary, table = made_up(count, **options)
    write_report(path, summary, trials_of(table, summary))


PATCHES = 196  # of the space that also merges tokens and leaves branches out


def framed() -> tuple[RunSummary, pd.DataFrame]:
    """Tables of a search of tokens and branches too: the tail everywhere but in the dense trial 0; trial 1 merges 14 tokens in
    every block from the fourth to the tenth, and leaves out the FFN of block 3.
    """
    summary, table = made_up(12)
    blocks, space = 12, summary.spaces["contract"]
    branches = {
        path: (*rivals, Operator(name=DROP, sites=(Site(name=f"{path}.branch", branch=path, kind="branch", choices=(0, 1)),)))
        for path, rivals in space.branches.items()
    }
    counts = [*[tuple(range(7, PATCHES + 1))] * (blocks - 1), (0, *range(7, PATCHES + 1))]
    tokens = tuple(
        Site(name=f"blocks.{block}.tokens", branch=f"blocks.{block}", kind="tokens", choices=choices)
        for block, choices in enumerate(counts)
    )
    space = replace(space, branches=branches, tokens=tokens)
    merged = [max(0, min(7, block - 2)) for block in range(blocks - 1)]
    for block, site in enumerate(tokens):
        table[site.name] = PATCHES if block < blocks - 1 else np.where(table["number"] == 0, PATCHES, 0)
    for path in branches:
        table[f"{path}.branch"] = 1
    one = table["number"] == 1
    table.loc[one, [site.name for site in tokens[:-1]]] = [PATCHES - 14 * count for count in merged]
    table.loc[one, ["blocks.3.mlp.branch"]] = 0
    facts = replace(summary, spaces={"contract": space})
    return summarise(facts, trials_of(table, facts)), table


def _space(blocks: int) -> Space:
    branches: dict[str, tuple[Operator, ...]] = {}
    for block in range(blocks):
        for part in ("attn", "mlp"):
            names = [name for name in _KINDS if name.startswith(part)]
            branch = f"blocks.{block}.{part}"
            sites = [_site(block, name, branch) for name in names]
            branches[branch] = (Operator(name="contract", sites=tuple(sites)),)
    return Space(name="contract", branches=branches, skipped=())


def _site(block: int, name: str, branch: str) -> Site:
    kind, dense = _KINDS[name]
    return Site(name=f"blocks.{block}.{name}", branch=branch, kind=kind, choices=tuple(range(8, dense + 1, 8)))  # type: ignore[arg-type]


def _trials(count: int, space: Space, costs: Sequence[str], random: np.random.Generator) -> pd.DataFrame:
    kept = np.concatenate([[1.0], random.uniform(0.1, 0.9, count - 1)])
    error = 0.2 + 0.4 * (1 - kept) ** 4 + np.concatenate([[0.0], random.exponential(0.02, count - 1)])
    state = np.where(np.arange(count) % 50 == 49, "FAIL", np.where(np.arange(count) % 10 == 9, "PRUNED", "COMPLETE"))
    done = state == "COMPLETE"
    table: dict[str, Any] = {
        "number": np.arange(count),
        "state": state,
        "space": space.name,
        "seed": 0,
        "repeats": None,
        "seconds": 60.0,
    }
    table["label"] = ["dense", *[None] * (count - 1)]
    table["reason"] = [{"COMPLETE": None, "FAIL": "the loss is NaN"}.get(each, "dominated by trial 1") for each in state]
    table |= {
        "error": np.where(done, error, np.nan),
        "error_before": error + 0.05,
        "cross_entropy": 2 * error,
        "kl": error / 5,
        "kl_before": error / 3,
    }
    table |= {
        "rung": np.where(done, np.nan, 50),
        "rung_error": np.where(state == "PRUNED", error + 0.1, np.nan),
        "steps": 100,
        "kept_step": 100,
    }
    for at, cost in enumerate(costs):
        share = np.where(state == "FAIL", np.nan, kept ** (1 - 0.1 * at))
        table |= {cost: DENSE[cost] * share, f"{cost}_kept": share}
    table["ended"] = [f"2026-11-01T{at // 3600 % 24:02d}:{at // 60 % 60:02d}:{at % 60:02d}+00:00" for at in range(count)]
    for site in space.sites:
        table[site.name] = np.maximum(8, (site.dense * kept * random.uniform(0.6, 1.0, count) // 8 * 8)).astype(int)
    table |= {site.name: np.where(np.arange(count) == 0, site.dense, table[site.name]) for site in space.sites}
    likely = np.where(done, error, np.nan)
    table |= {"expected": likely, "expected_low": likely * 0.95, "expected_high": likely * 1.06}
    return pd.DataFrame(table)
