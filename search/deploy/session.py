"""Exports of a run: one point or several, each to a folder of its own that is whole or not there."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

from objectives.dense_model import load_dense
from objectives.deploy.config import FILES
from objectives.deploy.formats import DTYPES
from objectives.evaluator import Evaluator
from objectives.runtime.progress import Progress, told_steps
from search.deploy.exact_budget import exact_of, is_worse, materialise, measured
from search.deploy.long_finetune import described, long_finetune
from search.deploy.model_folder import ExportOptions, write_export
from search.deploy.points import GIVEN, PREDICTED, Point, Wish, tied_notice, wishes
from search.deploy.predicted_point import build_predicted
from search.fidelity.judge import warn
from search.layout import weights_in
from search.run.continuation import check_same_model
from search.run.edge import lower_edges
from search.run.provenance import command_line
from search.run.run import Run
from spaces.allocation import Allocation
from spaces.errors import CompressionError, ConfigError, DataError, DivergedError, RunError, told
from spaces.files import partial_beside, remove_partials, replacing
from spaces.folder.compressed import stored_type
from spaces.folder.description import CONFIG, checked_file, read_description

Notice = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What became of a point that was asked for.

    Attributes:
        wish: how it was asked for.
        point: what was exported; None where nothing was found.
        folder: where it is; None where it failed.
        new: whether it was written now, and not there already.
        problem: why it failed.
    """

    wish: str
    point: Point | None = None
    folder: Path | None = None
    new: bool = False
    problem: str | None = None


DEFAULT = ExportOptions()


def export(
    run: Run,
    target: str | None = None,
    trial: int | None = None,
    progress: Progress = lambda what, done, total: None,
    *,
    allocation: Path | None = None,
    options: ExportOptions = DEFAULT,
    notice: Notice = lambda text: None,
) -> Path:
    """Write one point of a run as a model folder; one that is there, whole and of the same point stays as it is.

    Args:
        run: where the point is.
        target: take the best trial under this budget, e.g. ``flops=50%``; by default the first of the run's own targets.
        trial: take this trial instead.
        progress: called with (what, done, in all).
        allocation: take the allocation in this file instead.
        options: how.
        notice: called with what is worth knowing of the choice, in a sentence.

    Returns:
        The folder: config.json, model.safetensors, report.json and README.md, and model.onnx and model.pt2 where they are
        wanted.

    Raises:
        TargetError: no finished trial keeps the target.
        AllocationError: the file holds none of this run's space.
        RunError: no such trial, other files are in the way, or a reloaded model differs from the one that was saved.
        CheckpointError: the model cannot be written in one of the formats.
    """
    targets = [] if target is None or trial is not None else [target]
    trials, files = [] if trial is None else [trial], [] if allocation is None else [allocation]
    given = wishes(run, targets, trials, files, prefer=options.prefer)
    (exported,) = export_points(run, given[:1], progress, options, notice)
    assert exported.folder is not None
    return exported.folder


def export_points(
    run: Run,
    wanted: Sequence[Wish],
    progress: Progress = lambda what, done, total: None,
    options: ExportOptions = DEFAULT,
    notice: Notice = lambda text: None,
) -> list[Exported]:
    """Write points of a run, each as `export` does. Where there are several, one that fails does not keep the others from it.

    Args:
        run: where the points are.
        wanted: `search.deploy.points.wishes`.
        progress, options, notice: as `export` has them.

    Raises:
        CompressionError: the only one failed, or what concerns all: the model or the images of the run cannot be read.
    """
    if options.exact and not any(wish.option == "target" for wish in wanted):
        raise ConfigError("--exact builds a point on a target: give one with --target")
    with _Session(run, progress, options, notice) as session:
        return [session.attempt(wish, alone=len(wanted) == 1) for wish in wanted]


def check_all(exported: Sequence[Exported]) -> None:
    """Raise where some of several points failed.

    Raises:
        RunError: their number, and why the first did.
    """
    failed = [entry for entry in exported if entry.problem is not None]
    if failed:
        raise RunError(f"{len(failed)} of {len(exported)} points could not be exported; {failed[0].wish}: {failed[0].problem}")


