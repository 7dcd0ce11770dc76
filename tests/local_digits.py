"""A small model of the real digits, and evaluators of it, for the tests of objectives and recipes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from objectives.cost.spec import Cost
from objectives.data.config import DataConfig
from objectives.dense_model import DenseModel, load_dense
from objectives.evaluator import Evaluator
from objectives.objective import Objective
from objectives.recipes.workbench import Workbench
from spaces.models.create import ModelConfig
from spaces.sites import Site
from spaces.tensors import save_tensors

SIZE = (1, 8, 8)
MODEL = ModelConfig(
    model="vit_tiny_patch16_224",
    num_classes=10,
    crop_pct=1.0,
    mean=(0.3,),
    std=(0.37,),
    model_kwargs={"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4},
)
DATA = DataConfig(dataset="digits", batch_size=32, hflip=0.0, calibration_size=256)


def evaluator_of(model: nn.Module, folder: Path, **options: Any) -> Evaluator:
    """An evaluator of this model (of `MODEL`), with its factors in the folder of a run."""
    save_tensors(folder / "dense.safetensors", model.state_dict())
    config = replace(MODEL, checkpoint=str(folder / "dense.safetensors"))
    return Evaluator(load_dense(Objective(model=config, factors=folder / "one" / "factors", device="cpu", **options)))


def limits_of(dense: DenseModel, **shares: float) -> dict[Cost, float]:
    return {cost: share * dense.costs.dense[cost] for cost, share in shares.items()}


def sites_of(bench: Workbench, *kinds: str) -> list[Site]:
    return [site for site in bench.space.sites if site.kind in kinds]
