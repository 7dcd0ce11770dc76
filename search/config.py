"""SearchConfig: every option of a search, composed of the dataclasses beside the code that uses them.

Options have one flat set of names, the same on the command line, in YAML and in Python.
"""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import yaml

from objectives.cost.spec import COSTS, Cost, cost_of
from objectives.data.config import DataConfig
from objectives.latency.config import LatencyConfig
from objectives.objective import Objective
from objectives.recipes.names import RECIPE_NAMES
from objectives.training.config import FinetuneConfig
from search.budgets.targets import Target, check_recipes, parse_target
from search.evidence.options import Preference
from search.layout import ANOTHER_RUN, RUN_FORMAT
from search.masking import masked
from search.paths import absolute
from search.runners.resources import ONE_LAUNCH, MachineConfig
from search.samplers.registry import ADDITIVE, SAMPLERS
from search.values import coerced
from spaces.errors import ConfigError, RunError, explained
from spaces.files import write_text
from spaces.format_number import FORMAT, check_format
from spaces.models.config import ModelConfig
from spaces.sites import SpaceName

# Trials that an order is judged by: two agree or do not.
LEAST_AUDITED = 3

Parametrised = Literal["multipliers", "sizes"]
if TYPE_CHECKING:
    ObjectiveName = str
else:  # for the command line: the names that it offers
    ObjectiveName = Literal["error", *(spec.flag for spec in COSTS.values())]

