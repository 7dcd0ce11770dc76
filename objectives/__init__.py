"""What a candidate costs and how wrong it is."""

from objectives.cost.closed_form import CostModel, cost_model
from objectives.data.loaders import Data
from objectives.data.splits import DataConfig
from objectives.dense_model import DenseModel, load_dense
from objectives.evaluator import Evaluator
from objectives.objective import Objective
from objectives.score import Score
from objectives.training.finetune import FinetuneConfig, finetune

__all__ = [
    "CostModel", "Data", "DataConfig", "DenseModel", "Evaluator", "FinetuneConfig", "Objective", "Score", "cost_model",
    "finetune", "load_dense",
]  # fmt: skip
