"""Validation, padding and device placement of prompts and sources."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.config import GenerationConfig, TransformerConfig, UserError

INTEGER_DTYPES = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Padded prompts.

    Args:
        ids: int [B, T]; the last column is real in every row.
        mask: real tokens of `ids`, bool [B, T]; None: all.
        source: inputs of the encoder, int [B, S] or float [B, S, F]; None for a decoder-only
            model.
        source_mask: real tokens of `source`, bool [B, S]; None: all.
    """

    ids: Tensor
    mask: Tensor | None = None
    source: Tensor | None = None
    source_mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ids.dim() != 2 or self.ids.dtype not in INTEGER_DTYPES:
            raise UserError(
                f"prompts must be [B, T] token ids, not {self.ids.dtype} {list(self.ids.shape)}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> PromptBatch:
        """Moves all tensors to a device, token ids as int64."""
        ids, mask, source, source_mask = (
            None if x is None else x.to(device, torch.long if x.dtype in INTEGER_DTYPES else None)
            for x in (self.ids, self.mask, self.source, self.source_mask)
        )
        assert ids is not None
        return PromptBatch(ids, mask, source, source_mask)


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


def left_pad_vectors(rows: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Pads sources of vectors, float [S, F], on the left; see `left_pad`."""
    if not all(map(len, rows)):
        raise UserError("a source is empty; a source needs at least one vector")
    width = max(map(len, rows))
    padded = torch.stack([F.pad(row, (0, 0, width - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    mask = torch.arange(width, device=padded.device) >= width - lengths[:, None]
    return padded, None if bool(mask.all()) else mask


def as_token_ids(prompt: Sequence[int] | Tensor) -> list[int]:
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


def check_prompts(config: TransformerConfig, batch: PromptBatch, options: GenerationConfig) -> None:
    """Validates prompts and options against a model.

    Raises:
        UserError: the model has no tokens, a token id is invalid, or a prompt is empty or too long.
    """
    # Of a seq2seq model, the source alone may be no tokens.
    for name in (
        ("output_dim",) if batch.source is not None else ("input_dim", "input", "output_dim")
    ):
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
    ids = batch.ids
    if ids.shape[1] == 0:
        raise UserError("the prompt is empty; a prompt needs at least one token")
    _check_token_ids(ids, config.vocab_size)
    if batch.source is not None and batch.source.dtype in INTEGER_DTYPES:  # else the model's error
        _check_token_ids(batch.source, config.source_vocab_size or config.vocab_size)
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


def _check_token_ids(ids: Tensor, vocab_size: int) -> None:
    """Raises UserError for token ids outside the vocabulary."""
    invalid = ids[(ids < 0) | (ids >= vocab_size)]
    if len(invalid):
        raise UserError(
            f"token id {int(invalid[0])} is outside the model's vocabulary, 0 to {vocab_size - 1}"
        )


def truncate_prompts(batch: PromptBatch, max_seq_len: int) -> PromptBatch:
    """Truncates prompts that exceed `max_seq_len` at their start."""
    ids, mask = batch.ids, batch.mask
    lengths = ids.new_full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1)
    lengths = torch.where(lengths > max_seq_len, truncation_keep(max_seq_len), lengths)
    width = int(lengths.max())
    mask = torch.arange(width, device=ids.device) >= width - lengths[:, None]
    mask = None if bool(mask.all()) else mask
    return dataclasses.replace(batch, ids=ids[:, -width:], mask=mask)


def truncation_keep(max_seq_len: int) -> int:
    """Number of tokens that truncation retains of a sequence that exceeds `max_seq_len`."""
    return max(1, max_seq_len // 2)
