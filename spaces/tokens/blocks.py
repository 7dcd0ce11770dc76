"""Blocks of a vision transformer that pass on fewer patch tokens than they get."""

import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from spaces.errors import ModelError
from spaces.modules import ContractedAttention
from spaces.tokens.matching import destinations, match, merge, take

State = tuple[Tensor, Tensor | None, Tensor | None]


class ReducedBlock(nn.Module):
    """A timm `Block` that knows the sizes of merged tokens, and merges some itself between its attention and its FFN.

    Sizes weigh in attention: the logarithm of a key's size is added to its logits (proportional attention, Bolya et al. 2023,
    arXiv 2210.09461), so a token that stands for several counts as several. Prefix tokens are never merged.

    If no patch token leaves, queries, output projection and FFN are computed for prefix tokens only. Keys and values still see
    all tokens that came in, so prefix tokens get exactly the same.

    The block takes over the modules of the one it is made of, under their names.

    Args:
        block: with timm's `Attention`, this project's, or a constant in their place, [B, 1, dim], to add to all tokens.
        prefix: number of prefix tokens.
        entering: number of patch tokens that come in.
        leaving: number of patch tokens that leave: 0, or at least half of those that come in.
        tracks: whether it keeps track of where the original tokens are.
    """

    def __init__(self, block: Block, prefix: int, entering: int, leaving: int, tracks: bool) -> None:
        super().__init__()
        self.prefix = prefix
        self.entering = entering
        self.leaving = leaving
        self.tracks = tracks
        self.norm1 = block.norm1
        self.attn = ContractedAttention.adopting(block.attn) if type(block.attn) is TimmAttention else block.attn
        self.ls1 = block.ls1
        self.drop_path1 = block.drop_path1
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.ls2 = block.ls2
        self.drop_path2 = block.drop_path2
        self.training = block.training

    def forward(
        self,
        x: Tensor,
        sizes: Tensor | None = None,
        source: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> State:
        """Tokens after the block.

        Args:
            x: [B, prefix + entering, dim].
            sizes: how many original patch tokens each patch token stands for, [B, entering], float32; None for one.
            source: which patch token each original one went into, [B, N]; None for itself.
            attn_mask: must be None.
            is_causal: must be False.

        Returns:
            Tokens [B, prefix + leaving, dim], sizes [B, leaving] and source [B, N] of these.

        Raises:
            ModelError: a mask was given.
        """
        if attn_mask is not None or is_causal:
            raise ModelError("a model whose tokens are merged takes no attention mask: merged tokens have no place in it")
        compared = self.norm1(x)
        attended = self._attended(compared, sizes)
        x = (x if self.leaving else x[:, : self.prefix]) + self.drop_path1(self.ls1(attended))
        if 0 < self.leaving < self.entering:
            x, sizes, source = self._merged(x, compared[:, self.prefix :], sizes, source)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), sizes, source

    def _attended(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """What attention adds to the tokens that leave."""
        if not isinstance(self.attn, ContractedAttention):
            return self.attn(x)  # type: ignore[no-any-return]
        mask = None if sizes is None else F.pad(sizes.log(), (self.prefix, 0))[:, None, None, :]
        return self.attn.attend(x, None if self.leaving else self.prefix, mask=mask)

    def _merged(self, x: Tensor, metric: Tensor, sizes: Tensor | None, source: Tensor | None) -> State:
        matching = match(metric, sizes, self.entering - self.leaving)
        if self.tracks:
            moved = destinations(matching, self.entering)
            source = moved if source is None else moved.gather(1, source)
        patches, sizes = merge(x[:, self.prefix :], sizes, matching)
        return _behind_prefix(x, self.prefix, patches), sizes, source


class ReducedBlocks(nn.Sequential):
    """Blocks of which some merge patch tokens, in the place of timm's `blocks`.

    Shapes: ``[B, prefix + N, dim] -> [B, prefix + last count, dim]``, or the shape of the input if tokens are given back.

    Args:
        blocks: timm's, and those of this module.
        prefix: number of prefix tokens.
        gives_back: whether every original token gets the vector of the token that it went into, at the end. Averages and other
            pooling over patch tokens then weigh merged ones by their sizes.
    """

    def __init__(self, *blocks: nn.Module, prefix: int, gives_back: bool) -> None:
        super().__init__(*blocks)
        self.prefix = prefix
        self.gives_back = gives_back

    def forward(self, x: Tensor) -> Tensor:
        sizes: Tensor | None = None
        source: Tensor | None = None
        for block in self:
            if isinstance(block, ReducedBlock):
                x, sizes, source = block(x, sizes, source)
            else:
                x = block(x)
        return x if source is None else _behind_prefix(x, self.prefix, take(x[:, self.prefix :], source))


def _behind_prefix(x: Tensor, prefix: int, patches: Tensor) -> Tensor:
    """The prefix tokens of x, and other patch tokens."""
    return torch.cat([x[:, :prefix], patches], dim=1) if prefix else patches
