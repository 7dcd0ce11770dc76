"""What all candidates of a search share: the dense model, its images, and what is computed once per run from both."""

import copy
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import timm
import torch
from torch import Tensor, nn

from objectives.cost.closed_form import CostModel, cost_model
from objectives.data.loaders import CALIBRATION_BATCH, Data
from objectives.data.odd_folders import odd_folders
from objectives.error import Evaluation, compare, confusion, load_answers, predict, save_answers
from objectives.frames import MeasuredFrames, frames_name
from objectives.latency.probe import measure_latency, share_of_latency
from objectives.latency.table import LATENCY, LatencyTable
from objectives.measured_frames import measure_frames
from objectives.objective import Objective
from objectives.outcomes import Outcomes
from objectives.pictures.check import CHECKED
from objectives.profile import SIZES, Profile, profile_name
from objectives.runtime.device import resolve_device
from objectives.runtime.distributed import ALONE, Group
from objectives.runtime.out_of_memory import within_memory
from objectives.runtime.progress import Progress, counted
from objectives.runtime.seeding import seed_everything
from objectives.sensitivity import measure_profile
from objectives.training.run_batches import CACHE, RunBatches
from spaces.errors import CompressionError, DataError
from spaces.factors import Factors, fingerprint
from spaces.files import replacing
from spaces.models.create import create_model, input_size, preprocessing
from spaces.operators.registry import Variants
from spaces.sites import Space
from spaces.vit import describe

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Screening:
    """Images of the profile, unvaried training images, and what the dense model makes of them: candidates as built meet them.

    Attributes:
        images: batches on the device, [B, C, H, W]; none is larger than those of evaluation.
        answers: the dense model's log-probabilities on every batch, [B, classes] on the CPU.
        labels: of every batch, [B] on the CPU.
    """

    images: list[Tensor]
    answers: list[Tensor]
    labels: list[Tensor]


class DenseModel:
    """The dense model of an objective. Model and images are loaded at once; everything else is computed at its first use.

    What is computed is kept in the factors' folder of the run. The next process reads it there, and so does a run beside it.

    Args:
        objective: what candidates are measured by.
        progress: called with (what, done, in all).

    Attributes:
        device: where candidates are trained.
        model: the dense model, on the CPU; not to be changed.
        space: which parts of it can have which sizes.
        preprocessing: how it wants its images.
        counted: MACs and parameters in closed form.
        data: the splits.
        fingerprint: of the weights, the space and the calibration images.

    Raises:
        CompressionError: model, images or options that do not fit together.
    """

    def __init__(self, objective: Objective, progress: Progress = lambda what, done, total: None) -> None:
        progress("loading", 0, 1)
        self._objective, self._progress = objective, progress
        self.device = resolve_device(objective.device)
        seed_everything(0)  # a model without weights is the same in every process
        self.model: nn.Module = create_model(objective.model)
        self.space = describe(self.model, objective.space, objective.multiple)
        self.preprocessing = preprocessing(self.model, objective.model)
        self.counted: CostModel = cost_model(self.model, self.space)
        classes, checked = getattr(self.model, "num_classes", None), objective.factors / CHECKED
        self.data = Data(objective.data, self.preprocessing, classes, checked, progress)
        _check_classes(classes, self.data)
        self.fingerprint = self._fingerprint(objective.space)
        self._factors: dict[tuple[object, ...], Factors] = {}
        self._rung_answers: dict[int, list[Tensor]] = {}
        progress("loading", 1, 1)

    @property
    def objective(self) -> Objective:
        """What candidates are measured by: as given, and with the learning rate of the run as soon as that has been probed."""
        self._objective = self._objective.settled
        return self._objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self._objective = objective

    @cached_property
    def teacher(self) -> nn.Module:
        """The dense model on the device."""
        return copy.deepcopy(self.model).to(self.device) if self.device.type != "cpu" else self.model

    @cached_property
    def batches(self) -> RunBatches:
        """What trials train and are measured on."""
        objective, outputs = self.objective, int(getattr(self.model, "num_classes", None) or 0)
        mark = repr((self.fingerprint, self._search_mark, objective.data, torch.__version__, timm.__version__))
        folder = objective.factors.parent / CACHE
        return RunBatches(
            self.data, objective.finetune, lambda: self.teacher, outputs, self.device, folder, objective.cache, mark
        )  # fmt: skip

    @cached_property
    def figures(self) -> Evaluation:
        """Error and confusion of the dense model, as given, on the search split."""
        path = self._file(f"{self._search_mark}.dense.json")
        figures = read_stored(path, Evaluation.load)
        if figures is None:
            labels = self.batches.search_labels()
            figures = compare(zip(self.answers, labels, strict=True), self.answers)
            figures = replace(figures, confusion=confusion(self.answers, labels))
            figures.save(path)
        return figures

    @cached_property
    def outcomes(self) -> Outcomes:
        """What the dense model, as given, makes of every image of the search split; its divergence from itself is 0."""
        path = self._file(f"{self._search_mark}.outcomes.safetensors")
        found = read_stored(path, Outcomes.load)
        if found is None:
            found = compare(zip(self.answers, self.batches.search_labels(), strict=True), self.answers).outcomes
            assert found is not None
            found.save(path)
        return found

    @cached_property
    def answers(self) -> list[Tensor]:
        """Its log-probabilities on every batch of the search split, [B, classes] on the CPU: what candidates diverge from."""
        path, images = self._file(f"{self._search_mark}.answers.safetensors"), self.data.size("search")
        answers = read_stored(path, lambda path: load_answers(path, images))
        if answers is None:
            answers = within_memory(self._predict)
            save_answers(path, answers)
        return answers

    def rung_answers(self, most: int) -> list[Tensor]:
        """Those on at most so many images of the search split: on every batch of `RunBatches.search`."""
        if most not in self._rung_answers:  # every trial asks, and of a large split the whole is not copied each time
            answers = torch.cat(self.answers)
            if self.data.size("search") is None:  # of a stream the first ones
                found = list(torch.split(answers[:most].clone(), self.objective.data.eval_batch_size))
            else:
                found = [answers[places] for places in self.data.places(len(answers), most)]
            self._rung_answers[most] = found
        return self._rung_answers[most]

    @cached_property
    def costs(self) -> CostModel:
        """All costs of the space: with latency where the objective has it."""
        table = self.latency
        return self.counted if table is None else self.counted.with_cost("latency", table.dense, table)

    @cached_property
    def latency(self) -> LatencyTable | None:
        """The run's table of latencies, kept in the run directory; None without latency."""
        config, path = self.objective.latency, self.objective.factors.parent / LATENCY
        if config is None:
            return None
        table = LatencyTable.load(path, self.fingerprint, self.space) if path.exists() else None
        if table is None or (table.fingerprint, table.config) != (self.fingerprint, config):
            model, images = self.teacher.eval(), self._blank(config.latency_batch_size)
            table = measure_latency(model, self.space, self.counted, images, config, self.fingerprint, self._progress)
            table.save(path)
        return table

    def time(self, model: nn.Module) -> float:
        """Seconds of a call of a model that the table of latencies does not know: timed beside the dense one, on its scale."""
        assert self.latency is not None
        config = self.latency.config
        images = self._blank(config.latency_batch_size)
        return self.latency.dense * share_of_latency(model, self.teacher, images, config)

    def keep_search(self) -> None:
        """Keep the search images where every process of the run finds them."""
        self.batches.keep_search(self._progress)

    def keep_training(self, group: Group = ALONE, seed: int | None = None) -> None:
        """Keep the training batches with their soft labels where every process of the run finds them.

        Args:
            group: those of this process of it.
            seed: of the fine-tunes; by default the objective's.
        """
        self.batches.keep_training(self.objective.seed if seed is None else seed, group, self._progress)

    @property
    def factors(self) -> Factors:
        """What candidates of the searched space are built from."""
        return self.factors_of(self.space)

    def factors_of(self, space: Space, variants: Variants | None = None) -> Factors:
        """Factors of any space of the dense model, from the calibration images.

        Args:
            space: what they are the factors of.
            variants: kind of site -> how its factors are computed, where that is not the default. No branch can be left out
                then: no recipe does it, and some need no images.
        """
        key = (space.name, *sorted((variants or {}).items()))
        if key not in self._factors:
            self._factors[key] = self._load_factors(space, variants)
        return self._factors[key]

    @cached_property
    def profile(self) -> Profile:
        """What every size of every site costs in divergence from the dense model."""
        path = self.objective.factors / profile_name(self.fingerprint)
        profile = read_stored(path, lambda path: Profile.load(path, self.fingerprint, self.space))
        if profile is None or (profile.images, profile.sizes) != (self.profile_images, SIZES):
            batches = self.data.calibration(self.profile_images) if self.profile_images else ()
            profile = measure_profile(self.factors, self.teacher, batches, partial(self._progress, "profile"))
            profile.save(path, self.fingerprint)
        return profile

    @cached_property
    def frames(self) -> MeasuredFrames:
        """What schedules of tokens and sets of branches cost in divergence from the dense model; of those that are searched."""
        tokens, drop = self.objective.tokens, self.objective.drop
        path = self.objective.factors / frames_name(self.fingerprint, tokens, drop)
        frames = read_stored(path, lambda path: MeasuredFrames.load(path, self.fingerprint, self.space))
        images = self.profile_images if tokens or drop else 0
        if frames is None or frames.images != images:
            batches = self.data.calibration(images) if images else ()
            frames = measure_frames(self.factors, self.teacher, batches, self.counted, self._progress, tokens, drop)
            frames.save(path, self.fingerprint)
        return frames

    @cached_property
    def screening(self) -> Screening:
        """What candidates are screened with, and measured on as built."""
        most, found = self.objective.data.eval_batch_size, self.data.labelled_calibration(self.profile_images)
        read = [
            part for images, labels in found for part in zip(torch.split(images, most), torch.split(labels, most), strict=True)
        ]
        batches = [(images.to(self.device), labels) for images, labels in read]
        answers = within_memory(lambda parts: predict(self.teacher, batches, parts))
        return Screening(images=[images for images, _ in batches], answers=answers, labels=[labels for _, labels in batches])

    def _predict(self, parts: int) -> list[Tensor]:
        images, batch = self.data.size("search") or 0, self.objective.data.eval_batch_size
        batches = counted("dense model", self.batches.search(), images, batch, self._progress)
        return predict(self.teacher, batches, parts)

    def _load_factors(self, space: Space, variants: Variants | None) -> Factors:
        mark, progress = self._fingerprint(space.name, variants), self._progress
        path = self.objective.factors / f"{mark}.safetensors"
        stored = read_stored(path, lambda path: Factors.load(path, self.model, space, mark))
        if stored is not None:
            return stored
        batches = counted("calibration", self.data.calibration(), self._calibration_images, CALIBRATION_BATCH, progress)
        sites = [site for site in space.sites if site.kind != "branch"] if variants else None
        factors = Factors.compute(self.model, space, batches, self.device, partial(progress, "factors"), variants, sites=sites)
        factors.save(path, mark)
        return factors

    def _file(self, name: str) -> Path:
        return self.objective.factors / f"{self.fingerprint}.{name}"

    def _blank(self, count: int) -> Tensor:
        """Images to time models with."""
        return torch.zeros(count, *input_size(self.model), device=self.device)

    @property
    def _search_mark(self) -> str:
        """Of what the figures on the search split depend on besides what the factors do: which images, labels and batches."""
        data = self.objective.data
        folder = None if data.data_dir is None else str(Path(data.data_dir).resolve())
        labels = (data.class_map, data.class_order)
        search = (folder, *labels, data.val_split, data.eval_batch_size, self.data.size("search"))
        return hashlib.sha256(repr(search).encode()).hexdigest()[:8]

    @property
    def _calibration_images(self) -> int:
        size = self.objective.data.calibration_size
        return min(size, self.data.size("train") or size)

    @property
    def profile_images(self) -> int:
        """How many calibration images there are for the profile and for screening."""
        return min(self.objective.data.profile_images, self._calibration_images)

    def _fingerprint(self, space: str, variants: Variants | None = None) -> str:
        """Of everything that the factors depend on: weights, space, preprocessing, and which images calibrate."""
        objective, data = self.objective, self.objective.data
        images = (data.dataset, data.train_split, data.search_split, data.search_size, data.holdout, data.split_seed)
        calibration: tuple[object, ...] = (*images, data.calibration_size, self.data.size("train"))
        if self.data.mark is not None:  # of files also their names, labels and how they are read
            calibration = (*calibration, self.data.mark, *self.data.reading.to_json().items())
        chosen = sorted((variants or {}).items())
        return fingerprint(self.model, space, objective.multiple, self.preprocessing, calibration, *chosen)


