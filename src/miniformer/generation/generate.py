"""Autoregressive decoding with a key-value cache.

Letters: B batch, T prompt length, D model width, V vocabulary.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, TransformerConfig, UserError
from miniformer.generation.beam import Beams, beam_search
from miniformer.generation.modes import evaluating
from miniformer.generation.sampling import choose

_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


class Model(Protocol):
    """What decoding needs of a model."""

    config: TransformerConfig

    def new_cache(self, batch_size: int, capacity: int) -> Any: ...
    def features(self, *inputs: Any, **options: Any) -> Tensor: ...
    def logits(self, features: Tensor) -> Tensor: ...
    def parameters(self) -> Any: ...
    def modules(self) -> Any: ...
    def train(self, mode: bool = True) -> Any: ...


def generate(model: Model, prompts: Tensor, options: GenerationConfig) -> Tensor:
    """Continues prompts of one length: int [B, T] -> [B, T + new], ended rows filled with `eos_id`.

    Raises:
        UserError: see `Transformer.generate`.
    """
    if prompts.dim() != 2 or prompts.dtype not in _INTEGERS:
        raise UserError(
            f"prompts must be [B, T] token ids, not {prompts.dtype} {list(prompts.shape)}"
        )
    if not len(prompts):
        return prompts
    continued = _decode(model, prompts, None, options)
    return torch.cat((prompts, continued.to(prompts.device)), 1)


def generate_ragged(
    model: Model, prompts: Sequence[Sequence[int]], options: GenerationConfig
) -> list[list[int]]:
    """Continues prompts of unequal length; a result is prompt and continuation, without `eos_id`.

    Raises:
        UserError: see `Transformer.generate`.
    """
    rows = [_ids(prompt) for prompt in prompts]
    if not rows:
        return []
    # Padding goes left, so that every row's next token stands in the same column.
    continued = _decode(model, *_pad_left(rows), options).tolist()
    return [row + _until(new, options.eos_id) for row, new in zip(rows, continued, strict=True)]


def generate_target(
    model: Model,
    source: Tensor,
    source_mask: Tensor | None,
    start_id: int,
    options: GenerationConfig,
) -> Tensor:
    """What a decoder writes to a source: int [B, S] -> [B, new], ended rows filled with `eos_id`.

    Raises:
        UserError: see `Seq2SeqTransformer.generate`.
    """
    if not len(source):
        return source.new_empty(0, 0)
    if source.dtype in _INTEGERS:  # what is no id at all, the model itself refuses
        _check_ids(source, model.config.source_vocab_size or model.config.vocab_size)
        source = source.long()
    start = torch.full((len(source), 1), start_id)
    return _decode(model, start, None, options, (source, source_mask)).to(source.device)


def generate_targets(
    model: Model, sources: Sequence[Sequence[int]], start_id: int, options: GenerationConfig
) -> list[list[int]]:
    """What a decoder writes to sources of unequal length; a result has no `eos_id`.

    Raises:
        UserError: see `Seq2SeqTransformer.generate`.
    """
    rows = [_ids(source) for source in sources]
    if not rows:
        return []
    written = generate_target(model, *_pad_left(rows), start_id, options).tolist()
    return [_until(new, options.eos_id) for new in written]


@torch.inference_mode()
def _decode(
    model: Any,
    ids: Tensor,
    mask: Tensor | None,
    options: GenerationConfig,
    source: tuple[Tensor, Tensor | None] | None = None,
) -> Tensor:
    """New tokens, int [B, new]; rows that ended early are filled with `eos_id`."""
    _check(model.config, ids, options)
    device = next(model.parameters()).device
    ids = ids.to(device, torch.long)  # narrower integers index no embedding
    generator = None
    if options.seed is not None:
        generator = torch.Generator(device=device).manual_seed(options.seed)
    mask = _to(mask, device)
    with evaluating(model):
        memory = [] if source is None else [model.encode(*(_to(x, device) for x in source))]
        if options.num_beams > 1:
            return _likeliest(beam_search(model, ids, mask, options, memory), options.eos_id)
        batch, length = ids.shape
        cache = model.new_cache(batch, length + options.max_new_tokens)
        if mask is not None:  # a row's text is as long as it is alone
            cache.spans = mask.sum(1, keepdim=True) + options.max_new_tokens
        features = model.features(ids, *memory, mask, cache=cache)  # [B, T, D]
        chosen: list[Tensor] = []
        ended = torch.zeros(batch, dtype=torch.bool, device=device)
        while True:
            token = choose(model.logits(features[:, -1]), options, generator)  # [B]
            if options.eos_id is not None:
                token = token.masked_fill(ended, options.eos_id)
                ended = ended | (token == options.eos_id)
            chosen.append(token)
            if len(chosen) == options.max_new_tokens or bool(ended.all()):
                return torch.stack(chosen, 1)
            features = model.features(token[:, None], *memory, cache=cache)  # [B, 1, D]


def _likeliest(found: Beams, eos_id: int | None) -> Tensor:
    """The best hypothesis of each row, int [B, new]; shorter ones are filled with `eos_id`."""
    lengths = found.lengths[:, :1]  # [B, 1]
    tokens = found.tokens[:, 0, : int(lengths.max())]
    if eos_id is None:
        return tokens
    after = torch.arange(tokens.shape[1], device=tokens.device) >= lengths
    return tokens.masked_fill(after, eos_id)


def _pad_left(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of unequal length as int [B, T], and which of it is real, bool [B, T]."""
    if not all(rows):
        raise UserError(f"prompt {rows.index([])} is empty; a prompt needs at least one token")
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def _to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _ids(prompt: Sequence[int]) -> list[int]:
    try:
        if not any(isinstance(token, bool) for token in prompt):
            return [operator.index(token) for token in prompt]
    except TypeError:
        pass
    raise UserError(f"prompts must be lists of token ids, such as [[1, 2], [3]]; found {prompt!r}")


def _check(config: TransformerConfig, ids: Tensor, options: GenerationConfig) -> None:
    for name in ("input_dim", "output_dim"):
        if getattr(config, name) is not None:
            raise UserError(
                f"a model with {name}={getattr(config, name)} has no tokens to go on with; "
                f"generate needs {name}=null"
            )
    if ids.shape[1] == 0:
        raise UserError("the prompt is empty; a prompt needs at least one token")
    _check_ids(ids, config.vocab_size)
    if options.eos_id is not None and options.eos_id >= config.vocab_size:
        raise UserError(
            f"eos_id={options.eos_id} is outside the model's vocabulary, "
            f"0 to {config.vocab_size - 1}"
        )
    room = config.max_seq_len - ids.shape[1]
    if room < options.max_new_tokens:
        raise UserError(
            f"a prompt of {ids.shape[1]} tokens and max_new_tokens={options.max_new_tokens} exceed "
            f"max_seq_len={config.max_seq_len}; "
            + (f"ask for at most {room} new tokens" if room > 0 else "shorten the prompt")
        )


def _check_ids(ids: Tensor, vocab_size: int) -> None:
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if len(wrong):
        raise UserError(
            f"token id {int(wrong[0])} is outside the model's vocabulary, 0 to {vocab_size - 1}"
        )


def _until(tokens: list[int], eos_id: int | None) -> list[int]:
    return tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens
