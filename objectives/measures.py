"""What candidates are measured on: the search split, some of its images, or the images of the profile."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from objectives.dense_model import DenseModel
from objectives.error import Evaluation, evaluate, evaluation_of
from objectives.runtime.distributed import Group

# Images of the search split, always the same ones, that a fine-tune is measured on before its end: the standard error of an
# error is about one point at 13 %, and what all candidates share of it does not matter in comparing them.
RUNG_IMAGES = 1000


class Measures:
    """Measures models against the dense model; they are in evaluation mode afterwards.

    Args:
        dense: what all candidates share.
        group: the processes that measure every model together, each on batches of its own; all get the same figures.
    """

    def __init__(self, dense: DenseModel, group: Group) -> None:
        self._dense, self._group = dense, group

    def search(self, model: nn.Module, parts: int = 1) -> Evaluation:
        """Figures on the whole search split; batches pass in so many parts."""
        return evaluate(model, self._batches(), self._dense.answers[self._turns], parts, self._group)

    def rung_images(self, model: nn.Module, parts: int = 1) -> Evaluation:
        """Figures on at most `RUNG_IMAGES` images of the search split."""
        answers = self._dense.rung_answers(RUNG_IMAGES)[self._turns]
        return evaluate(model, self._batches(RUNG_IMAGES), answers, parts, self._group)

    def rung_images_of(self, whole: Evaluation) -> Evaluation:
        """What `rung_images` gives, from the figures on the whole search split."""
        outcomes, data = whole.outcomes, self._dense.data
        assert outcomes is not None
        is_stream, count = data.size("search") is None, len(outcomes.wrong)
        places = torch.arange(min(count, RUNG_IMAGES)) if is_stream else torch.cat(list(data.places(count, RUNG_IMAGES)))
        return evaluation_of(outcomes.at(places))

    def as_built(self, model: nn.Module, parts: int = 1) -> Evaluation:
        """Figures on the images that candidates are screened with, unless the objective wants them on the search split."""
        if self._dense.objective.split_before == "search":
            return self.search(model, parts)
        screening = self._dense.screening
        batches = zip(screening.images[self._turns], screening.labels[self._turns], strict=True)
        return evaluate(model, batches, screening.answers[self._turns], parts, self._group)

    @property
    def _turns(self) -> slice:
        """Processes take turns at the batches."""
        return slice(self._group.rank, None, self._group.size)

    def _batches(self, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's batches of the search split, or of some of its images."""
        return self._dense.batches.search(most, self._group)
