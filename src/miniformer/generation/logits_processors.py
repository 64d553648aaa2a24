"""What changes logits before a token is chosen: penalties, bans, and processors of the user's own.

A processor is a function of all tokens so far, prompt and text, int [B, T] (-1: padding), and of
the next token's logits, float32 [B, V], which it returns changed.

Letters: B rows, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, UserError

Processor = Callable[[Tensor, Tensor], Tensor]


def build_processors(
    options: GenerationConfig, prompt_length: int, custom: Sequence[Processor] = ()
) -> list[Processor]:
    """The processors that some options ask for, in the order of Hugging Face, then `more`.

    Args:
        options: the options.
        prompt_length: columns of the prompt: what comes after them is the text.
        more: the user's own.
    """
    found: list[Processor] = []
    if options.repetition_penalty != 1:
        found.append(partial(repetition_penalty, penalty=options.repetition_penalty))
    if options.frequency_penalty or options.presence_penalty:
        found.append(
            partial(
                frequency_presence_penalty,
                prompt_length=prompt_length,
                frequency=options.frequency_penalty,
                presence=options.presence_penalty,
            )
        )
    if options.no_repeat_ngram_size is not None:
        found.append(partial(no_repeat_ngram, ngram_size=options.no_repeat_ngram_size))
    if options.bad_words_ids:
        found.append(partial(bad_words, bad_words_ids=options.bad_words_ids))
    if options.min_new_tokens and options.eos_token_ids:
        until = prompt_length + options.min_new_tokens
        found.append(partial(min_new_tokens, eos_token_ids=options.eos_token_ids, min_length=until))
    # What has to know where the text begins says so.
    made = (
        each.make_processor(prompt_length) if hasattr(each, "make_processor") else each
        for each in custom
    )
    return [*found, *made]


def apply_processors(
    processors: Sequence[Processor], tokens: Tensor, logits: Tensor, step: int, num_beams: int = 1
) -> Tensor:
    """Logits [B, V] after all processors, checked before and after.

    Args:
        processors: see above.
        tokens: int [B, T].
        logits: [B, V].
        step: the new token's number, from 1, to tell where it went wrong.
        beams: rows that stand for one text: a token must be left for one of them.

    Raises:
        UserError: a logit is not a number, or no token is left to choose.
    """
    check_finite(logits.amax(-1), step)  # NaN is the largest of all
    if not processors:
        return logits
    logits = logits.float()
    for each in processors:
        logits = each(tokens, logits)
    if not bool(logits.amax(-1).view(-1, num_beams).amax(1).isfinite().all()):
        raise UserError(
            f"no token is left to choose at new token {step}: bans and processors forbid all; "
            "loosen no_repeat_ngram_size, bad_words_ids, min_new_tokens or your processors"
        )
    return logits


def check_finite(max_logits: Tensor, step: int) -> None:
    """Refuses logits of which the largest, or what is made of it, is not finite."""
    if not bool(max_logits.isfinite().all()):
        raise UserError(
            f"the model's logits at new token {step} are not finite; were its weights trained in "
            "too low a precision, or has its training failed?"
        )


def repetition_penalty(tokens: Tensor, logits: Tensor, *, penalty: float) -> Tensor:
    """Makes tokens that are there already less likely (CTRL, Keskar et al. 2019)."""
    lower = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(token_counts(tokens, logits) > 0, lower, logits)


def frequency_presence_penalty(
    tokens: Tensor, logits: Tensor, *, prompt_length: int, frequency: float, presence: float
) -> Tensor:
    """Takes something off for each time that a token was written, and once if it was at all."""
    written = token_counts(tokens[:, prompt_length:], logits)
    return logits - frequency * written - presence * (written > 0)


def no_repeat_ngram(tokens: Tensor, logits: Tensor, *, ngram_size: int) -> Tensor:
    """Forbids what would complete a run of `size` tokens that is there already."""
    if tokens.shape[1] < ngram_size:
        return logits
    runs = tokens.unfold(1, ngram_size, 1)  # [B, T - size + 1, size]
    last = tokens[:, tokens.shape[1] - ngram_size + 1 :]  # [B, size - 1]
    same = (runs[..., :-1] == last[:, None]).all(-1)
    return _mask_tokens(logits, runs[..., -1].masked_fill(~same, -1))


def bad_words(tokens: Tensor, logits: Tensor, *, bad_words_ids: Sequence[Sequence[int]]) -> Tensor:
    """Forbids the last token of a run whose others are there."""
    columns = []
    for run in bad_words_ids:
        *before, end = run
        if len(before) > tokens.shape[1]:
            continue
        there = tokens[:, tokens.shape[1] - len(before) :]
        same = (there == there.new_tensor(before)).all(-1)
        columns.append(torch.where(same, end, -1))
    return _mask_tokens(logits, torch.stack(columns, 1)) if columns else logits


def min_new_tokens(
    tokens: Tensor, logits: Tensor, *, eos_token_ids: Sequence[int], min_length: int
) -> Tensor:
    """Forbids what ends a text up to a column."""
    if tokens.shape[1] >= min_length:
        return logits
    return _mask_tokens(logits, tokens.new_tensor([*eos_token_ids]).expand(len(tokens), -1))


def token_counts(tokens: Tensor, logits: Tensor) -> Tensor:
    """How often each token of the vocabulary is there, [B, V]; padding is not counted."""
    rows, vocabulary = logits.shape
    found = logits.new_zeros(rows, vocabulary + 1)  # padding goes into a column of its own
    columns = tokens.where(tokens >= 0, vocabulary)
    return found.scatter_add_(1, columns, torch.ones_like(columns, dtype=found.dtype))[:, :-1]


def _mask_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """Logits with those of `tokens`, int [B, any], at -inf; -1: none."""
    return logits.masked_fill(token_counts(tokens, logits) > 0, -torch.inf)
