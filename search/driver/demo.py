"""The built-in demo: a small vision transformer trained on the digits in the run itself, so that nothing is downloaded."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from objectives.data.config import DataConfig
from objectives.data.loaders import Data
from objectives.runtime.device import resolve_device
from objectives.runtime.progress import Progress
from objectives.runtime.seeding import seed_everything
from objectives.training.batch import labelled
from objectives.training.config import FinetuneConfig
from objectives.training.finetune import finetune
from search.config import SearchConfig
from spaces.models.create import ModelConfig, create_model, preprocessing
from spaces.tensors import save_tensors

_DENSE = FinetuneConfig(steps=1800, lr=2e-3)
_DENSE_BATCH = 32


def with_dense_model(config: SearchConfig, progress: Progress) -> SearchConfig:
    """`config` with a checkpoint: the demo's model, trained into the run directory unless it is there already."""
    path = Path(config.study.output) / "dense.safetensors"
    if not path.exists():
        train_dense(config.model, replace(config.data, batch_size=_DENSE_BATCH), _DENSE, path, config.study.seed, progress)
    return replace(config, model=replace(config.model, checkpoint=str(path)))


def train_dense(
    model_config: ModelConfig,
    data_config: DataConfig,
    config: FinetuneConfig,
    path: Path,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
    device: str = "cpu",
) -> None:
    """Train a model from its random initialisation on the true labels and write its weights.

    The position embedding starts as large as the patches' embeddings: from timm's 0.02 a small model sees a bag of
    patches for its first thousand steps.
    """
    seed_everything(seed)
    model = create_model(model_config)
    nn.init.normal_(model.get_parameter("pos_embed"), std=0.5)
    data, where = Data(data_config, preprocessing(model, model_config)), resolve_device(device)
    batches = ((images.to(where), labels.to(where)) for images, labels in data.training(config.steps, seed))
    progress("training", 0, config.steps)
    for step in finetune(model.to(where), labelled(batches), config):
        progress("training", step.step, config.steps)
    save_tensors(path, model.state_dict())
