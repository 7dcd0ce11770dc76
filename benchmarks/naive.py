"""The search that a competent engineer writes in a day; benchmarks/throughput.py compares the engine with it.

Optuna's multivariate TPE proposes every size by itself: the ranks of the attention's linear layers and the widths of the FFNs,
as shares of the dense layers. Every trial makes its model anew by truncated SVD and by the magnitude of FFN neurons, counts
its MACs with fvcore, fine-tunes it with distillation from the dense model, and measures its error on the search split. One
process, one trial after the other. Nothing of the engine is used but the names of the fine-tune's options.
"""

import copy
import logging
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from stages import Stages
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader

from objectives.training.config import FinetuneConfig

LOWEST, STEP = 0.05, 0.05  # of the shares that are proposed
MULTIPLE = 8  # of ranks and widths, as GPUs like them
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One trial: what every layer keeps, the share of the dense model's MACs, and the error on the search split."""

    sizes: Mapping[str, float]
    share: float
    error: float


class Naive:
    """The search.

    Args:
        dense: a timm vision transformer on its device.
        train: varied training images, in a new order in every pass.
        search: images to compare candidates on.
        config: of the fine-tune.
        seed: of the sampler and of every fine-tune.
        starts: shares that all layers keep alike in the first trials.
        stages: told what is done.
    """

    def __init__(
        self,
        dense: nn.Module,
        train: DataLoader[Any],
        search: Batches,
        config: FinetuneConfig,
        seed: int,
        stages: Stages,
        starts: Sequence[float] = (),
    ) -> None:
        self.dense, self.train, self.config, self.seed, self.stages = dense.eval(), train, config, seed, stages
        device = next(dense.parameters()).device
        with stages.stage("preparation"):
            self.search = [(images.to(device), labels.to(device)) for images, labels in search]
            self.macs = count_macs(dense)
            sampler = optuna.samplers.TPESampler(multivariate=True, seed=seed)
            self.study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
            for share in starts:
                self.study.enqueue_trial(dict.fromkeys(layers(dense), share))

    def trial(self) -> Measured:
        """Propose, evaluate and record one candidate."""
        with self.stages.stage("proposing"):
            trial = self.study.ask()
            sizes = {name: trial.suggest_float(name, LOWEST, 1.0, step=STEP) for name in layers(self.dense)}
        measured = self.evaluate(sizes)
        with self.stages.stage("proposing"):
            self.study.tell(trial, [measured.share, measured.error])
        return measured

    def evaluate(self, sizes: Mapping[str, float]) -> Measured:
        """One candidate from its sizes to its figures."""
        _, measured = self.made(sizes)
        return measured

    def made(self, sizes: Mapping[str, float]) -> tuple[nn.Module, Measured]:
        """A candidate, fine-tuned, and its figures."""
        with self.stages.stage("building"):
            model = build(self.dense, sizes)
        with self.stages.stage("counting MACs"):
            share = count_macs(model) / self.macs
        torch.manual_seed(self.seed)  # all candidates see the same batches
        finetune(model, self.dense, self.train, self.config, self.stages)
        with self.stages.stage("evaluation"):
            error = error_of(model, self.search)
        return model, Measured(sizes=sizes, share=share, error=error)

    def resume(self, done: Iterable[Measured]) -> None:
        """Show the sampler trials of an earlier process."""
        distribution = optuna.distributions.FloatDistribution(LOWEST, 1.0, step=STEP)
        for entry in done:
            distributions: dict[str, Any] = dict.fromkeys(entry.sizes, distribution)
            values = [entry.share, entry.error]
            self.study.add_trial(
                optuna.trial.create_trial(params=dict(entry.sizes), distributions=distributions, values=values)
            )


def layers(model: nn.Module) -> list[str]:
    """Names of what has a size: two linear layers and the FFN of every block."""
    return [f"blocks.{i}.{part}" for i in range(len(model.blocks)) for part in ("attn.qkv", "attn.proj", "mlp")]  # type: ignore[arg-type]


def uniform(dense: nn.Module, budget: float) -> dict[str, float]:
    """The largest share that every layer may keep alike, to a hundredth, for a share of the dense model's MACs."""
    names, macs = layers(dense), count_macs(dense)
    hundredths = range(1, 101)
    fitting = bisect_right(hundredths, budget * macs, key=lambda n: count_macs(build(dense, dict.fromkeys(names, n / 100))))
    return dict.fromkeys(names, max(fitting, 1) / 100)


def build(dense: nn.Module, sizes: Mapping[str, float]) -> nn.Module:
    """A copy of the dense model in which every named layer keeps a share of its weights; 1 leaves it as it is."""
    model = copy.deepcopy(dense)
    for name, share in sizes.items():
        module = model.get_submodule(name)
        if share >= 1:
            continue
        if isinstance(module, nn.Linear):
            model.set_submodule(name, truncated(module, share))
        else:
            prune_neurons(module, share)
    return model


