"""Log-probabilities of the tokens of a prompt, for completions with `echo`."""

from __future__ import annotations

from typing import Any

import torch

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.generation.api import GenerationInput
from miniformer.serving.generation import TokenText, token_name


def prompt_tokens(
    pipeline: Pipeline, prompt: Any, inputs: GenerationInput, num_top: int
) -> list[TokenText]:
    """Tokens of a prompt with their log-probabilities; the first one has none without BOS.

    Args:
        pipeline: a causal language model, in the thread of its worker.
        prompt: text or token ids of the request.
        inputs: the encoded prompt, perhaps with BOS before it.
        num_top: number of most likely tokens at each place.
    """
    model: Any = pipeline.model
    tokenizer = pipeline.tokenizer
    assert tokenizer is not None
    ids = [*inputs.input_ids]
    own = tokenizer.encode(prompt) if isinstance(prompt, str) else ids
    device = next(model.parameters()).device
    with torch.inference_mode():
        features = model.features(torch.tensor([ids], device=device))
        logprobs = model.logits(features)[0].float().log_softmax(-1).cpu()  # [T, V]
    tokens = []
    for position in range(len(ids) - len(own), len(ids)):
        name = token_name(tokenizer, ids[position])
        if not position:
            tokens.append(TokenText(ids[0], name, None, []))
            continue
        row = logprobs[position - 1]
        values, likely = row.topk(num_top)
        top = [
            (token_name(tokenizer, token), token, value)
            for token, value in zip(likely.tolist(), values.tolist(), strict=True)
        ]
        tokens.append(TokenText(ids[position], name, float(row[ids[position]]), top))
    return tokens
