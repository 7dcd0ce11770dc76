"""Which patch tokens are merged, and their weighted averages.

Written from the description of token merging in Bolya et al. 2023 (arXiv 2210.09461), with three changes that halve the error
of a ViT-S of 257 tokens (benchmarks/results/tokens_cpu_202611.md). Tokens are compared by what enters the attention, not by its
keys. Pairs are ranked by Ward's criterion, so that large tokens are merged later. Tokens that stay keep their order, so that
neighbours are in different sets again in the next block.

All shapes are static, and nothing is scattered: a one-hot matrix assigns merged tokens to their partners, so results are
deterministic on every device and exports need no more than standard operators.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Matching(NamedTuple):
    """Which tokens are merged into which others. Only those at even positions can be merged.

    Attributes:
        kept: positions of the tokens that stay, ascending, [B, n - r].
        merged: positions of those that are merged, [B, r].
        partner: index in `kept` of the token that each of these is merged into, [B, r].
    """

    kept: Tensor
    merged: Tensor
    partner: Tensor


def match(metric: Tensor, sizes: Tensor | None, merged: int) -> Matching:
    """The pairs of tokens that it costs least to merge, computed in float32 whatever the dtype and under any autocast.

    Every token at an even position proposes its best partner at an odd one; the best proposals are taken. A pair costs
    1 minus its cosine similarity, times the root of ab / (a + b) for sizes a and b: what Ward's criterion makes of sizes
    (Ward 1963), by its root.

    Args:
        metric: what tokens are compared by, [B, n, m].
        sizes: how many original tokens each stands for, [B, n], float32; None for one.
        merged: how many tokens to merge, from 1 to n // 2.
    """
    unit = F.normalize(metric.detach().float(), dim=-1)
    gains = _exact_product(unit[:, 0::2], unit[:, 1::2].transpose(1, 2)) - 1
    if sizes is not None:
        first, second = sizes[:, 0::2].unsqueeze(2), sizes[:, 1::2].unsqueeze(1)
        gains = gains * (first * second / (first + second)).sqrt()
    best, partner = gains.max(dim=-1)
    chosen = best.topk(merged, dim=1).indices
    gone, into = 2 * chosen, 2 * partner.gather(1, chosen) + 1
    positions = torch.arange(metric.shape[1], device=metric.device)
    later = (gone.unsqueeze(1) == positions.unsqueeze(-1)).sum(-1) * metric.shape[1]
    kept = (positions + later).topk(metric.shape[1] - merged, dim=1, largest=False).values
    return Matching(kept, gone, into - _before(gone, into))


def merge(x: Tensor, sizes: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor]:
    """Patch tokens after a matching: averages of those that were merged, weighted by size, in the order of their positions.

    Args:
        x: patch tokens [B, n, d].
        sizes: how many original tokens each stands for, [B, n], float32; None for one.
        matching: of these n tokens.

    Returns:
        Tokens [B, n - r, d] in the dtype of x, and their sizes [B, n - r] in float32.
    """
    if sizes is None:
        sizes = torch.ones_like(x[..., 0], dtype=torch.float32)
    own, others = sizes.gather(1, matching.kept), sizes.gather(1, matching.merged)
    places = torch.arange(own.shape[1], device=x.device).unsqueeze(-1)
    shares = (matching.partner.unsqueeze(1) == places) * others.unsqueeze(1)  # [B, n - r, r]
    grown = own + shares.sum(-1)
    added = _exact_product((shares / grown.unsqueeze(-1)).to(x.dtype), take(x, matching.merged))
    return take(x, matching.kept) * (own / grown).unsqueeze(-1).to(x.dtype) + added, grown


def destinations(matching: Matching, tokens: int) -> Tensor:
    """Where every token is after `merge`, [B, n]: the positions of the tokens that it went into, or stayed as.

    Args:
        matching: of n tokens.
        tokens: n.
    """
    positions = torch.arange(tokens, device=matching.kept.device)
    is_merged = matching.merged.unsqueeze(1) == positions.unsqueeze(-1)  # [B, n, r]
    into = (is_merged * matching.partner.unsqueeze(1)).sum(-1)
    return torch.where(is_merged.sum(-1) > 0, into, positions - _before(matching.merged, positions))


def take(x: Tensor, positions: Tensor) -> Tensor:
    """Tokens of every image at its own positions: [B, n, d] at [B, k] -> [B, k, d]."""
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _before(gone: Tensor, positions: Tensor) -> Tensor:
    """How many of the positions [B, r] that are left empty are before others, [B, k] or [k]. Shape [B, k]."""
    return (gone.unsqueeze(1) < positions.unsqueeze(-1)).sum(-1)


def _exact_product(one: Tensor, other: Tensor) -> Tensor:
    """A matrix product in the dtype of its factors: autocast would round them to half precision."""
    if not torch.is_autocast_enabled(one.device.type):
        return one @ other
    with torch.autocast(one.device.type, enabled=False):
        return one @ other
