"""Size, cost and attention backends of a model."""

from __future__ import annotations

from typing import Any

from miniformer.model.seq2seq import Seq2SeqTransformer


def describe_model(model: Any) -> list[str]:
    """Parameters, FLOPs, bytes of the cache and the attention backends, as lines."""
    config, seq2seq = model.config, isinstance(model, Seq2SeqTransformer)
    max_seq_len = config.max_seq_len
    flops = config.flops_per_token(seq2seq=seq2seq)
    lines = [
        f"{type(model).__name__}: {config.num_params(seq2seq=seq2seq):,} parameters",
        f"forward pass of {max_seq_len} tokens: {flops:,} FLOPs per token",
    ]
    passes = [("a full pass", {}), ("a full pass with padding", {"ragged": True})]
    if seq2seq or config.causal:
        source_len = max_seq_len if seq2seq else None
        num_bytes = config.cache_bytes(1, max_seq_len, kind="window", source_len=source_len)
        lines.append(f"cache of {max_seq_len} tokens in float32: {num_bytes:,} bytes")
        passes.append(("cached decoding", {"cached": True}))
    for name, options in passes:
        lines.append(f"attention in {name}:")
        lines += [f"  {line}" for line in model.backend_report(**options)]
    return lines
