"""A run directory as a value: what it holds, what is best in it, and whether a configuration belongs to it."""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from objectives.cost.spec import known_costs
from objectives.profile import Profile, profile_name
from search.budgets.targets import Budget, Target, parse_target
from search.config import SearchConfig
from search.layout import AUDIT, STDERR
from search.pareto import best_under
from search.run.activity import running_of
from search.run.options import stored_config
from search.run.places import check_run
from search.run.schemas import AUDIT_SCHEMA
from search.run.tables import read_space, read_tables, sites_of
from spaces.allocation import Allocation
from spaces.errors import RunError, TargetError
from spaces.schema import read_json
from spaces.sites import Site, Space

_STDERR = 4000  # characters


class Run:
    """A search's results, read from its tables; safe while a search writes them.

    Attributes:
        directory: the run directory.
        trials: a row per finished trial.
        summary: the content of pareto.json.

    Raises:
        RunError: there is no run.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.trials, self.summary = read_tables(self.directory)

    @cached_property
    def config(self) -> SearchConfig:
        """The options that the run was launched with."""
        return stored_config(self.directory)

    @cached_property
    def space(self) -> Space:
        """The space that was searched."""
        return read_space(self.summary)

    @cached_property
    def profile(self) -> Profile | None:
        """The sensitivity profile, where it was measured: by `inspect --profile` or for a search that starts from it."""
        fingerprint = self.summary["fingerprint"]
        path = self.directory / "factors" / profile_name(fingerprint)
        return Profile.load(path, fingerprint, self.space) if path.exists() else None

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites that a trial has a size for: those of the searched space, and those of the recipes' spaces."""
        return sites_of(self.summary)

    def space_of(self, row: "pd.Series[Any]") -> Space:
        """The space of one trial's allocation."""
        return read_space(self.summary, str(row["space"]))

    @property
    def audit(self) -> dict[str, Any] | None:
        """What `search.fidelity.audit.audit` found last; None before there was one.

        Raises:
            RunError: it cannot be read.
        """
        path = self.directory / AUDIT
        try:
            found: dict[str, Any] | None = read_json(path, AUDIT_SCHEMA) if path.exists() else None
        except ValueError as error:
            raise RunError(f"{path} cannot be read ({error}): remove it, and audit the run again") from error
        return found

    @property
    def running(self) -> list[dict[str, Any]]:
        """`search.run.activity.running_of`: what runs now."""
        return running_of(self.directory)

    def stderr(self, number: int) -> str:
        """The last lines that a trial left where it failed; '' where it left none."""
        path = self.directory / "trials" / f"{number:04d}" / STDERR
        try:
            return path.read_text(encoding="utf-8", errors="replace")[-_STDERR:]
        except OSError:
            return ""

    @property
    def front(self) -> pd.DataFrame:
        """The rows of the trials on the front, in ascending order of MACs."""
        numbers = [row["number"] for row in self.summary["front"]]
        return self.trials.set_index("number", drop=False).loc[numbers]

    def budget(self, target: str | Target) -> Budget:
        """What a target comes to for this run's model.

        Raises:
            TargetError: malformed, or outside what the space reaches.
        """
        parsed = parse_target(target) if isinstance(target, str) else target
        return parsed.resolve({cost: (least, dense) for cost, (least, dense) in self.summary["reach"].items()})

    def best(self, target: str | Target | Budget) -> "pd.Series[Any]":
        """The finished trial of the smallest error under a target.

        Raises:
            TargetError: no finished trial keeps the target; the message names the nearest one.
            RunError: no trial finished.
        """
        budget = target if isinstance(target, Budget) else self.budget(target)
        done = self.trials[self.trials["state"] == "COMPLETE"]
        if done.empty:
            raise RunError(f"no trial of {self.directory} has finished")
        costs, limits = done[list(budget.limits)], list(budget.limits.values())
        index = best_under(list(done["error"]), list(costs.itertuples(index=False)), limits)
        if index is None:
            nearest = done.iloc[int((costs / limits).max(axis=1).to_numpy().argmin())]
            figures = [spec.format_with_unit(nearest[spec.name]) for spec in known_costs(map(str, nearest.index))]
            raise TargetError(
                f"no trial of {self.directory} keeps {budget.target.text}: the nearest is trial {nearest['number']:.0f} with "
                f"{' and '.join(figures)}; search again with --target {budget.target.text}"
            )
        return done.iloc[index]

    def trial(self, number: int) -> "pd.Series[Any]":
        """The row of one finished trial.

        Raises:
            RunError: there is no such trial, it failed, or it was stopped before its end.
        """
        rows = self.trials[self.trials["number"] == number]
        if rows.empty:
            raise RunError(f"{self.directory} has no trial {number}: it has {len(self.trials)}, see trials.csv")
        row = rows.iloc[0]
        if row["state"] == "PRUNED":
            raise RunError(f"trial {number} of {self.directory} was not finished ({row['reason']}): choose one of the front")
        if row["state"] != "COMPLETE":
            raise RunError(f"trial {number} of {self.directory} failed ({row['reason']})")
        return row

    def allocation(self, row: "pd.Series[Any]") -> Allocation:
        """The sizes of a row of `trials`."""
        return Allocation({site.name: int(row[site.name]) for site in self.space_of(row).sites})


def open_run(directory: str | Path) -> Run:
    """The run in a directory.

    Raises:
        RunError: there is none.
    """
    check_run(Path(directory))
    return Run(directory)
