"""How models are fine-tuned, in options: the short fine-tune of every candidate, and the long one before an export."""

from collections.abc import Sequence
from dataclasses import dataclass

from spaces.errors import ConfigError

_POLICIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")  # of timm.data.auto_augment
# Peak learning rate where none was given and nothing could be probed: the order of what pretrained transformers are usually
# fine-tuned with. A small model that was trained from scratch gains from ten times as much, which wrecks a pretrained one.
UNPROBED = 5e-5

_AUTO_POLICY, _AUTO_SIDE = "rand-m9-mstd0.5-inc1", 32  # DeiT's; of smaller images it leaves too little


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a candidate is fine-tuned. Names are timm's where timm has one.

    Attributes:
        steps: optimiser steps of the short fine-tune; 0 evaluates candidates as built.
        lr: peak learning rate, after a linear warm-up over the first tenth of the steps, before a cosine decay to 0; by default
            probed before the first trial, which may find that no fine-tune helps (docs/measurement.md).
        opt: timm optimiser name.
        weight_decay: weight decay of matrices (not of biases and normalisations).
        clip_grad: largest gradient norm.
        distillation: weight of the dense model's soft labels in the loss; 1 - this of the true labels.
        temperature: softmax temperature of the soft labels.
        amp: mixed precision: auto (on a GPU), on, or off. bfloat16 where the device has it, else float16 with loss scaling.
        recipe_share: share of the steps that a recipe which trains (vtp, gohsp, losparse, kumar-hybrid) spends before the
            cut; the fine-tune gets the others, so that every trial costs the same number of steps.
    """

    steps: int = 100
    lr: float | None = None
    opt: str = "adamw"
    weight_decay: float = 0.05
    clip_grad: float = 1.0
    distillation: float = 0.7
    temperature: float = 2.0
    amp: str = "auto"
    recipe_share: float = 0.25

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"steps must be at least 0, got {self.steps}")
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.distillation <= 1:
            raise ConfigError(f"distillation must be between 0 and 1, got {self.distillation}")
        if not 0 < self.recipe_share < 1:
            raise ConfigError(f"recipe_share must be between 0 and 1, got {self.recipe_share}")
        if self.amp not in ("auto", "on", "off"):
            raise ConfigError(f"amp must be auto, on or off, got {self.amp!r}")

    @property
    def is_probed(self) -> bool:
        """Whether a search is to find the learning rate."""
        return self.lr is None and self.steps > 0

    @property
    def rate(self) -> float:
        """Peak learning rate: as given, or what is taken where it was neither given nor probed."""
        return UNPROBED if self.lr is None else self.lr


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is fine-tuned before its export. Names are timm's where timm has one.

    Optimiser, weight decay, clipping, distillation and mixed precision are those of `FinetuneConfig`. The variation's
    defaults are DeiT's (Touvron et al. 2021); a few epochs of a model that has lost much may do as well with less.

    Attributes:
        finetune_epochs: passes over the training images; 0 for the short fine-tune of the search alone.
        finetune_lr: peak learning rate, after a linear warm-up over the first tenth, before a cosine decay to 0; by default
            that of the short fine-tune.
        aa: timm's auto-augment policy, e.g. rand-m9-mstd0.5-inc1; none, or auto: that of the search if it has one, else this
            one for images of at least 32 pixels.
        reprob: probability of random erasing.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of cutmix, which takes turns with mixup; 0 for none.
        smoothing: label smoothing.
        drop_path: rate of stochastic depth in the last block; it rises from 0 in the first one.
        model_ema_decay: decay of the moving average of the weights, which is measured beside them, after a warm-up in which
            it is less; 0 for no average.
    """

    finetune_epochs: int = 0
    finetune_lr: float | None = None
    aa: str = "auto"
    reprob: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    drop_path: float = 0.1
    model_ema_decay: float = 0.9998

    def __post_init__(self) -> None:
        if self.finetune_epochs < 0:
            raise ConfigError(f"finetune_epochs must be at least 0, got {self.finetune_epochs}")
        if self.finetune_lr is not None and not self.finetune_lr > 0:
            raise ConfigError(f"finetune_lr must be positive, got {self.finetune_lr}")
        for name in ("mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("reprob", "smoothing", "drop_path", "model_ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.aa not in ("auto", "none") and self.aa.partition("-")[0] not in _POLICIES:
            raise ConfigError(f"aa must be auto, none or begin with {', '.join(_POLICIES)}: got {self.aa!r}")

    def policy(self, input_size: Sequence[int], searched: str | None) -> str | None:
        """The auto-augment policy for some images.

        Args:
            input_size: of the images, [C, H, W].
            searched: the policy of the search, if it has one.
        """
        if self.aa == "none":
            return None
        if self.aa != "auto":
            return self.aa
        return searched or (_AUTO_POLICY if min(input_size[1:]) >= _AUTO_SIDE else None)
