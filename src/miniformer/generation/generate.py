"""Text of a model in token ids: prompts or sources in, what comes after them out.

Letters: B prompts, N continuations of each, T prompt length.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, TransformerConfig, UserError
from miniformer.generation.beam import beam_search
from miniformer.generation.decoding import Begun, Model, Until, decode
from miniformer.generation.modes import evaluating
from miniformer.generation.processors import Processor

_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


@dataclasses.dataclass(frozen=True)
class Written:
    """A continuation.

    Args:
        tokens: without the one that ended it.
        log_p: the log-probability of each, in nats, as the model itself gives it; where one ended
            the text, of that, too.
        score: their sum; of a beam search, that over the length as `length_penalty` says.
    """

    tokens: list[int]
    log_p: list[float]
    score: float


@dataclasses.dataclass(frozen=True)
class Start:
    """What a text begins with.

    Args:
        ids: the prompt, or what a decoder begins with.
        source: what a decoder's encoder reads; None: the model has none.
    """

    ids: Sequence[int]
    source: Sequence[int] | None = None


def write(
    model: Model,
    starts: Sequence[Start],
    options: GenerationConfig,
    *,
    processors: Sequence[Processor] = (),
    until: Until | None = None,
) -> list[Written]:
    """Goes on from each start: `num_return_sequences` of the first, of the second, and so on.

    Args:
        model: a causal Transformer, or a Seq2SeqTransformer where starts have sources.
        starts: of any lengths.
        options: how.
        processors: the user's own; see `miniformer.generation.processors`.
        until: whether a text of these new tokens is complete, though no token says so.

    Raises:
        UserError: see `Transformer.generate`.
    """
    if not starts:
        return []
    ids, mask = _padded([each.ids for each in starts], "prompt")
    source = None
    if starts[0].source is not None:
        source = _padded([each.source or [] for each in starts], "source")
    return _write(model, ids, mask, source, options, processors, until)


def generate(
    model: Model,
    prompts: Tensor | Sequence[Sequence[int]],
    options: GenerationConfig,
    processors: Sequence[Processor] = (),
) -> Tensor | list[list[int]]:
    """See `Transformer.generate`."""
    if not isinstance(prompts, Tensor):
        rows = [_ids(prompt) for prompt in prompts]
        written = write(model, [Start(row) for row in rows], options, processors=processors)
        copies = options.num_return_sequences
        return [rows[n // copies] + each.tokens for n, each in enumerate(written)]
    if prompts.dim() != 2 or prompts.dtype not in _INTEGERS:
        raise UserError(
            f"prompts must be [B, T] token ids, not {prompts.dtype} {list(prompts.shape)}"
        )
    if not len(prompts):
        return prompts
    written = _write(model, prompts, None, None, options, processors, None)
    new = _filled(written, options).to(prompts)
    return torch.cat((prompts.repeat_interleave(options.num_return_sequences, 0), new), 1)


def generate_target(
    model: Model,
    source: Tensor | Sequence[Sequence[int]],
    source_mask: Tensor | None,
    start: Sequence[int],
    options: GenerationConfig,
    processors: Sequence[Processor] = (),
) -> Tensor | list[list[int]]:
    """See `Seq2SeqTransformer.generate`."""
    if not isinstance(source, Tensor):
        starts = [Start(start, _ids(row)) for row in source]
        return [each.tokens for each in write(model, starts, options, processors=processors)]
    if not len(source):
        return source.new_empty(0, 0)
    ids = torch.tensor([_ids(start)]).expand(len(source), -1)
    written = _write(model, ids, None, (source, source_mask), options, processors, None)
    return _filled(written, options).to(source.device)


@torch.inference_mode()
def stream(
    model: Any,
    start: Start,
    options: GenerationConfig,
    *,
    processors: Sequence[Processor] = (),
    until: Until | None = None,
) -> Iterator[int]:
    """New tokens of one text as they come, without the one that ends it.

    Raises:
        UserError: see `Transformer.generate`; or a search is asked for, which knows its answer at
            the end only.
    """
    for name in ("num_beams", "num_return_sequences"):
        if getattr(options, name) > 1:
            raise UserError(f"{name}={getattr(options, name)} cannot be streamed; set {name}=1")
    source = None if start.source is None else _padded([start.source], "source")
    ids, mask = _padded([start.ids], "prompt")
    with evaluating(model):
        begun, generator = _begin(model, ids, mask, source, options)
        steps = decode(begun, options, generator=generator, processors=processors, until=until)
        for step in steps:
            token = int(step.tokens[0])
            if token not in options.ends:
                yield token


@torch.inference_mode()
def _write(
    model: Any,
    ids: Tensor,
    mask: Tensor | None,
    source: tuple[Tensor, Tensor | None] | None,
    options: GenerationConfig,
    processors: Sequence[Processor],
    until: Until | None,
) -> list[Written]:
    """See `write`; rows are padded already."""
    with evaluating(model):
        begun, generator = _begin(model, ids, mask, source, options)
        if options.num_beams > 1:
            found = beam_search(begun, options, processors=processors, until=until)
            best = (x[:, : options.num_return_sequences].flatten(0, 1).tolist() for x in found)
            return [
                Written(_until(row[:length], options.ends), log_p[:length], score)
                for row, log_p, length, score in zip(*best, strict=True)
            ]
        tokens: list[list[int]] = [[] for _ in range(len(begun.tokens))]
        log_p: list[list[float]] = [[] for _ in tokens]
        steps = decode(begun, options, generator=generator, processors=processors, until=until)
        for step in steps:
            for row, token, p in zip(*(x.tolist() for x in step[:3]), strict=True):
                tokens[row].append(token)
                log_p[row].append(p)
    return [
        Written(_until(row, options.ends), p, sum(p)) for row, p in zip(tokens, log_p, strict=True)
    ]


def _begin(
    model: Any,
    ids: Tensor,
    mask: Tensor | None,
    source: tuple[Tensor, Tensor | None] | None,
    options: GenerationConfig,
) -> tuple[Begun, torch.Generator | None]:
    """Checks prompts and has the model read them."""
    if source is not None and source[0].dtype in _INTEGERS:
        _check_ids(source[0], model.config.source_vocab_size or model.config.vocab_size)
        source = (source[0].long(), source[1])  # what is no id at all, the model itself refuses
    _check(model.config, ids, options)
    device = next(model.parameters()).device
    memory = [] if source is None else [model.encode(*(_to(x, device) for x in source))]
    generator = None
    if options.seed is not None:
        generator = torch.Generator(device=device).manual_seed(options.seed)
    begun = Begun(
        model,
        ids.to(device, torch.long),  # narrower integers index no embedding
        _to(mask, device),
        options.max_new_tokens,
        memory,
        copies=options.num_beams if options.num_beams > 1 else options.num_return_sequences,
    )
    return begun, generator


def _filled(written: list[Written], options: GenerationConfig) -> Tensor:
    """New tokens of each row, int [B * N, new]; shorter ones are filled with what ends a text."""
    longest = max(len(each.log_p) for each in written)
    fill = options.ends[0] if options.ends else 0  # without an end all are as long
    out = torch.full((len(written), longest), fill)
    for row, each in enumerate(written):
        out[row, : len(each.tokens)] = torch.tensor(each.tokens)
    return out


def _padded(rows: Sequence[Sequence[int]], name: str) -> tuple[Tensor, Tensor | None]:
    """Rows of unequal length as int [B, T], and which of it is real, bool [B, T]; None: all.

    Padding goes left, so that every row's next token stands in the same column.
    """
    lists = [_ids(row) for row in rows]
    if not all(lists):
        raise UserError(f"{name} {lists.index([])} is empty; a {name} needs at least one token")
    longest = max(len(row) for row in lists)
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in lists])
    lengths = torch.tensor([len(row) for row in lists])
    mask = torch.arange(longest) >= longest - lengths[:, None]
    return ids, None if bool(mask.all()) else mask


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
    if options.stop:
        raise UserError("stop needs a tokenizer; use a Pipeline (miniformer.load), or stop_ids")
    if ids.shape[1] == 0:
        raise UserError("the prompt is empty; a prompt needs at least one token")
    _check_ids(ids, config.vocab_size)
    named = {
        "eos_id": [] if options.eos_id is None else [options.eos_id],
        "stop_ids": options.stop_ids or [],
        "bad_ids": [token for run in options.bad_ids or [] for token in run],
    }
    for name, tokens in named.items():
        for token in tokens:
            if not 0 <= token < config.vocab_size:
                raise UserError(
                    f"{name}={token} is outside the model's vocabulary, "
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


def _until(tokens: list[int], ends: list[int]) -> list[int]:
    """Tokens up to the first of `ends`."""
    place = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:place]
