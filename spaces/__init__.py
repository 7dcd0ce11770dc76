"""What can be compressed in a timm vision transformer, and how a point of the search becomes a model."""

from typing import TYPE_CHECKING

from spaces.lazy import lazily
from spaces.version import __version__

if TYPE_CHECKING:
    from spaces.allocation import Allocation
    from spaces.factors import Factors
    from spaces.folder.compressed import load_compressed, save_compressed
    from spaces.models.config import ModelConfig
    from spaces.models.create import create_model
    from spaces.sites import Operator, Site, Skipped, Space
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

__getattr__ = lazily(
    __name__,
    {
        "Allocation": "spaces.allocation",
        "Factors": "spaces.factors",
        "ModelConfig": "spaces.models.config",
        "Operator": "spaces.sites",
        "Site": "spaces.sites",
        "Skipped": "spaces.sites",
        "Space": "spaces.sites",
        "create_model": "spaces.models.create",
        "describe": "spaces.vit",
        "load_compressed": "spaces.folder.compressed",
        "save_compressed": "spaces.folder.compressed",
    },
)
