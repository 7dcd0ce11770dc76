"""Memory that one forward pass needs: weights, and the tensors that are alive at once."""

import itertools
import json

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from spaces.scratch import Scratch


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


@torch.inference_mode()
def peak_memory(model: nn.Module, images: Tensor) -> int:
    """Largest number of bytes that torch's allocator held at one time: weights, images, and what a forward pass adds.

    On CUDA by the allocator's own counter, elsewhere by summing up the allocations that torch's profiler lists. Both leave
    out what libraries allocate by themselves (cuBLAS's and oneDNN's work space) and what the allocator keeps in reserve.

    Args:
        model: on its device, in evaluation mode.
        images: [B, C, H, W] on the same device.
    """
    model(images)  # what is allocated once, at a first pass, belongs to neither
    fixed = weight_bytes(model) + images.numel() * images.element_size()
    return fixed + (_peak_on_cuda(model, images) if images.is_cuda else _peak_on_cpu(model, images))


def _peak_on_cuda(model: nn.Module, images: Tensor) -> int:
    torch.cuda.synchronize(images.device)
    torch.cuda.reset_peak_memory_stats(images.device)
    before = torch.cuda.memory_allocated(images.device)
    model(images)
    torch.cuda.synchronize(images.device)
    return torch.cuda.max_memory_allocated(images.device) - before


def _peak_on_cpu(model: nn.Module, images: Tensor) -> int:
    # acc_events: torch 2.11 warns without it.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        model(images)
    with Scratch() as folder:
        trace = folder / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: float(event["ts"]))
    held = itertools.accumulate(int(event["args"]["Bytes"]) for event in changes)
    return max(held, default=0)
