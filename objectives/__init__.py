"""What a candidate costs and how wrong it is."""

from objectives.cost import CostModel, cost_model
from objectives.data import Data
from objectives.evaluator import Evaluator
from objectives.finetune import FinetuneConfig, finetune
from objectives.objective import Objective
from objectives.score import Score
from objectives.splits import DataConfig

__all__ = ["CostModel", "Data", "DataConfig", "Evaluator", "FinetuneConfig", "Objective", "Score", "cost_model", "finetune"]
