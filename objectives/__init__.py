"""What a candidate costs and how wrong it is."""

from objectives.cost.closed_form import CostModel, cost_model
from objectives.data.loaders import Data
from objectives.data.splits import DataConfig
from objectives.evaluator import Evaluator
from objectives.objective import Objective
from objectives.score import Score
from objectives.training.finetune import FinetuneConfig, finetune

__all__ = ["CostModel", "Data", "DataConfig", "Evaluator", "FinetuneConfig", "Objective", "Score", "cost_model", "finetune"]
