"""Which way to compute attention is fastest where heads have unequal widths: what `spaces.modules.kernel_for` was decided by.

    OMP_NUM_THREADS=1 python benchmarks/attention.py

Every way is timed in turns with the others, with gradients and without, by the CPU's time; the least of some rounds counts.
Equal widths are there to compare with: for them `torch` is the fused kernel.
"""

import argparse
import time
from collections.abc import Callable
from typing import get_args
from unittest import mock

import timm
import torch
from torch import Tensor

from spaces import modules
from spaces.modules import ContractedAttention, Kernel, kernel_for

SHAPES = ((128, 17, 4), (128, 50, 6), (32, 65, 6), (16, 197, 6), (64, 197, 6))  # images, tokens, heads
WIDTHS = ((8, 8), (4, 8), (16, 8), (12, 16), (24, 24), (24, 40), (40, 24), (32, 64))  # of queries and keys, and of values
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--calls", type=int, default=3, help="in a round")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    columns = [f"{kernel}, {use}" for use in ("training", "inference") for kernel in KERNELS]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, ms\n")
    print(f"| images, tokens, heads | widths | {' | '.join(columns)} | chosen |")
    print("|---" * (len(columns) + 3) + "|")
    for images, tokens, heads in SHAPES:
        for query_key, value in WIDTHS:
            attention = module(heads, query_key, value)
            inputs = torch.randn(images, tokens, heads * (2 * query_key + value))
            times = [
                f"{1e3 * seconds:.2f}"
                for training in (True, False)
                for seconds in timed(attention, inputs, training, arguments.rounds, arguments.calls)
            ]
            chosen = kernel_for(query_key, value, tokens, "cpu")
            print(f"| {images}, {tokens}, {heads} | {query_key}, {value} | {' | '.join(times)} | {chosen} |", flush=True)


def module(heads: int, query_key: int, value: int) -> ContractedAttention:
    """The compressed model's attention; only what comes between its linear layers is used."""
    dense = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=heads * 64, num_heads=heads).get_submodule(
        "blocks.0.attn"
    )
    return ContractedAttention(dense, heads, query_key, value, heads * 64)


def timed(attention: ContractedAttention, inputs: Tensor, training: bool, rounds: int, calls: int) -> list[float]:
    """Seconds of a call, kernel by kernel."""
    inputs = inputs.clone().requires_grad_(training)
    best = dict.fromkeys(KERNELS, float("inf"))
    for _ in range(rounds):
        for kernel in KERNELS:
            with mock.patch.object(modules, "kernel_for", _always(kernel)):
                began = time.process_time()
                for _ in range(calls):
                    outputs = attended(attention, inputs)
                    if training:
                        outputs.backward(torch.ones_like(outputs))  # type: ignore[no-untyped-call]
                best[kernel] = min(best[kernel], (time.process_time() - began) / calls)
    return list(best.values())


def _always(kernel: Kernel) -> Callable[..., Kernel]:
    return lambda *shape: kernel


def attended(attention: ContractedAttention, inputs: Tensor) -> Tensor:
    """From the output of `qkv`, [images, tokens, heads x widths], to the input of `proj`."""
    images, tokens, _ = inputs.shape
    heads, keys, values = attention.num_heads, attention.query_key_dim, attention.value_dim
    q, k, v = inputs.split_with_sizes([heads * keys, heads * keys, heads * values], -1)
    q, k, v = (part.reshape(images, tokens, heads, -1).transpose(1, 2) for part in (q, k, v))
    return attention._attend(q, k, v, None, False).transpose(1, 2).flatten(2)


if __name__ == "__main__":
    main()
