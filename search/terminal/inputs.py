"""The model and the images that a command is given, looked for before it imports what computes."""

from objectives.data.config import image_folder
from search.config import SearchConfig
from spaces.models.places import check_place, is_named


def check_inputs(config: SearchConfig, needs_images: bool) -> None:
    """Raise where there is no such model or image folder.

    Raises:
        ModelError: no model is named, or timm does not know it.
        CheckpointError: nothing is where its weights should be.
        DataError: nothing is where its images should be.
    """
    check_place(config.model)
    if needs_images and not config.data.dataset:
        image_folder(config.data)
    if is_named(config.model):
        from spaces.models.create import check_known  # with timm, which knows the names

        check_known(config.model.model)
