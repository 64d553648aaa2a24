"""Attention to the best blocks of keys: the transform `sparse_attention`.

Each query of each head attends to the k blocks of keys with the largest products of the query and
the mean key of the block (MoBA, Lu et al. 2025), its own block always among them. Keys are those
that the query may see: blocks are counted by their positions in its sequence, so padding, packing
and caching change nothing, and with k of at least the number of blocks attention is dense.

The product with a mean is the mean of the products, which are computed anyway: this saves no time.

Letters: B batch, T query length, S key length, H query heads, K key-value heads, E head width, N
    blocks.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from miniformer.config import UserError
from miniformer.model.attention import AttentionContext, MultiHeadAttention
from miniformer.model.masks import AttentionMask

Model = TypeVar("Model", bound=nn.Module)


class BlockSparseAttention(MultiHeadAttention):
    """Self-attention to the best blocks of keys; with a sliding window, to all keys in it.

    Attributes:
        block_size: keys of a block.
        num_blocks: blocks that a query attends to.
    """

    block_size: int
    num_blocks: int

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        """[B, H, T, E] and two of [B, K, S, E] -> [B, T, D].

        Raises:
            UserError: another backend than `plain` was set.
        """
        if context.backend != "plain":
            raise UserError(
                "sparse_attention is computed by the attention backend plain, not by "
                f"{context.backend}; leave set_attention_backend out"
            )
        if self.window is None and self.num_blocks * self.block_size < k.shape[2]:
            allowed = best_blocks(q, k, context.mask, self.block_size, self.num_blocks)
            context = context._replace(mask=context.mask._replace(allowed=allowed))
        return super().attend(q, k, v, context)


@torch.no_grad()
def best_blocks(q: Tensor, k: Tensor, mask: AttentionMask, size: int, count: int) -> Tensor:
    """The keys in the best blocks of each query.

    Args:
        q: queries, [B, H, T, E].
        k: keys, [B, K, S, E], in the order of their positions. If S is T, query t is at key t,
            otherwise at the last key that it may see.
        mask: keys that each query may see, explicit.
        size: keys of a block.
        count: blocks of a query.

    Returns:
        bool [B, H, T, S].
    """
    batch, heads, length, _ = q.shape
    num_keys = k.shape[2]
    if mask.allowed is None:
        visible = torch.ones(1, 1, length, num_keys, dtype=torch.bool, device=q.device)
    else:
        visible = mask.allowed
    visible = visible.expand(batch, 1, length, num_keys)
    positions = visible.cumsum(-1) - 1  # of visible keys, in the sequence of the query
    num_blocks = -(-num_keys // size)
    blocks = (positions // size).masked_fill(~visible, num_blocks)  # the last one is no block
    keys = k.repeat_interleave(heads // k.shape[1], 1)  # [B, H, S, E]
    with torch.autocast(q.device.type, enabled=False):  # it would round the products
        products = (q.float() @ keys.float().transpose(-1, -2)).masked_fill(~visible, 0.0)
    per_head = blocks.expand(-1, heads, -1, -1)
    shape = (batch, heads, length, num_blocks + 1)
    sums = products.new_zeros(shape).scatter_add_(-1, per_head, products)
    sizes = products.new_zeros(shape).scatter_add_(
        -1, per_head, visible.float().expand_as(products)
    )
    scores = (sums / sizes.clamp_min(1)).masked_fill(sizes == 0, float("-inf"))[..., :-1]
    if num_keys == length:
        own = blocks.diagonal(dim1=-2, dim2=-1)[..., None]  # [B, 1, T, 1]
    else:
        own = positions[..., -1:] // size
    own = own.clamp(0, num_blocks - 1).expand(-1, heads, -1, -1)
    scores = scores.scatter(-1, own, float("inf"))
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
    return chosen.gather(-1, per_head.clamp_max(num_blocks - 1)) & visible


def sparse_attention(model: Model, block_size: int = 16, num_blocks: int = 4) -> Model:
    """The transform `sparse_attention`: self-attention attends to the best blocks of keys.

    The weights stay as they are. The sizes are in the state dict, so that an exporter, whose
    attention is dense, refuses the model.

    Args:
        model: the model.
        block_size: keys of a block.
        num_blocks: blocks that each query of each head attends to, its own included.

    Raises:
        UserError: a number is not at least 1, or no layer has built-in self-attention.
    """
    numbers: dict[str, Any] = {"block_size": block_size, "num_blocks": num_blocks}
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise UserError(f"sparse_attention: {name} must be at least 1, not {value!r}")
    modules = [x for x in model.modules() if type(x) is MultiHeadAttention]
    if not modules:
        raise UserError("sparse_attention: the model has no built-in self-attention")
    for module in modules:
        module.__class__ = BlockSparseAttention  # references to the module and its weights stay
        sparse: Any = module
        sparse.block_size, sparse.num_blocks = block_size, num_blocks
        sparse.backend = "plain"
        device = module.q_proj.weight.device
        sparse.register_buffer("blocks", torch.tensor([block_size, num_blocks], device=device))
    return model
