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


def merge(x: Tensor, sizes: Tensor | None, matching: Matching) -> tuple[Tensor, Tensor]:
    """Patch tokens after a matching: those of the first set that stay, then the second set, averages weighted by size.

    Args:
        x: patch tokens [B, n, d].
        sizes: how many original tokens each stands for, [B, n], float32; None for one.
        matching: of these n tokens.

    Returns:
        Tokens [B, n - r, d] in the dtype of x, and their sizes [B, n - r] in float32.
    """
    first, second = x[:, 0::2], x[:, 1::2]
    if sizes is None:
        sizes = torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)
    first_sizes, second_sizes = sizes[:, 0::2], sizes[:, 1::2]
    places = torch.arange(second.shape[1], device=x.device).unsqueeze(-1)
    chosen = matching.partner.unsqueeze(1) == places  # [B, n // 2, r]
    shares = chosen * first_sizes.gather(1, matching.merged).unsqueeze(1)
    grown = second_sizes + shares.sum(-1)
    averaged = second * (second_sizes / grown).unsqueeze(-1).to(x.dtype) + _exact_product(
        (shares / grown.unsqueeze(-1)).to(x.dtype), take(first, matching.merged)
    )
    tokens = torch.cat([take(first, matching.staying), averaged], dim=1)
    return tokens, torch.cat([first_sizes.gather(1, matching.staying), grown], dim=1)


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
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _exact_product(one: Tensor, other: Tensor) -> Tensor:
    """A matrix product in the dtype of its factors: autocast would round them to half precision."""
    if not torch.is_autocast_enabled(one.device.type):
        return one @ other
    with torch.autocast(one.device.type, enabled=False):
        return one @ other
