"""What a candidate costs and how wrong it is."""

from typing import TYPE_CHECKING

from spaces.lazy import lazily

if TYPE_CHECKING:
    from objectives.cost.closed_form import CostModel, cost_model
    from objectives.data.config import DataConfig
    from objectives.data.loaders import Data
    from objectives.dense_model import DenseModel, load_dense
    from objectives.evaluator import Evaluator
    from objectives.objective import Objective
    from objectives.score import Score
    from objectives.training.config import FinetuneConfig
    from objectives.training.finetune import finetune

__all__ = [
    "CostModel", "Data", "DataConfig", "DenseModel", "Evaluator", "FinetuneConfig", "Objective", "Score", "cost_model",
    "finetune", "load_dense",
]  # fmt: skip

__getattr__ = lazily(
    __name__,
    {
        "CostModel": "objectives.cost.closed_form",
        "Data": "objectives.data.loaders",
        "DataConfig": "objectives.data.config",
        "DenseModel": "objectives.dense_model",
        "Evaluator": "objectives.evaluator",
        "FinetuneConfig": "objectives.training.config",
        "Objective": "objectives.objective",
        "Score": "objectives.score",
        "cost_model": "objectives.cost.closed_form",
        "finetune": "objectives.training.finetune",
        "load_dense": "objectives.dense_model",
    },
)
