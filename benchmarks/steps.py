"""The fine-tuning step of `objectives/training/finetune.py`, with soft labels made before, and other ways to take it.

`KNOWN` lists the switches.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from objectives.runtime.device import half_type
from objectives.training.config import FinetuneConfig
from spaces.modules import ContractedAttention

Batch = tuple[Tensor, Tensor, Tensor]  # images [B, C, H, W], labels [B], logits of the dense model [B, classes]

KNOWN: Mapping[str, str] = {
    "amp": "mixed precision: float32 weights, computation in bfloat16 where autocast says so",
    "bf16": "bfloat16 throughout; the optimiser has float32 master weights",
    "fused": "AdamW in one kernel",
    "foreach": "the norm of the gradients, and their clipping, over all of them in a few calls",
    "compile": "torch.compile of model and loss, for static shapes",
    "graph": "the whole step as one CUDA graph",
    "padded": "heads with unequal widths are padded with zeros to equal multiples of 8, for the fused kernels",
    "unfused": "attention as products and a softmax, where heads have unequal widths",
    "product": "attention as the product has it",
    "pinned": "images come from pinned memory, a batch ahead",
    "resident": "images lie on the device",
    "lazy": "the loss is not read at every step",
}
_SIDE_STEPS = 3  # before a graph is captured, as torch's documentation wants them


class Steps:
    """A model that is trained step by step.

    Args:
        model: on the CPU; becomes this object's.
        switches: of `KNOWN`.
        batches: used again and again.
        device: where to train.
        total: steps of the schedule of learning rates; further steps go on at its end.

    Raises:
        ValueError: a switch that is not known.
        RuntimeError: the device cannot do it.
    """

    def __init__(
        self, model: nn.Module, switches: frozenset[str], batches: Sequence[Batch], device: torch.device, total: int
    ) -> None:
        if unknown := sorted(switches - set(KNOWN)):
            raise ValueError(f"unknown way {unknown[0]!r}: choose among {', '.join(KNOWN)}")
        if "amp" in switches and half_type(device) == torch.float16:
            raise RuntimeError("the device has no bfloat16, and float16 wants its loss scaled")
        self._switches, self._device, self._total, self._taken = switches, device, total, 0
        self._config = FinetuneConfig(steps=total)
        self._master = model.to(device).train()
        self._model = copy.deepcopy(self._master).bfloat16() if "bf16" in switches else self._master
        for module in self._model.modules():
            if isinstance(module, ContractedAttention) and "product" not in switches:
                module._attend = MethodType(_attention(switches), module)  # type: ignore[method-assign]
        self._rate = torch.tensor(self._config.rate, device=device)
        self._optimizer = create_optimizer_v2(
            self._master, opt="adamw", lr=self._config.rate, weight_decay=self._config.weight_decay, **self._options()
        )
        self._loss = _compiled(self._plain_loss, device) if "compile" in switches else self._plain_loss
        self._batches = self._feed(batches)
        self._graph: torch.cuda.CUDAGraph | None = None
        if "graph" in switches:
            self._capture(next(self._batches))

    def take(self, count: int) -> None:
        """So many steps."""
        for batch in itertools.islice(self._batches, count):
            self._set_rate()
            loss = self._step(batch) if self._graph is None else self._replay(batch)
            if "lazy" not in self._switches:
                float(loss)
            self._taken += 1

    def trained(self) -> nn.Module:
        """The model in float32."""
        return self._master

    def _options(self) -> dict[str, Any]:
        """Of the optimiser."""
        options: dict[str, Any] = {"fused": True} if "fused" in self._switches else {}
        return {**options, "capturable": True} if "graph" in self._switches else options

    def _feed(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Batches on the device, for ever."""
        if "resident" in self._switches:
            batches = [self._moved(batch) for batch in batches]
            return itertools.cycle(batches)
        if "pinned" in self._switches:
            return self._ahead([_mapped(batch, Tensor.pin_memory) for batch in batches])
        return (self._moved(batch) for batch in itertools.cycle(batches))

    def _moved(self, batch: Batch) -> Batch:
        images, labels, soft = (part.to(self._device) for part in batch)
        return images, labels, soft

    def _ahead(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Every batch is copied by a stream of its own while the one before it is computed with."""
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        coming: Batch | None = None
        for batch in itertools.cycle(batches):
            ready = coming
            if ready is not None:
                torch.cuda.current_stream(self._device).wait_stream(side)
            with torch.cuda.stream(side):
                coming = _mapped(batch, lambda part: part.to(self._device, non_blocking=True))
            if ready is not None:
                for part in ready:
                    part.record_stream(torch.cuda.current_stream(self._device))
                yield ready

    def _plain_loss(self, images: Tensor, labels: Tensor, soft: Tensor) -> Tensor:
        cast = torch.autocast(self._device.type, half_type(self._device)) if "amp" in self._switches else nullcontext()
        with cast:
            logits = self._model(images.bfloat16() if "bf16" in self._switches else images).float()
        t, share = self._config.temperature, self._config.distillation
        ours, theirs = F.log_softmax(logits / t, dim=-1), F.log_softmax(soft / t, dim=-1)
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return share * t * t * divergence + (1 - share) * F.cross_entropy(logits, labels)

    def _step(self, batch: Batch) -> Tensor:
        loss: Tensor = self._loss(*batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._model is not self._master:
            for master, copied in zip(self._master.parameters(), self._model.parameters(), strict=True):
                assert copied.grad is not None
                master.grad = copied.grad.float()
        foreach = True if "foreach" in self._switches else None
        nn.utils.clip_grad_norm_(self._master.parameters(), self._config.clip_grad, foreach=foreach)
        self._optimizer.step()
        if self._model is not self._master:
            with torch.no_grad():
                torch._foreach_copy_(list(self._model.parameters()), list(self._master.parameters()))
            self._model.zero_grad(set_to_none=True)
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _set_rate(self) -> None:
        """Linear warm-up over a tenth of the steps, then a cosine to 0."""
        warm_up, step = max(1, self._total // 10), min(self._taken, self._total)
        rate = self._config.rate * (step + 1) / (warm_up + 1)
        if step >= warm_up:
            rate = self._config.rate * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / self._total))))
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _capture(self, batch: Batch) -> None:
        """Record one step; model and optimiser are afterwards as they were."""
        if self._device.type != "cuda":
            raise RuntimeError(f"there are no graphs on {self._device.type}")
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        self._inputs = _mapped(batch, Tensor.clone)
        weights = {name: value.clone() for name, value in self._master.state_dict().items()}
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(_SIDE_STEPS):
                self._step(self._inputs)
        torch.cuda.current_stream(self._device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._captured = self._step(self._inputs)
        self._master.load_state_dict(weights)
        if self._model is not self._master:
            self._model.load_state_dict(weights)
        for state in self._optimizer.state.values():
            for value in state.values():
                value.zero_()

    def _replay(self, batch: Batch) -> Tensor:
        assert self._graph is not None
        for place, part in zip(self._inputs, batch, strict=True):
            place.copy_(part, non_blocking=True)
        self._graph.replay()
        return self._captured


def _compiled(function: Any, device: torch.device) -> Any:
    """For static shapes, again for every way and share; on a CPU in this process, whose time is counted."""
    if device.type == "cpu":
        torch._inductor.config.compile_threads = 1
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000
    return torch.compile(function, dynamic=False)


def _mapped(batch: Batch, change: Any) -> Batch:
    images, labels, soft = map(change, batch)
    return images, labels, soft


def _attention(switches: frozenset[str]) -> Any:
    """What takes the place of `ContractedAttention._attend`."""

    def attend(self: ContractedAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        keys, values = q.shape[-1], v.shape[-1]
        if keys != values and "unfused" in switches:
            return torch.softmax((q * self.scale) @ k.mT, dim=-1) @ v
        if keys != values and "padded" in switches:
            width = -(-max(keys, values) // 8) * 8
            q, k, v = F.pad(q, (0, width - keys)), F.pad(k, (0, width - keys)), F.pad(v, (0, width - values))
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale=self.scale)[..., :values]

    return attend
