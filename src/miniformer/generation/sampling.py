"""Choosing the next token from its logits.

Letters: B batch, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.config import GenerationConfig


def choose(
    logits: Tensor, options: GenerationConfig, generator: torch.Generator | None = None
) -> Tensor:
    """One token for each row.

    Args:
        logits: [B, V].
        options: see `shares`.
        generator: source of randomness; None: torch's global one.

    Returns:
        int [B].
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    probabilities, ids = shares(logits, options)
    chosen = torch.multinomial(probabilities, 1, generator=generator)  # [B, 1]
    return (chosen if ids is None else ids.gather(1, chosen))[:, 0]


def distribution(logits: Tensor, options: GenerationConfig) -> Tensor:
    """How likely `choose` takes each token, [B, V]; see `shares`."""
    if options.temperature == 0:
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(
            1, logits.argmax(-1, keepdim=True), 1.0
        )
    probabilities, ids = shares(logits, options)
    if ids is not None:
        probabilities = torch.zeros_like(logits, dtype=torch.float32).scatter_(
            1, ids, probabilities
        )
    return probabilities / probabilities.sum(-1, keepdim=True)


def shares(logits: Tensor, options: GenerationConfig) -> tuple[Tensor, Tensor | None]:
    """What tokens are drawn by: numbers in proportion to their probability.

    Temperature first, then top-k, then top-p and min-p over what is left: the order of Hugging Face
    and vLLM.

    Args:
        logits: [B, V].
        options: temperature above 0, top_k, top_p and min_p.

    Returns:
        float32 [B, K], and the tokens that they are of, int [B, K]; None: all, in their order.
    """
    # The likeliest token's score is 0, so that no temperature is too small to divide by.
    scaled = logits.float() - logits.amax(-1, keepdim=True).float()
    scaled = scaled / max(options.temperature, 1e-30)
    ids = None
    if options.top_k is not None or options.top_p is not None:
        scaled, ids = scaled.topk(
            min(options.top_k or scaled.shape[-1], scaled.shape[-1])
        )  # likeliest first
    probabilities = scaled.softmax(-1)
    if options.top_p is not None:
        before = probabilities.cumsum(-1) - probabilities  # probability of all likelier tokens
        probabilities = probabilities.masked_fill(before >= options.top_p, 0.0)
    if options.min_p is not None:
        least = options.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    return probabilities, ids