def load_dense(
    objective: Objective,
    progress: Progress = lambda what, done, total: None,
    accept: Callable[[DenseModel], None] = lambda dense: None,
) -> DenseModel:
    """The dense model of an objective, once the caller has accepted it.

    Args:
        objective: what candidates are measured by.
        progress: called with (what, done, in all).
        accept: called before anything is computed or written; raises where the caller has no use for this model or these
            images.
    """
    dense = DenseModel(objective, progress)
    accept(dense)
    dense.data.checked.save(objective.factors / CHECKED)
    return dense


def read_stored(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a file of the factors' folder; None where there is none.

    A file that only a sister run has (another run directory beside this one) is read there, and copied; one that cannot be
    read there is that run's concern, and is passed over.
    """
    if path.exists():
        return read(path)
    for found in path.parent.parent.parent.glob(f"*/{path.parent.name}/{path.name}"):
        try:
            content = read(found)
        except (CompressionError, OSError):
            continue
        with replacing(path) as partial:
            shutil.copyfile(found, partial)
        return content
    return None


def _check_classes(classes: int | None, data: Data) -> None:
    if data.num_classes is not None and classes != data.num_classes:
        odd = odd_folders(data.found, classes)
        raise DataError(
            f"the images have {data.num_classes} classes, the model has {classes}: fine-tune the model on these images first "
            f"and give it with --checkpoint{f'; or look at the folders: {odd}' if odd else ''}"
        )
