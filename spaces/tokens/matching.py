"""Which patch tokens are merged, and their weighted averages.

Written from the description of token merging in Bolya et al. 2023 (arXiv 2210.09461). All shapes are static, and nothing is
scattered: a one-hot matrix assigns merged tokens to their partners, so results are deterministic on every device and exports
need no more than standard operators.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Matching(NamedTuple):
    """Which tokens of a first set go into which of a second one. The sets are the tokens at even and at odd positions.

    Attributes:
        merged: positions in the first set of the tokens that are merged, [B, r].
        partner: position in the second set of the token that each of them is merged into, [B, r].
        staying: positions in the first set of the others, [B, ceil(n / 2) - r].
    """

    merged: Tensor
    partner: Tensor
    staying: Tensor


def match(metric: Tensor, merged: int) -> Matching:
    """The pairs of largest cosine similarity, computed in float32 whatever the dtype and under any autocast.

    Every token of the first set proposes the most similar one of the second; the best proposals are taken.

    Args:
        metric: what tokens are compared by, [B, n, m].
        merged: how many tokens to merge, from 0 to n // 2.
    """
    unit = F.normalize(metric.detach().float(), dim=-1)
    best, partner = _exact_product(unit[:, 0::2], unit[:, 1::2].transpose(1, 2)).max(dim=-1)
    order = best.topk(best.shape[1], dim=1).indices
    taken = order[:, :merged]
    return Matching(merged=taken, partner=partner.gather(1, taken), staying=order[:, merged:])


def merge(x: Tensor, prefix: int, sizes: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor]:
    """Tokens after a matching: prefix tokens, those of the first set that stay, and the second set with averages by size.

    Args:
        x: prefix tokens and n patch tokens, [B, prefix + n, d].
        prefix: number of prefix tokens.
        sizes: how many original tokens each patch token stands for, [B, n], float32; None for one.
        matching: of these n tokens, r of which are merged.

    Returns:
        Tokens [B, prefix + n - r, d] in the dtype of x, and sizes of the patch tokens [B, n - r] in float32.
    """
    merged, second = matching.merged.shape[1], x[:, prefix + 1 :: 2]
    first = take(x[:, prefix::2], torch.cat([matching.merged, matching.staying], dim=1))
    if sizes is None:
        sizes = torch.ones_like(x[:, prefix:, 0], dtype=torch.float32)
    second_sizes = sizes[:, 1::2]
    places = torch.arange(second.shape[1], device=x.device).unsqueeze(-1)
    chosen = matching.partner.unsqueeze(1) == places  # [B, n // 2, r]
    shares = chosen * sizes[:, 0::2].gather(1, matching.merged).unsqueeze(1)
    grown = second_sizes + shares.sum(-1)
    own = (second_sizes / grown).unsqueeze(-1).to(x.dtype)
    averaged = second * own + _exact_product((shares / grown.unsqueeze(-1)).to(x.dtype), first[:, :merged])
    tokens = torch.cat([x[:, :prefix], first[:, merged:], averaged] if prefix else [first[:, merged:], averaged], dim=1)
    return tokens, torch.cat([sizes[:, 0::2].gather(1, matching.staying), grown], dim=1)


def destinations(matching: Matching, tokens: int) -> Tensor:
    """Where every token is after `merge`, [B, n]: the positions of the tokens that it went into, or stayed as.

    Args:
        matching: of n tokens.
        tokens: n.
    """
    staying = matching.staying.shape[1]
    order = torch.cat([matching.staying, matching.merged], dim=1)
    kept = torch.arange(staying, device=order.device).expand(order.shape[0], -1)
    first = torch.cat([kept, matching.partner + staying], dim=1).gather(
        1, order.topk(order.shape[1], dim=1, largest=False).indices
    )
    second = torch.arange(staying, staying + tokens // 2, device=order.device).expand(order.shape[0], -1)
    paired = torch.stack([first[:, : tokens // 2], second], dim=-1).flatten(1)
    return paired if tokens % 2 == 0 else torch.cat([paired, first[:, -1:]], dim=1)


def take(x: Tensor, positions: Tensor) -> Tensor:
    """Tokens of every image at its own positions: [B, n, d] at [B, k] -> [B, k, d]."""
    images = torch.ones_like(positions[:, :1]).cumsum(0) - 1  # an arange would have no static shape in ONNX
    return x[images, positions]


def _exact_product(one: Tensor, other: Tensor) -> Tensor:
    """A matrix product in the dtype of its factors: autocast would round them to half precision."""
    if not torch.is_autocast_enabled(one.device.type):
        return one @ other
    with torch.autocast(one.device.type, enabled=False):
        return one @ other
