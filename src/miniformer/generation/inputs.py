"""Validation, padding and device placement of prompts and sources."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, TransformerConfig, UserError

INTEGER_DTYPES = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def left_pad(rows: Sequence[Sequence[int]], name: str) -> tuple[Tensor, Tensor | None]:
    """Pads rows on the left; returns ids, int [B, T], and mask, bool [B, T] (None: no padding).

    With left padding the next token of every row has the same column.
    """
    lists = [as_token_ids(row) for row in rows]
    if not all(lists):
        raise UserError(f"{name} {lists.index([])} is empty; a {name} needs at least one token")
    width = max(len(row) for row in lists)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in lists])
    lengths = torch.tensor([len(row) for row in lists])
    mask = torch.arange(width) >= width - lengths[:, None]
    return ids, None if bool(mask.all()) else mask


def to_device(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    """Moves a tensor to a device; None stays None."""
    return None if tensor is None else tensor.to(device)


def as_token_ids(prompt: Sequence[int]) -> list[int]:
    """Converts a prompt to a list of Python integers.

    Raises:
        UserError: the prompt is not a sequence of integers.
    """
    try:
        if not any(isinstance(token, bool) for token in prompt):
            return [operator.index(token) for token in prompt]
    except TypeError:
        pass
    raise UserError(f"prompts must be lists of token ids, such as [[1, 2], [3]]; found {prompt!r}")


def check_prompts(config: TransformerConfig, ids: Tensor, options: GenerationConfig) -> None:
    """Validates prompts and options against a model.

    Raises:
        UserError: the model has no tokens, a token id is invalid, or a prompt is empty or too long.
    """
    for name in ("input_dim", "output_dim"):
        if getattr(config, name) is not None:
            raise UserError(
                f"a model with {name}={getattr(config, name)} cannot generate tokens; "
                f"generate needs {name}=null"
            )
    if options.stop_strings:
        raise UserError(
            "stop_strings needs a tokenizer; use a Pipeline (miniformer.load), or stop_token_ids"
        )
    if options.constraint:
        raise UserError(f"{options.constraint} needs a tokenizer; use a Pipeline (miniformer.load)")
    if ids.shape[1] == 0:
        raise UserError("the prompt is empty; a prompt needs at least one token")
    check_token_ids(ids, config.vocab_size)
    token_options = {
        "eos_id": [] if options.eos_id is None else [options.eos_id],
        "stop_token_ids": options.stop_token_ids or [],
        "bad_words_ids": [token for ngram in options.bad_words_ids or [] for token in ngram],
    }
    for name, tokens in token_options.items():
        for token in tokens:
            if not 0 <= token < config.vocab_size:
                raise UserError(
                    f"{name}={token} is outside the model's vocabulary, "
                    f"0 to {config.vocab_size - 1}"
                )
    max_new_tokens = config.max_seq_len - ids.shape[1]
    if max_new_tokens < options.max_new_tokens and not options.context_shift:
        raise UserError(
            f"a prompt of {ids.shape[1]} tokens and max_new_tokens={options.max_new_tokens} exceed "
            f"max_seq_len={config.max_seq_len}; "
            + (
                f"ask for at most {max_new_tokens} new tokens"
                if max_new_tokens > 0
                else "shorten the prompt"
            )
            + ", or set context_shift=true to drop the oldest tokens"
        )


def check_token_ids(ids: Tensor, vocab_size: int) -> None:
    """Raises UserError for token ids outside the vocabulary."""
    invalid = ids[(ids < 0) | (ids >= vocab_size)]
    if len(invalid):
        raise UserError(
            f"token id {int(invalid[0])} is outside the model's vocabulary, 0 to {vocab_size - 1}"
        )
