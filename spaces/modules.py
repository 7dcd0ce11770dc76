"""The modules that a compressed model has and a timm model has not; everything else stays timm's own."""

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

Kernel = Literal["torch", "padded", "products"]

# Up to so many tokens, a CPU computes the whole matrix of attention weights faster than a fused kernel on padded heads.
_WHOLE_TOKENS = 128
_ALIGNED = 8  # widths that a GPU's kernels want to be multiples of, in half precision


def empty_linear(in_features: int, out_features: int, bias: bool) -> nn.Linear:
    """A linear layer with uninitialised weights, to be filled by the caller."""
    return nn.utils.skip_init(nn.Linear, in_features, out_features, bias=bias)  # type: ignore[no-untyped-call, no-any-return]


class ConstantBranch(nn.Module):
    """What remains of a branch that was left out: the same vector for every token, [B, 1, dim], whatever comes in.

    One for every image: stochastic depth then drops it image by image, as it did the branch.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.bias.expand(x.shape[0], 1, -1)


class LowRankLinear(nn.Module):
    """A linear layer factored through `rank` dimensions: ``y = up(down(x))``.

    Shapes: ``[..., in_features] -> [..., out_features]``. Weights: down [rank, in], up [out, rank]; the bias, if
    any, belongs to `up`.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.down = empty_linear(in_features, rank, bias=False)
        self.up = empty_linear(rank, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))  # type: ignore[no-any-return]


class SelectedLinear(nn.Linear):
    """A linear layer that reads some of its inputs: ``y = W x[..., kept] + b``.

    Shapes: ``[..., total] -> [..., out_features]``; weight [out, number kept].

    Attributes:
        kept: indices of the inputs that are read, [number kept].
    """

    kept: Tensor

    def __init__(self, kept: int, out_features: int, bias: bool = True) -> None:
        super().__init__(kept, out_features, bias=bias)
        self.register_buffer("kept", torch.arange(kept))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.index_select(-1, self.kept))


def selected_linear(total: int, kept: int, out_features: int, bias: bool) -> nn.Linear:
    """A linear layer that reads `kept` of `total` inputs: a plain one where it reads all. Weights to be filled."""
    return empty_linear(total, out_features, bias) if kept == total else SelectedLinear(kept, out_features, bias)


class LowRankSparseLinear(nn.Module):
    """A linear layer with some whole rows, the others through `rank` dimensions: what LoSparse's L R + S computes when
    S has only these rows.

    Shapes: ``[..., in_features] -> [..., out_features]``. Weights: rows [whole, in], down [rank, in],
    up [out - whole, rank]; the biases belong to `rows` and `up`.

    Attributes:
        order: position of every output in the concatenation of the whole rows and the others, [out_features].
    """

    order: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, whole: int, bias: bool = True) -> None:
        super().__init__()
        self.rows = empty_linear(in_features, whole, bias=bias)
        self.down = empty_linear(in_features, rank, bias=False)
        self.up = empty_linear(rank, out_features - whole, bias=bias)
        self.register_buffer("order", torch.arange(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.rows(x), self.up(self.down(x))], dim=-1).index_select(-1, self.order)


def first_outputs(linear: nn.Module, x: Tensor, outputs: int, tokens: int) -> tuple[Tensor, Tensor]:
    """The first outputs of a linear layer for the first tokens, and its other outputs for all tokens.

    What is not asked for is not computed, with one exception: the whole rows of a `LowRankSparseLinear` may be any, so it
    computes all of its outputs. A `LowRankLinear` takes all tokens down, and up what is asked for.

    Args:
        linear: any of the layers of this module, or a plain one.
        x: [B, T, in_features].
        outputs: how many of them are the first ones.
        tokens: how many of T are the first ones.

    Returns:
        [B, tokens, outputs] and [B, T, out_features - outputs].
    """
    if isinstance(linear, LowRankSparseLinear):
        whole = linear(x)
        return whole[:, :tokens, :outputs], whole[..., outputs:]
    if isinstance(linear, LowRankLinear):
        x, linear = linear.down(x), linear.up
    elif isinstance(linear, SelectedLinear):
        x = x.index_select(-1, linear.kept)
    assert isinstance(linear, nn.Linear)
    weight, bias = linear.weight, linear.bias
    first, rest = (None, None) if bias is None else (bias[:outputs], bias[outputs:])
    return F.linear(x[:, :tokens], weight[:outputs], first), F.linear(x, weight[outputs:], rest)


