"""What can be compressed in a timm vision transformer, and how a point of the search becomes a model."""

from spaces.allocation import Allocation
from spaces.factors import Factors
from spaces.folder.compressed import load_compressed, save_compressed
from spaces.models.create import ModelConfig, create_model
from spaces.sites import Operator, Site, Skipped, Space
from spaces.version import __version__
from spaces.vit import describe

__all__ = [
    "Allocation",
    "Factors",
    "ModelConfig",
    "Operator",
    "Site",
    "Skipped",
    "Space",
    "__version__",
    "create_model",
    "describe",
    "load_compressed",
    "save_compressed",
]
