"""The branches of a timm vision transformer: where they are, what each computes, and what is peculiar about its module.

A model says here which branches it has. Operators look at a branch's role and traits to know what they can do with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from timm.layers import Attention as TimmAttention
from timm.layers import AttentionRope, GluMlp, Mlp, SwiGLU
from timm.models.eva import EvaAttention
from torch import nn

from spaces.errors import ModelError
from spaces.sites import Role, Skipped

# What a module has besides the plain layers of its role. Attention: a normalisation of queries and keys, or positions that
# turn them; a normalisation or a gate between the heads and the output projection; biases of queries and values beside the
# fused linear; keys and values that heads share. FFN: a normalisation over the hidden width.
Trait = Literal["qk norm", "rotary", "output norm", "output gate", "separate biases", "shared keys", "hidden norm"]

# timm's own classes only: a subclass may compute something else in the same attributes.
ATTENTION = (TimmAttention, AttentionRope, EvaAttention)
_FFN = (Mlp, GluMlp, SwiGLU)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One residual branch of a block.

    Attributes:
        path: dotted name of its module.
        role: what it computes.
        module: timm's.
        traits: what the module has besides the plain layers.
    """

    path: str
    role: Role
    module: nn.Module
    traits: frozenset[Trait]

    def obstacle(self, reasons: Mapping[Trait, str]) -> str | None:
        """The first of some reasons, by trait, that holds here; None if none does."""
        return next((reason for trait, reason in reasons.items() if trait in self.traits), None)


def branches(model: nn.Module) -> tuple[list[Branch], list[Skipped]]:
    """The attention and FFN branches of `model.blocks` that are understood, and those that are not.

    Raises:
        ModelError: the model has no `blocks`, so it is no plain vision transformer.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise ModelError(
            f"{type(model).__name__} has no list of transformer blocks: only plain vision transformers can be compressed"
        )
    known, skipped = [], []
    for index, block in enumerate(blocks):
        for part in ("attn", "mlp"):
            path, module = f"blocks.{index}.{part}", getattr(block, part, None)
            if module is None:
                skipped.append(Skipped(name=path, reason=f"{type(block).__name__} has no separate {part} branch"))
            elif type(module) not in ATTENTION + _FFN or getattr(module, "qkv", module) is None:
                skipped.append(Skipped(name=path, reason=f"{type(module).__name__} with this layout is not known here"))
            else:
                known.append(_branch(path, module))
    return known, skipped


def _branch(path: str, module: nn.Module) -> Branch:
    if isinstance(module, ATTENTION):
        return Branch(path=path, role="attention", module=module, traits=_attention_traits(module))
    traits: frozenset[Trait] = frozenset() if isinstance(module.norm, nn.Identity) else frozenset({"hidden norm"})
    return Branch(path=path, role="ffn", module=module, traits=traits)


def _attention_traits(attention: nn.Module) -> frozenset[Trait]:
    plain = [isinstance(norm, nn.Identity) for norm in (attention.q_norm, attention.k_norm)]
    holds: dict[Trait, bool] = {
        "qk norm": not all(plain),
        "rotary": isinstance(attention, AttentionRope | EvaAttention),
        "output norm": not isinstance(attention.norm, nn.Identity),
        "output gate": getattr(attention, "gate", None) is not None,
        "separate biases": getattr(attention, "q_bias", None) is not None,
        "shared keys": getattr(attention, "num_kv_groups", 1) != 1,
    }
    return frozenset(trait for trait, found in holds.items() if found)
