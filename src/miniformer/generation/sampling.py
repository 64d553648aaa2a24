"""Sampling: temperature, top-k, top-p, min-p and seeded random numbers.

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
    """Samples one token per row by inverse transform sampling, or takes the argmax.

    The token of a row depends only on its logits and its uniform number.

    Args:
        logits: [B, V].
        options: see `filtered_probs`.
        uniform: numbers in [0, 1), [B]; None: sampled from torch's global generator.

    Returns:
        int [B].
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    probabilities, ids = filtered_probs(logits, options)
    # Float64: in float32 a sum of many probabilities loses the smallest.
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64
    if uniform is None:
        uniform = torch.rand(len(logits), dtype=torch.float64)
    cumulative = probabilities.cumsum(-1, dtype=dtype)  # [B, K]
    total = cumulative[:, -1:]
    threshold = torch.minimum(
        uniform.to(total)[:, None] * total, torch.nextafter(total, torch.zeros_like(total))
    )
    index = torch.searchsorted(cumulative, threshold, right=True)  # [B, 1]
    return (index if ids is None else ids.gather(1, index))[:, 0]


def row_uniforms(
    options: GenerationConfig, rows: Sequence[tuple[int, int]], device: torch.device
) -> Tensor | None:
    """Random numbers of each row and step; those of a row depend only on the seed and the row.

    Args:
        options: `seed` and `max_new_tokens`.
        rows: prompt index and index among the sequences of that prompt, for each row.
        device: device of the logits.

    Returns:
        [B, max_new_tokens], in [0, 1); None for greedy decoding.
    """
    if options.temperature == 0:
        return None
    if options.seed is None:
        uniform = torch.rand(len(rows), options.max_new_tokens, dtype=torch.float64)
    else:
        steps = options.max_new_tokens
        per_row = [np.random.default_rng([options.seed, *row]).random(steps) for row in rows]
        uniform = torch.from_numpy(np.stack(per_row))
    return uniform.to(device, torch.float32 if device.type == "mps" else torch.float64)


def row_generator(
    options: GenerationConfig, row: tuple[int, int], device: torch.device
) -> torch.Generator | None:
    """Random generator of one row, seeded as in `row_uniforms`; None: torch's global generator."""
    if options.seed is None:
        return None
    (seed,) = np.random.SeedSequence([options.seed, *row]).generate_state(1, np.uint64).tolist()
    return torch.Generator(device).manual_seed(seed % 2**63)


def sampling_distribution(logits: Tensor, options: GenerationConfig) -> Tensor:
    """Probability of each token in `sample_next_token`, float32 [B, V]."""
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
    """Unnormalized sampling probabilities after temperature, top-k, top-p and min-p.

    The filters apply in this order, each to the remaining tokens, as in Hugging Face and vLLM.

    Args:
        logits: [B, V].
        options: temperature above 0, top_k, top_p and min_p.

    Returns:
        float32 [B, K], and their token ids, int [B, K]; None: K is V, in vocabulary order.
    """
    # The maximum becomes 0, so division by any temperature is safe.
    scaled = logits.float() - logits.amax(-1, keepdim=True).float()
    scaled = scaled / max(options.temperature, 1e-30)
    ids = None
    if options.top_k is not None or options.top_p is not None:
        vocab_size = scaled.shape[-1]
        scaled, ids = scaled.topk(min(options.top_k or vocab_size, vocab_size))  # sorted
    probabilities = scaled.softmax(-1)
    if options.top_p is not None:
        before = probabilities.cumsum(-1) - probabilities  # of more likely tokens
        top_p = max(options.top_p, torch.finfo(before.dtype).tiny)  # 0 would leave no token
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    if options.min_p is not None:
        threshold = options.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < threshold, 0.0)
    return probabilities, ids
