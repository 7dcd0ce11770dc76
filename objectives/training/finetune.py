"""Fine-tuning with distillation from the dense model: the short one of every trial, and the long one before export."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from objectives.runtime.device import half_type
from objectives.runtime.distributed import ALONE, Group
from objectives.runtime.progress import Step
from objectives.training.batch import Batch, precision
from objectives.training.config import FinetuneConfig
from spaces.errors import DivergedError

_FUSED = ("adam", "adamw")  # optimisers that have a fused kernel on CPUs and GPUs

Resume = Callable[[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler], int]


def finetune(
    model: nn.Module,
    batches: Iterable[Batch],
    config: FinetuneConfig,
    penalty: Callable[[], Tensor] | None = None,
    parts: int = 1,
    resume: Resume = lambda model, optimizer, scaler: 0,
    group: Group = ALONE,
) -> Iterator[Step]:
    """Train `model` in place, one step for every value taken from the iterator.

    Args:
        model: on its device; left in training mode until the iterator is exhausted, then in evaluation mode.
        batches: `config.steps` of them, on the same device.
        config: how to train.
        penalty: a scalar that is added to the loss of every step; for a group of one.
        parts: split every batch in so many and accumulate their gradients, for as much less memory: the same step up to
            rounding, in a model whose outputs for an image do not depend on the others. For a group of one.
        resume: called before the first step; may bring model, optimizer and loss scaling to where another fine-tune was, and
            gives the steps that were taken there. `batches` are those that follow.
        group: the processes that train this model, each with its share of every batch, as many images as the others'. Losses
            and gradients are means over all of them.

    Raises:
        DivergedError: the loss is NaN or infinite, of whichever process.
    """
    device = next(model.parameters()).device
    cast = precision(config, device)
    halved = isinstance(cast, torch.autocast) and half_type(device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=halved)
    optimizer = _optimizer(model, config, device)
    warmup = max(1, config.steps // 10)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=config.steps, warmup_epochs=warmup, warmup_lr=config.rate / (warmup + 1),
        step_on_epochs=False, updates_per_epoch=1,
    )  # fmt: skip
    model.train()
    if taken := resume(model, optimizer, scaler):
        scheduler.step_update(taken)
    trained, parameters = group.wrap(model), list(model.parameters())
    for step, batch in enumerate(batches, start=taken + 1):
        value = 0.0
        for some in batch.chunks(parts):
            with cast:
                loss = _loss(trained(some.images), some, config)
            if penalty is not None:
                loss = loss + penalty()
            loss = loss * (len(some.images) / len(batch.images))
            value += group.mean(float(loss.detach()))
            if not math.isfinite(value):
                raise DivergedError(f"the loss became {value} at step {step} of {config.steps}: lower --lr")
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, config.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        yield Step(step=step, loss=value, lr=optimizer.param_groups[0]["lr"])
        scheduler.step_update(step)
    model.eval()


def _optimizer(model: nn.Module, config: FinetuneConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser, with all its arithmetic in one kernel where torch has that."""
    fused = {"fused": True} if config.opt in _FUSED and device.type in ("cpu", "cuda") else {}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model, opt=config.opt, lr=config.rate, weight_decay=config.weight_decay, **fused
    )
    return optimizer


def _loss(logits: Tensor, batch: Batch, config: FinetuneConfig) -> Tensor:
    """Cross-entropy with the labels, and T^2-scaled KL divergence to the soft labels (Hinton et al. 2015)."""
    logits = logits.float()
    hard = F.cross_entropy(logits, batch.labels)
    if batch.soft is None or config.distillation == 0:
        return hard
    t = config.temperature
    divergence = F.kl_div(
        F.log_softmax(logits / t, dim=-1), F.log_softmax(batch.soft / t, dim=-1), reduction="batchmean", log_target=True
    )
    return config.distillation * t * t * divergence + (1 - config.distillation) * hard
