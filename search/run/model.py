"""The model of a launch: what its folder says of it, against what a run that goes on has already."""

from dataclasses import replace
from pathlib import Path

from search.config import SearchConfig
from search.run.directory import default_output
from search.run.options import stored_config, stored_options
from spaces.models.timm_folder import named, settled


def model_of_run(config: SearchConfig, directory: Path | None = None) -> SearchConfig:
    """`config` with all that the model's folder says of it, so that a run's options tell the whole of its model.

    What the run in the directory has is kept: its weights may be in another file or folder now.

    Args:
        config: of a launch.
        directory: of the run; by default the one that the model's name gives.

    Raises:
        ModelError: no model is named, or its folder is not one.
    """
    config = replace(config, model=named(config.model))
    directory = directory or Path(config.study.output or default_output(config))
    if stored_options(directory):
        before = replace(stored_config(directory).model, checkpoint=config.model.checkpoint)
        if before == config.model:
            return config
    return replace(config, model=settled(config.model))
