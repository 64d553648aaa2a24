"""Logits processors: penalties, bans and custom processors.

A processor is a function of all tokens so far, prompt and new tokens, int [B, T] (-1: padding), and
of the logits of the next token, float32 [B, V]. It returns the changed logits.

Letters: B rows, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from miniformer import registry
from miniformer.config import GenerationConfig, UserError

Processor = Callable[[Tensor, Tensor], Tensor]


def build_processors(
    options: GenerationConfig, prompt_length: int, custom: Sequence[Processor] = ()
) -> list[Processor]:
    """Processors that the options require, in the order of Hugging Face, then named and `custom`.

    Args:
        options: decoding options.
        prompt_length: number of columns of the prompt.
        custom: custom processors. One with a method `make_processor(prompt_length)` is replaced by
            its result.
    """
    processors: list[Processor] = []
    if options.repetition_penalty != 1:
        processors.append(partial(repetition_penalty, penalty=options.repetition_penalty))
    if options.frequency_penalty or options.presence_penalty:
        processors.append(
            partial(
                frequency_presence_penalty,
                prompt_length=prompt_length,
                frequency=options.frequency_penalty,
                presence=options.presence_penalty,
            )
        )
    if options.no_repeat_ngram_size is not None:
        processors.append(partial(no_repeat_ngram, ngram_size=options.no_repeat_ngram_size))
    if options.bad_words_ids:
        processors.append(partial(bad_words, bad_words_ids=options.bad_words_ids))
    if options.min_new_tokens and options.eos_token_ids:
        min_length = prompt_length + options.min_new_tokens
        processors.append(
            partial(min_new_tokens, eos_token_ids=options.eos_token_ids, min_length=min_length)
        )
    if options.logits_processors:
        custom = [*build_named(options.logits_processors), *custom]
    return processors + [
        item.make_processor(prompt_length) if hasattr(item, "make_processor") else item
        for item in custom
    ]


def build_named(settings: Sequence[dict[str, Any]]) -> list[Processor]:
    """Registered processors, with their options.

    Raises:
        UserError: a name or an option is unknown.
    """
    return [
        registry.build("logits_processor", setting, label=f"logits_processors[{index}]")
        for index, setting in enumerate(settings)
    ]


def apply_processors(
    processors: Sequence[Processor], tokens: Tensor, logits: Tensor, step: int, num_beams: int = 1
) -> Tensor:
    """Applies all processors to logits, [B, V], with checks before and after.

    Args:
        processors: the processors.
        tokens: int [B, T].
        logits: [B, V].
        step: number of the new token, from 1, for error messages.
        num_beams: consecutive rows of one search, at least one of which needs an allowed token.

    Raises:
        UserError: logits are not finite, or no token is allowed.
    """
    check_finite(logits.amax(-1), step)  # amax propagates NaN
    if not processors:
        return logits
    logits = logits.float()
    for processor in processors:
        logits = processor(tokens, logits)
    if not bool(logits.amax(-1).view(-1, num_beams).amax(1).isfinite().all()):
        raise UserError(
            f"no token is allowed at new token {step}: bans and processors mask all tokens; "
            "loosen no_repeat_ngram_size, bad_words_ids, min_new_tokens or your processors"
        )
    return logits


def check_finite(max_logits: Tensor, step: int) -> None:
    """Raises UserError if the maximum logit, or a value derived from it, is not finite."""
    if not bool(max_logits.isfinite().all()):
        raise UserError(
            f"the model's logits at new token {step} are not finite; were its weights trained in "
            "too low a precision, or has its training failed?"
        )


def repetition_penalty(tokens: Tensor, logits: Tensor, *, penalty: float) -> Tensor:
    """Penalizes tokens of prompt and new tokens (CTRL, Keskar et al. 2019)."""
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(token_counts(tokens, logits) > 0, penalized, logits)


def frequency_presence_penalty(
    tokens: Tensor, logits: Tensor, *, prompt_length: int, frequency: float, presence: float
) -> Tensor:
    """Subtracts `frequency` per occurrence and `presence` once from tokens generated so far."""
    counts = token_counts(tokens[:, prompt_length:], logits)
    return logits - frequency * counts - presence * (counts > 0)


def no_repeat_ngram(tokens: Tensor, logits: Tensor, *, ngram_size: int) -> Tensor:
    """Masks tokens that would repeat an n-gram."""
    if tokens.shape[1] < ngram_size:
        return logits
    ngrams = tokens.unfold(1, ngram_size, 1)  # [B, T - ngram_size + 1, ngram_size]
    suffix = tokens[:, tokens.shape[1] - ngram_size + 1 :]  # [B, ngram_size - 1]
    matches = (ngrams[..., :-1] == suffix[:, None]).all(-1)
    return _mask_tokens(logits, ngrams[..., -1].masked_fill(~matches, -1))


def bad_words(tokens: Tensor, logits: Tensor, *, bad_words_ids: Sequence[Sequence[int]]) -> Tensor:
    """Masks the last token of each sequence in `bad_words_ids` that the tokens end with."""
    columns = []
    for word_ids in bad_words_ids:
        *prefix, last = word_ids
        if len(prefix) > tokens.shape[1]:
            continue
        suffix = tokens[:, tokens.shape[1] - len(prefix) :]
        matches = (suffix == suffix.new_tensor(prefix)).all(-1)
        columns.append(torch.where(matches, last, -1))
    return _mask_tokens(logits, torch.stack(columns, 1)) if columns else logits


def min_new_tokens(
    tokens: Tensor, logits: Tensor, *, eos_token_ids: Sequence[int], min_length: int
) -> Tensor:
    """Masks EOS ids below `min_length` columns."""
    if tokens.shape[1] >= min_length:
        return logits
    return _mask_tokens(logits, tokens.new_tensor([*eos_token_ids]).expand(len(tokens), -1))


def token_counts(tokens: Tensor, logits: Tensor) -> Tensor:
    """Number of occurrences of each token id, [B, V], without padding."""
    rows, vocab_size = logits.shape
    counts = logits.new_zeros(rows, vocab_size + 1)  # the last column counts padding
    ids = tokens.where(tokens >= 0, vocab_size)
    return counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))[:, :-1]


def _mask_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """Sets the logits of `tokens`, int [B, any], to -inf; -1 is ignored."""
    return logits.masked_fill(token_counts(tokens, logits) > 0, -torch.inf)