# Baselines that are points of the searched space; the others are recipes, which make models of their own.
ALLOCATED = ("uniform", "random")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is searched, and how long.

    Attributes:
        space: what is made smaller. contract: narrower heads and fewer FFN neurons. heads: also fewer heads. hybrid: low-rank
            attention and fewer neurons. low-rank: both low-rank. full: the best of these for each block.
        tokens: search schedules of merged tokens too: how many patch tokens leave the attention of every block. Where a model
            reads its class token alone, the last block computes nothing else in any case.
        drop: search which branches are left out too, in the order that the profile measures.
        multiple: FFN widths and ranks are multiples of this number. GPUs are fastest with 8.
        target: upper bound on what is kept: flops=50% (MACs), flops=2.3G, params=11M, latency=8ms or latency=60%. Join bounds
            that must hold together by a comma: flops=50%,params=11M. Separate words are separate budgets of one search:
            flops=50% flops=30%. A latency is read from a table that is measured before the first trial.
        objectives: what the front trades off: error, and at least one of flops (MACs), params and latency.
        trials: trials in the run, baselines included. From ten on the last tenth is for repeats with other seeds of those that
            cannot be told apart from the best under a target; where there are none, or seeds cannot tell, the search goes on.
        until_settled: end before --trials where a further trial is expected to lower the front by far less than what is
            uncertain about it (sampler additive).
        sampler: additive (this project's own), or Optuna's tpe, nsga2, gp or random.
        parametrisation: what the sampler proposes. multipliers: a budget and the importance of every site, which are decoded
            onto the budget. sizes: every size by itself, for comparison; not with additive.
        measured_profile: measure every site alone and correct the closed-form errors before the search starts (see inspect
            --profile).
        screening: measure the divergence of several candidates as built, then fine-tune one (sampler additive).
        baselines: named recipes that run first and are drawn with the others: uniform, random, kumar-hybrid,
            kumar-hybrid-whitened, vtp, gohsp, losparse, svd-energy, magnitude, heads-energy (-elimination, -magnitude, -taylor,
            -graph); or none.
        recipe: run only this recipe and the dense reference, with no search.
        rungs: shares of the fine-tune's steps at which a trial is checked, e.g. 0.25 0.5; it is stopped if a cheaper one is
            clearly better there; or none.
        measure_before: measure candidates as built on the search split too: two evaluations a trial. By default their error and
            divergence as built are those on the images of --profile-images, which are training images. Where these are 0, or
            --steps is, they are those on the search split in any case.
        prefer: what decides among trials under a target that cannot be told apart: accurate (the least expected error) or cheap
            (the least cost).
        band: lower end of the proposals, as a share of the budget; the upper end is the whole budget.
        audit: after the search, fine-tune this many points of the front for ten times the steps, and report whether the long
            fine-tune ranks them as the short one does; 0 for no audit.
        seed: seed of the sampler, the batches and the augmentation.
        storage: URL of a database for the trials (postgresql+psycopg://, mysql+pymysql://, sqlite:///). By default they are
            kept in a journal file in the run directory.
        output: run directory. If it holds a run, that run is continued. By default runs/MODEL-SPACE.
    """

    space: SpaceName = "contract"
    tokens: bool = True
    drop: bool = True
    multiple: int = 8
    target: tuple[str, ...] = ()
    objectives: tuple[ObjectiveName, ...] = ("error", "flops")
    trials: int = 50
    until_settled: bool = False
    sampler: str = ADDITIVE
    parametrisation: Parametrised = "multipliers"
    screening: bool = True
    measured_profile: bool = False
    baselines: tuple[str, ...] = ("uniform",)
    recipe: str | None = None
    rungs: tuple[float, ...] = ()
    measure_before: bool = False
    prefer: Preference = "accurate"
    band: float = 0.5
    audit: int = 0
    seed: int = 0
    storage: str | None = None
    output: str = ""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"trials must be at least 1, got {self.trials}")
        if not 0 < self.band < 1:
            raise ConfigError(f"band must be between 0 and 1, got {self.band}")
        if not all(0 < low < high for low, high in itertools.pairwise((*self.rungs, 1.0))):
            raise ConfigError(f"rungs must ascend between 0 and 1, got {', '.join(map(str, self.rungs))}")
        if self.multiple < 1:
            raise ConfigError(f"multiple must be at least 1, got {self.multiple}")
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if self.sampler == ADDITIVE and self.parametrisation != "multipliers":
            raise ConfigError(
                f"the sampler {self.sampler!r} proposes multipliers: choose --sampler tpe for {self.parametrisation}"
            )
        if self.until_settled and (self.sampler != ADDITIVE or self.recipe is not None):
            found = f"the sampler {self.sampler!r}" if self.recipe is None else f"the recipe {self.recipe!r} alone"
            raise ConfigError(f"until_settled asks the sampler {ADDITIVE!r} what a further trial is worth, got {found}")
        if self.parametrisation == "sizes" and len(self.target) > 1:
            raise ConfigError(f"parametrisation sizes serves one target, got {', '.join(self.target)}: search them one by one")
        for name in self.recipes:
            if name not in (*ALLOCATED, *RECIPE_NAMES):
                raise ConfigError(f"unknown recipe {name!r}: choose one of {', '.join((*ALLOCATED, *RECIPE_NAMES))}")
        if self.recipe is not None and not self.target:
            raise ConfigError(f"the recipe {self.recipe!r} needs a budget: --target flops=50%")
        if self.audit != 0 and self.audit < LEAST_AUDITED:
            raise ConfigError(f"audit must be 0 or at least {LEAST_AUDITED}, got {self.audit}")
        if self.audit and self.recipe is not None:
            raise ConfigError(f"an audit needs a search, but the recipe {self.recipe!r} was asked for alone")
        if "error" not in self.objectives or not 2 <= len(set(self.objectives)) == len(self.objectives):
            raise ConfigError(f"objectives must be error and at least one cost, each once, got {', '.join(self.objectives)}")
        check_recipes([name for name in self.recipes if name not in ALLOCATED], self.targets, alone=self.recipe is not None)

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The budgets, parsed."""
        return tuple(map(parse_target, self.target))

    @property
    def minimised(self) -> tuple[Cost, ...]:
        """The objectives that are costs."""
        return tuple(spec.name for spec in map(cost_of, self.objectives) if spec is not None)

    @property
    def times(self) -> bool:
        """Whether latency is a target or an objective."""
        return "latency" in self.minimised or any("latency" in target.costs for target in self.targets)

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of the recipes to run, in order."""
        if self.recipe is not None:
            return (self.recipe,)
        return tuple(name for text in self.baselines for name in text.split(","))


# The dataclasses that own the options, in the order in which they are shown.
OWNERS: tuple[type[Any], ...] = (ModelConfig, DataConfig, FinetuneConfig, StudyConfig, LatencyConfig, MachineConfig)

_NAMES = ("model", "data", "finetune", "study", "latency", "machines")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """All options of one search."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    machines: MachineConfig = field(default_factory=MachineConfig)

    def flat(self) -> dict[str, Any]:
        """Option name -> value, as YAML and JSON can hold it."""
        names = ((part, field.name) for part in _parts(self) for field in dataclasses.fields(part))
        return {name: _plain(getattr(part, name)) for part, name in names}

    @classmethod
    def from_flat(cls, options: Mapping[str, Any]) -> "SearchConfig":
        """Inverse of `flat`; options that are not given get their defaults.

        Raises:
            ConfigError: an unknown name (with near ones) or a value of the wrong type or range.
        """
        known = option_types()
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
                raise ConfigError(
                    f"unknown option {name!r}"
                    + (f": did you mean {', '.join(near)}?" if near else f": known are {', '.join(known)}")
                )
        checked = {name: coerced(name, value, known[name]) for name, value in options.items()}
        parts = [owner(**{f.name: checked[f.name] for f in dataclasses.fields(owner) if f.name in checked}) for owner in OWNERS]
        return cls(**dict(zip(_NAMES, parts, strict=True)))

    def objective(self, directory: Path) -> Objective:
        """What candidates of this search are measured by; factors and latencies are kept in the run directory."""
        study = self.study
        return Objective(
            model=self.model,
            data=self.data,
            finetune=self.finetune,
            space=study.space,
            tokens=study.tokens,
            drop=study.drop,
            multiple=study.multiple,
            rungs=study.rungs,
            measure_before=study.measure_before,
            factors=directory / "factors",
            latency=self.latency if study.times else None,
            device=self.machines.device,
            seed=study.seed,
            cache=self.machines.cache,
        )

    def dump(self, path: Path) -> None:
        """Write the options as YAML: with absolute paths, without a password of a database or what was for one launch alone."""
        options = {name: value for name, value in absolute(self.flat()).items() if name not in ONE_LAUNCH}
        if options["storage"] is not None:
            options["storage"] = masked(options["storage"])
        write_text(path, yaml.safe_dump({FORMAT: RUN_FORMAT, **options}, sort_keys=False, allow_unicode=True))


def read_options(path: Path, of_run: bool = False) -> dict[str, Any]:
    """Option name -> value of a YAML file.

    Args:
        path: of the file.
        of_run: whether it is that of a run directory, which must have a format number; another file may have one.

    Raises:
        ConfigError: the file is missing or is no YAML mapping.
        RunError: it has another format.
    """
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{explained(error)} (options are read from it)") from error
    except RecursionError:
        raise ConfigError(f"{path} cannot be read as YAML: lists or mappings are nested too deeply") from None
    except Exception as error:  # damaged text makes the constructors of YAML raise what they like
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())[:300]}") from error
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise ConfigError(f"{path} must hold 'name: value' lines, got a {type(options).__name__}")
    if options and (of_run or FORMAT in options):
        check_format(path, options, RUN_FORMAT, RunError, ANOTHER_RUN)
    return {name: value for name, value in options.items() if name != FORMAT}


def option_types() -> dict[str, Any]:
    """Option name -> its type."""
    return {name: hint for owner in OWNERS for name, hint in get_type_hints(owner).items()}


def option_help(owner: type) -> dict[str, str]:
    """Option name -> its line of the "Attributes" of the owner's docstring."""
    text = (owner.__doc__ or "").partition("Attributes:")[2]
    entries = re.findall(r"^ {8}([a-z_, 0-9]+): (.*(?:\n {12}.*)*)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for names, words in entries for name in names.split(", ")}


def _parts(config: SearchConfig) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in _NAMES)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