@torch.no_grad()
def truncated(linear: nn.Linear, share: float) -> nn.Module:
    """Two linear layers by truncated SVD with so large a share of the weights; the layer itself where it has no fewer."""
    m, n = linear.weight.shape
    rank = rounded(share * m * n / (m + n))
    if rank * (m + n) >= m * n:
        return linear
    u, sigma, vt = torch.linalg.svd(linear.weight, full_matrices=False)
    device, root = linear.weight.device, sigma[:rank].sqrt()
    down, up = nn.Linear(n, rank, bias=False, device=device), nn.Linear(rank, m, bias=linear.bias is not None, device=device)
    down.weight.copy_(root[:, None] * vt[:rank])
    up.weight.copy_(u[:, :rank] * root)
    if linear.bias is not None:
        up.bias.copy_(linear.bias)
    return nn.Sequential(down, up)


@torch.no_grad()
def prune_neurons(mlp: nn.Module, share: float) -> None:
    """Keep the FFN neurons whose weights in and out have the largest product of norms."""
    fc1, fc2 = mlp.get_submodule("fc1"), mlp.get_submodule("fc2")
    assert isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear)
    importance = fc1.weight.norm(dim=1) * fc2.weight.norm(dim=0)
    kept = importance.topk(min(rounded(share * len(importance)), len(importance))).indices.sort().values
    fc1.weight, fc1.bias, fc1.out_features = nn.Parameter(fc1.weight[kept]), nn.Parameter(fc1.bias[kept]), len(kept)
    fc2.weight, fc2.in_features = nn.Parameter(fc2.weight[:, kept]), len(kept)


def rounded(size: float) -> int:
    """The nearest positive multiple."""
    return max(MULTIPLE, MULTIPLE * round(size / MULTIPLE))


def count_macs(model: nn.Module) -> int:
    """MACs for one image by fvcore, which knows no fused attention and counts normalisations, which the literature does not."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    size = model.patch_embed.img_size  # type: ignore[union-attr]
    channels = model.patch_embed.proj.in_channels  # type: ignore[union-attr]
    image = torch.zeros(1, channels, *size, device=next(model.parameters()).device)  # type: ignore[misc, arg-type]
    analysis = FlopCountAnalysis(model.eval(), image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.set_op_handle("aten::scaled_dot_product_attention", attention_macs)
    analysis.set_op_handle("aten::layer_norm", lambda inputs, outputs: 0)  # fvcore ignores None where it has a handle
    return int(analysis.total())


def attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Both products of attention, for queries [B, H, T, d], keys [B, H, S, d] and values [B, H, S, e]."""
    (batch, heads, tokens, width), key, value = (entry.type().sizes() for entry in inputs[:3])
    return int(batch * heads * tokens * key[2] * (width + value[3]))


def finetune(model: nn.Module, teacher: nn.Module, batches: Batches, config: FinetuneConfig, stages: Stages) -> None:
    """Train in place for `config.steps` batches, with distillation (Hinton et al. 2015)."""
    device = next(model.parameters()).device
    cast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
    with stages.stage("steps"):
        optimizer = create_optimizer_v2(model, opt=config.opt, lr=config.rate, weight_decay=config.weight_decay)
        warmup = max(1, config.steps // 10)
        scheduler, _ = create_scheduler_v2(
            optimizer, sched="cosine", num_epochs=config.steps, warmup_epochs=warmup, warmup_lr=config.rate / (warmup + 1),
            step_on_epochs=False, updates_per_epoch=1,
        )  # fmt: skip
    model.train()
    for step, (images, labels) in enumerate(stages.each("batches", first(batches, config.steps)), start=1):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with stages.stage("teacher"), torch.no_grad(), cast:
            soft = teacher(images).float()
        with stages.stage("steps"):
            with cast:
                logits = model(images).float()
            loss = distillation(logits, labels, soft, config)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
            optimizer.step()
            scheduler.step_update(step)


def distillation(logits: Tensor, labels: Tensor, soft: Tensor, config: FinetuneConfig) -> Tensor:
    """Cross-entropy with the labels, and the divergence from the teacher at a temperature."""
    t = config.temperature
    student, teacher = F.log_softmax(logits / t, dim=-1), F.log_softmax(soft / t, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return config.distillation * t * t * divergence + (1 - config.distillation) * F.cross_entropy(logits, labels)


def first(batches: Batches, steps: int) -> Iterable[tuple[Tensor, Tensor]]:
    """So many batches, in as many passes as that takes."""
    taken = 0
    while taken < steps:
        for batch in batches:
            yield batch
            taken += 1
            if taken == steps:
                return


@torch.inference_mode()
def error_of(model: nn.Module, batches: Batches) -> float:
    """Top-1 error in [0, 1]."""
    model.eval()
    device = next(model.parameters()).device
    wrong = count = 0
    for images, labels in batches:
        wrong += int((model(images.to(device)).argmax(-1) != labels.to(device)).sum())
        count += len(labels)
    return wrong / count
