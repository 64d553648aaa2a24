"""Attention of a target to its source, for the page."""

from __future__ import annotations

from typing import Any

import torch

from miniformer.checkpoint.pipeline import Pipeline


@torch.inference_mode()
def source_attention(pipeline: Pipeline, source: str, target: str) -> dict[str, Any]:
    """Weights of the last decoder layer, averaged over heads.

    Args:
        pipeline: a seq2seq model of texts.
        source: text.
        target: the model's answer.

    Returns:
        `source` and `target`, texts of tokens, and `weights`, a row of S numbers for each target
        token.
    """
    task: Any = pipeline.task
    tokenizer: Any = pipeline.tokenizer
    (item,) = task.generation_inputs(pipeline.model, tokenizer, [source], truncate=True)
    new = tokenizer.encode(target)
    start = list(item.input_ids)
    ids = [*start, *new][: pipeline.model.config.max_seq_len]
    output = pipeline.model(
        torch.tensor([list(item.source)]), torch.tensor([ids]), return_attention=True
    )
    weights = output.cross_attentions[-1][0].mean(0)  # [T, S]
    rows = weights[len(start) - 1 :][: len(new)]
    names = tokenizer.source_tokenizer
    return {
        "source": [names.decode([token]) for token in item.source],
        "target": [tokenizer.decode([token]) for token in new[: len(rows)]],
        "weights": [[round(x, 4) for x in row] for row in rows.tolist()],
    }
