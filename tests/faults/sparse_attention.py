"""Faults of dynamic sparse attention."""

from tests.faults import fault

_TARGET = "miniformer.compression.sparse_attention.attention"


@fault(f"{_TARGET}:best_blocks")
def blocks_include_padding(original):
    """Blocks are counted by columns, those of padding and of other segments too."""

    def best_blocks(q, k, mask, size, count):
        from miniformer.model.masks import AttentionMask

        everything = AttentionMask()
        chosen = original(q, k, everything, size, count)
        return chosen if mask.allowed is None else chosen & mask.allowed

    return best_blocks


@fault(f"{_TARGET}:best_blocks")
def last_block_is_dropped(original):
    """Keys after the last full block are in no block."""

    def best_blocks(q, k, mask, size, count):
        chosen = original(q, k, mask, size, count).clone()
        chosen[..., k.shape[2] // size * size :] = False
        return chosen

    return best_blocks


@fault(f"{_TARGET}:best_blocks")
def the_worst_blocks_are_chosen(original):
    """Blocks with the smallest scores are chosen."""

    def best_blocks(q, k, mask, size, count):
        return original(q, -k, mask, size, count)

    return best_blocks


@fault(f"{_TARGET}:best_blocks")
def cached_queries_are_in_the_first_block(original):
    """With a cache, a query has the first block in place of its own."""

    def best_blocks(q, k, mask, size, count):
        if q.shape[2] == k.shape[2]:
            return original(q, k, mask, size, count)
        reversed_mask = mask._replace(
            allowed=None if mask.allowed is None else mask.allowed.flip(-1)
        )
        return original(q, k.flip(2), reversed_mask, size, count).flip(-1)

    return best_blocks


@fault(f"{_TARGET}:BlockSparseAttention.attend")
def queries_of_sparse_attention_are_scaled(original):
    """Scores are larger than those of dense attention."""

    def attend(self, q, k, v, context):
        return original(self, q * 1.001, k, v, context)

    return attend


@fault(f"{_TARGET}:sparse_attention")
def sparse_models_are_exported_as_dense(original):
    """Nothing in the state dict says that attention is sparse."""

    def sparse_attention(model, block_size=16, num_blocks=4):
        model = original(model, block_size, num_blocks)
        for module in model.modules():
            module._buffers.pop("blocks", None)
        return model

    return sparse_attention


@fault(f"{_TARGET}:best_blocks")
def blocks_are_chosen_in_bf16(original):
    """Products of queries and keys are rounded under autocast."""

    def best_blocks(q, k, mask, size, count):
        import torch

        if torch.is_autocast_enabled("cpu"):
            q, k = q.bfloat16(), k.bfloat16()
        return original(q, k, mask, size, count)

    return best_blocks
