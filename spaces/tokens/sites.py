"""The sites of tokens: how many patch tokens leave the attention of every block."""

from torch import nn

from spaces.branches import branches
from spaces.sites import Site, Skipped
from spaces.tokens.structure import obstacle, patch_tokens, reads_prefix_alone


def token_sites(model: nn.Module) -> tuple[list[Site], list[Skipped]]:
    """A site for every block of a dense timm model, and why there is none.

    A block gives up at most half of the patch tokens that enter it. Where the output reads prefix tokens alone, none need
    leave the attention of the last block, and merging some there would save nothing.
    """
    reason = obstacle(model) or _unknown(model)
    if reason is not None:
        return [], [Skipped(name="blocks.*.tokens", reason=reason)]
    patches, count, sites = patch_tokens(model), len(model.blocks), []  # type: ignore[arg-type]
    least, counts = patches, tuple(range(patches + 1))  # numbers that all sites share: there may be many of both
    for block in range(count):
        if block == count - 1 and reads_prefix_alone(model):
            choices = (0, *counts[least:])
        else:
            least = -(-least // 2)
            choices = counts[least:]
        sites.append(Site(name=f"blocks.{block}.tokens", branch=f"blocks.{block}", kind="tokens", choices=choices))
    return sites, []


def _unknown(model: nn.Module) -> str | None:
    """The first branch whose costs at other numbers of tokens are not known."""
    skipped = branches(model)[1]
    return f"{skipped[0].name} is not known: {skipped[0].reason}" if skipped else None