class ContractedAttention(nn.Module):
    """Multi-head self-attention with fewer heads, and query/key and value/output head widths that differ.

    Takes the place of timm's `Attention`, `AttentionRope` or `EvaAttention` (with one fused qkv linear) and keeps their
    normalisations, gate and dropouts. The softmax scale stays that of the dense head width: contraction approximates
    the dense logits, so their scale must not change. It is passed to the fused kernel explicitly, so that the fused
    and the unfused path agree.

    Where torch has no fused kernel for two widths that differ, `kernel_for` says what is computed instead: the same up to
    rounding. Programs that are exported or traced have torch's one operator, with the widths as they are.

    Shapes: ``[batch, tokens, dim] -> [batch, tokens, dim]``; with rotary `rope`, only query_key_dim equal to the dense
    head width is meaningful (the space offers nothing else).

    Args:
        dense: the attention module that is replaced.
        num_heads: heads that stay.
        query_key_dim: width of each head's queries and keys.
        value_dim: width of each head's values.
        inputs: channels of the input that are read.
    """

    def __init__(self, dense: nn.Module, num_heads: int, query_key_dim: int, value_dim: int, inputs: int) -> None:
        super().__init__()
        qkv, proj = dense.get_submodule("qkv"), dense.get_submodule("proj")
        assert isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear)
        width = num_heads * (2 * query_key_dim + value_dim)
        projection = empty_linear(num_heads * value_dim, proj.out_features, bias=proj.bias is not None)
        self._set_sizes(num_heads, query_key_dim, value_dim)
        self._take(dense, selected_linear(qkv.in_features, inputs, width, bias=qkv.bias is not None), projection)

    @classmethod
    def adopting(cls, dense: nn.Module) -> "ContractedAttention":
        """The same attention as timm's `Attention`, with its own modules: nothing is copied, and no name changes.

        Its linear layers may be of low rank.
        """
        attention = cls.__new__(cls)
        nn.Module.__init__(attention)
        width: int = dense.head_dim  # type: ignore[assignment]
        attention._set_sizes(dense.num_heads, width, width)  # type: ignore[arg-type]
        attention._take(dense, dense.get_submodule("qkv"), dense.get_submodule("proj"))
        attention.training = dense.training
        return attention

    def _set_sizes(self, num_heads: int, query_key_dim: int, value_dim: int) -> None:
        self.num_heads = num_heads
        self.query_key_dim = query_key_dim
        self.value_dim = value_dim

    def _take(self, dense: nn.Module, qkv: nn.Module, proj: nn.Module) -> None:
        """All that is not a size: the linear layers given, the other parts of `dense`."""
        self.scale: float = dense.scale  # type: ignore[assignment]
        self.fused_attn: bool = dense.fused_attn  # type: ignore[assignment]
        self.num_prefix_tokens: int = getattr(dense, "num_prefix_tokens", 0)
        self.rotate_half: bool = getattr(dense, "rotate_half", False)
        self.qkv = qkv
        self.q_norm = dense.q_norm
        self.k_norm = dense.k_norm
        self.attn_drop = dense.attn_drop
        self.norm = dense.norm
        self.gate: nn.Module | None = getattr(dense, "gate", None)
        self.proj = proj
        self.proj_drop = dense.proj_drop

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        return self.attend(x, rope=rope, mask=attn_mask, is_causal=is_causal)

    def attend(
        self,
        x: Tensor,
        queries: int | None = None,
        rope: Tensor | None = None,
        mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attention of the first tokens to all of them.

        Args:
            x: [B, T, dim].
            queries: how many tokens ask; None for all. Queries, products and projection of the others are not computed.
            rope: rotary positions; only where all tokens ask.
            mask: added to the logits, in any floating dtype, or False where it forbids; broadcast to [B, heads, queries, T].
            is_causal: a token sees none after it.

        Returns:
            [B, queries, dim].
        """
        heads = self.num_heads
        asked = x if queries is None else x[:, :queries]
        q, k, v = self._projected(x, queries)
        q, k, v = (t.reshape(t.shape[0], t.shape[1], heads, -1).transpose(1, 2) for t in (q, k, v))
        q, k = self.q_norm(q), self.k_norm(k)  # type: ignore[operator]
        if rope is not None:
            q, k = self._rotate(q, rope).type_as(v), self._rotate(k, rope).type_as(v)
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        attended = self._attend(q, k, v, mask, is_causal)
        attended = self.norm(attended.transpose(1, 2).flatten(2))  # type: ignore[operator]
        if self.gate is not None:
            attended = attended * self.gate(asked).sigmoid()
        return self.proj_drop(self.proj(attended))  # type: ignore[operator, no-any-return]

    def _projected(self, x: Tensor, queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the first tokens, keys and values of all: [B, queries or T, heads * width]."""
        width, values = self.num_heads * self.query_key_dim, self.num_heads * self.value_dim
        if queries is None:
            q, k, v = self.qkv(x).split([width, width, values], dim=-1)
            return q, k, v
        q, others = first_outputs(self.qkv, x, width, queries)
        return q, others[..., :width], others[..., width:]

    def _rotate(self, x: Tensor, rope: Tensor) -> Tensor:
        prefix = self.num_prefix_tokens
        rotated = apply_rot_embed_cat(x[:, :, prefix:], rope, half=self.rotate_half)
        return torch.cat([x[:, :, :prefix], rotated], dim=2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        kernel = self._kernel(k, v, is_causal)
        if kernel == "products":
            return self._products(q, k, v, mask, is_causal)
        drop: float = self.attn_drop.p if self.training else 0.0  # type: ignore[union-attr,assignment]
        if kernel == "padded":
            width = -(-max(q.shape[-1], v.shape[-1]) // _ALIGNED) * _ALIGNED
            q, k, wide = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
            attended = F.scaled_dot_product_attention(q, k, wide, mask, drop, is_causal, scale=self.scale)
            return attended[..., : v.shape[-1]]
        return F.scaled_dot_product_attention(q, k, v, mask, drop, is_causal, scale=self.scale)

    def _kernel(self, k: Tensor, v: Tensor, is_causal: bool) -> Kernel:
        if not self.fused_attn:
            return "products"
        recorded = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if recorded or is_causal:
            return "torch"
        return kernel_for(k.shape[-1], v.shape[-1], k.shape[-2], k.device.type)

    def _products(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        logits = (q * self.scale) @ k.transpose(-2, -1)
        if is_causal:
            mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        return self.attn_drop(logits.softmax(dim=-1)) @ v  # type: ignore[operator, no-any-return]


def kernel_for(query_key: int, value: int, tokens: int, device: str) -> Kernel:
    """How attention is computed fastest: by the kernel that torch takes by itself, by its fused kernel on heads that zeros
    make equally wide, or as two products and a softmax.

    Left alone, torch computes heads whose widths differ on a CPU in the slowest of these ways. On a GPU it has a kernel for
    them if both widths are multiples of 8.

    Args:
        query_key: width of queries and keys.
        value: width of values.
        tokens: of an image.
        device: type of the device.
    """
    if query_key == value:
        return "torch"
    if device == "cpu":
        return "products" if tokens <= _WHOLE_TOKENS else "padded"
    return "padded" if device == "cuda" and (query_key % _ALIGNED or value % _ALIGNED) else "torch"