class _Session:
    """Several exports that share the model, the images and the factors."""

    def __init__(self, run: Run, progress: Progress, options: ExportOptions, notice: Notice) -> None:
        self.run, self.progress, self.options, self.notice = run, progress, options, notice
        self.base = options.into or run.directory / "export"
        self._names: dict[str, str] = {}  # of folders, with what was asked for
        self._scratch = partial_beside(self.base / "weights", "weights")

    def __enter__(self) -> "_Session":
        remove_partials(self.base, below=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Of the run's model and images.

        Raises:
            CompressionError: they cannot be read, or are others than the run's.
        """
        objective = self.run.config.objective(self.run.directory)
        if self.options.data_dir is not None:
            objective = replace(objective, data=replace(objective.data, data_dir=self.options.data_dir))
        images = objective.data.data_dir
        if images is not None and not Path(images).exists():
            raise DataError(f"the images of {self.run.directory} are no longer in {images}: say with --data-dir where they are")
        dense = load_dense(objective, self.progress, lambda dense: check_same_model(self.run.directory, dense.fingerprint))
        warn(dense.data, self.notice)
        return Evaluator(dense)

    @property
    def scratch(self) -> Path:
        """A folder for weights that are made again; it goes with the session."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def attempt(self, wish: Wish, alone: bool) -> Exported:
        """Export one point; what fails is in the result, unless it is the only one or concerns all."""
        point: Point | None = None
        try:
            point = wish.pick()
            self._take(point.name, wish)
            found = None if self.options.force else self._found(point)
        except CompressionError as error:
            if alone:
                raise
            return Exported(wish=wish.text, problem=str(error))
        if found is not None:
            if alone:
                self.notice(f"{self.base / found.name} is there already; --force writes it again")
            return Exported(wish=wish.text, point=found, folder=self.base / found.name)
        _ = self.evaluator
        try:
            point = self._chosen(point)
            return Exported(wish=wish.text, point=point, folder=self._write(point, wish), new=True)
        except (CompressionError, OSError, DivergedError) as error:
            if isinstance(error, DivergedError):
                error = RunError(f"the fine-tune of {point.name} failed: {error}")
            if alone:
                raise error from None
            return Exported(wish=wish.text, point=point, problem=told(error))

    def _take(self, name: str, wish: Wish) -> None:
        """Raise where another point of this session goes to a folder of this name."""
        if (other := self._names.setdefault(name, wish.text)) != wish.text:
            raise RunError(f"{wish.text} and {other} would both be {self.base / name}: export one of them to another --output")

    def _found(self, point: Point) -> Point | None:
        """What is to be exported, where its folder is there: whole, and of the same trial and run."""
        if self.options.exact and point.target is not None:
            return self._in_folder(exact_of(point))
        return self._in_folder(point)

    def _in_folder(self, point: Point) -> Point | None:
        folder, output = self.base / point.name, self.options.output
        try:
            config = read_description(folder)
            for name in output.formats:
                checked_file(folder, FILES[name], config)
            same = stored_type(config) == DTYPES[output.dtype] and config["training"] == described(self.options.training)
            found = point.restored(config["origin"], Allocation(config["allocation"]), self.run.summary.fingerprint)
        except (CompressionError, LookupError, TypeError, ValueError, AttributeError):  # whatever a damaged origin makes of it
            return None
        return found if same else None

    def _chosen(self, best: Point) -> Point:
        """The point itself; on its target, where that was asked for and is not worse; measured, where it is no trial."""
        weights = weights_in(self.scratch, best.name)
        if best.label == PREDICTED:
            return build_predicted(self.run, self.evaluator, best, weights)
        if best.label == GIVEN:
            with told_steps(f"fine-tune of {best.name}", self._steps, self.progress) as on_step:
                return measured(self.evaluator, best, self.run.config.study.seed, weights, on_step)
        if best.tied:
            self.notice(f"{best.name}: {tied_notice(self.run, best, self.options.prefer)}")
        if best.target is None or not self.options.exact:
            if best.leaves_gap:
                self.notice(f"{best.name}: {best.describe()}, uses {best.load:.1%} of the target; --exact builds a point on it")
            for number, sentence in lower_edges(self.run.summary, self.run.config.study.band):
                if best.target is not None and number == best.number:
                    self.notice(sentence)
            return best
        with told_steps(f"fine-tune on {best.target}", self._steps, self.progress) as on_step:
            built = materialise(self.run, self.evaluator, best, self.scratch, on_step)
        if built is None:
            self.notice(f"{best.name}: nothing new uses more of the target than trial {best.number}")
            return best
        worse = is_worse(self.run, built, best, self.scratch)
        self.notice(f"{built.name}: {built.describe()}; {'the trial is taken' if worse else 'taken'}")
        return best if worse else built

    @property
    def _steps(self) -> int:
        return self.run.finetune.steps

    def _write(self, point: Point, wish: Wish) -> Path:
        folder = self.base / point.name
        _check_replaceable(folder)
        with replacing(folder) as partial:
            partial.mkdir(parents=True)
            command = self._command(point, wish)
            write_export(partial, self.run, point, self.evaluator, self.scratch, self.options, command, self.progress)
        if self.options.training.finetune_epochs:
            long_finetune(self.run, point, self.options.training).remove(self.evaluator.dense)
        return folder

    def _command(self, point: Point, wish: Wish) -> str:
        """What exports this point again."""
        options = self.options
        return command_line(
            "export", self.run.directory, **{wish.option: wish.given},
            exact=options.exact and point.target is not None, predicted=point.label == PREDICTED, output=options.into,
            prefer=options.prefer if point.target is not None else None,
            format=options.output.formats, dtype=options.output.dtype, **(described(options.training) or {}),
        )  # fmt: skip


def _check_replaceable(folder: Path) -> None:
    """Raise where replacing a folder would remove what no export has written.

    Raises:
        RunError: it would.
    """
    if folder.exists() and not (folder / CONFIG).exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunError(f"{folder} is there and is no export: move it, or choose another --output")
