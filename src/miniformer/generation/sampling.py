"""Choosing the next token from its logits.

Letters: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from miniformer.config import GenerationConfig


def sample_next_token(
    logits: Tensor, options: GenerationConfig, uniform: Tensor | None = None
) -> Tensor:
    """One token for each row.

    A row's token is where its own uniform number falls among the cumulated probabilities, so it
    depends on no other row.

    Args:
        logits: [B, V].
        options: see `shares`.
        uniform: numbers in [0, 1), [B]; None: drawn from torch's global generator.

    Returns:
        int [B].
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    probabilities, ids = filtered_probs(logits, options)
    # Double precision: in single, the smallest of many probabilities would be lost in their sum.
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    if uniform is None:
        uniform = torch.rand(len(logits), dtype=torch.float64)
    cumulated = probabilities.cumsum(-1, dtype=wide)  # [B, K]
    total = cumulated[:, -1:]
    place = torch.minimum(
        uniform.to(total)[:, None] * total, torch.nextafter(total, torch.zeros_like(total))
    )
    chosen = torch.searchsorted(cumulated, place, right=True)  # [B, 1]
    return (chosen if ids is None else ids.gather(1, chosen))[:, 0]


def row_uniforms(
    options: GenerationConfig, rows: Sequence[tuple[int, int]], device: torch.device
) -> Tensor | None:
    """Random numbers of each row and step, which depend on the seed and on that row only.

    Args:
        options: `seed` and `max_new_tokens`.
        rows: of each row the number of its prompt, and that of its continuation of the prompt.
        device: where logits are.

    Returns:
        [B, max_new_tokens], in [0, 1); None: nothing is sampled.
    """
    if options.temperature == 0:
        return None
    if options.seed is None:
        drawn = torch.rand(len(rows), options.max_new_tokens, dtype=torch.float64)
    else:
        steps = options.max_new_tokens
        own = [np.random.default_rng([options.seed, *row]).random(steps) for row in rows]
        drawn = torch.from_numpy(np.stack(own))
    return drawn.to(device, torch.float32 if device.type == "mps" else torch.float64)


def row_generator(
    options: GenerationConfig, row: tuple[int, int], device: torch.device
) -> torch.Generator | None:
    """The same as `uniforms` for one row, as a generator; None: torch's global one."""
    if options.seed is None:
        return None
    (seed,) = np.random.SeedSequence([options.seed, *row]).generate_state(1, np.uint64).tolist()
    return torch.Generator(device).manual_seed(seed % 2**63)


def sampling_distribution(logits: Tensor, options: GenerationConfig) -> Tensor:
    """How likely `choose` takes each token, [B, V]; see `shares`."""
    if options.temperature == 0:
        return torch.zeros_like(logits, dtype=torch.float32).scatter_(
            1, logits.argmax(-1, keepdim=True), 1.0
        )
    probabilities, ids = filtered_probs(logits, options)
    if ids is not None:
        probabilities = torch.zeros_like(logits, dtype=torch.float32).scatter_(
            1, ids, probabilities
        )
    return probabilities / probabilities.sum(-1, keepdim=True)


def filtered_probs(logits: Tensor, options: GenerationConfig) -> tuple[Tensor, Tensor | None]:
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
