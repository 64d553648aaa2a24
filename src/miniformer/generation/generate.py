"""Text of a model in token ids: prompts or sources in, what comes after them out.

Letters: B prompts, N continuations of each, T prompt length.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, UserError
from miniformer.generation.beam import beam_search
from miniformer.generation.decoding import Begun, Model, Step, Until, decode, half
from miniformer.generation.modes import evaluating
from miniformer.generation.processors import Processor
from miniformer.generation.prompts import INTEGERS, as_ids, check, check_ids, moved, padded
from miniformer.generation.sampling import row_generator, uniforms
from miniformer.generation.speculation import Speculation, speculate


@dataclasses.dataclass(frozen=True)
class Written:
    """A continuation.

    Args:
        tokens: without the one that ended it.
        log_p: the log-probability of each, in nats, as the model itself gives it; where one ended
            the text, of that, too.
        score: their sum; of a beam search, that over the length as `length_penalty` says.
        ended: whether a token has ended it.
    """

    tokens: list[int]
    log_p: list[float]
    score: float
    ended: bool

    @classmethod
    def of(
        cls, tokens: list[int], log_p: list[float], ends: list[int], score: float | None = None
    ) -> Written:
        """A text of all tokens that were written; score: None: the sum of log_p."""
        place = next((place for place, token in enumerate(tokens) if token in ends), None)
        text, total = tokens[:place], sum(log_p) if score is None else score
        return cls(text, log_p, total, place is not None)


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
    speculation: Speculation | None = None,
    scores: bool = True,
    numbers: Sequence[int] | None = None,
) -> list[Written]:
    """Goes on from each start: `num_return_sequences` of the first, of the second, and so on.

    Args:
        model: a causal Transformer, or a Seq2SeqTransformer where starts have sources.
        starts: of any lengths.
        options: how.
        processors: the user's own; see `miniformer.generation.processors`.
        until: whether a text of these new tokens is complete, though no token says so.
        speculation: how to guess tokens ahead; texts are then written one after another.
        scores: whether log-probabilities are asked for; of a search they are known anyway.
        numbers: of each start among all that a user gave: by it and the seed its text is sampled;
            None: from 0.

    Raises:
        UserError: see `Transformer.generate`.
    """
    if not starts:
        return []
    numbers = range(len(starts)) if numbers is None else numbers
    if speculation is not None:
        _refuse_several(options, "num_beams", "speculated")
        return [
            _speculated(model, start, options, (number, copy), speculation, processors, until)
            for number, start in zip(numbers, starts, strict=True)
            for copy in range(options.num_return_sequences)
        ]
    ids, mask = padded([each.ids for each in starts], "prompt")
    source = None
    if starts[0].source is not None:
        source = padded([each.source or [] for each in starts], "source")
    return _write(model, ids, mask, source, options, processors, until, scores, numbers)


def generate(
    model: Model,
    prompts: Tensor | Sequence[Sequence[int]],
    options: GenerationConfig,
    processors: Sequence[Processor] = (),
) -> Tensor | list[list[int]]:
    """See `Transformer.generate`."""
    if not isinstance(prompts, Tensor):
        rows = [as_ids(prompt) for prompt in prompts]
        starts = [Start(row) for row in rows]
        written = write(model, starts, options, processors=processors, scores=False)
        copies = options.num_return_sequences
        return [rows[n // copies] + each.tokens for n, each in enumerate(written)]
    if prompts.dim() != 2 or prompts.dtype not in INTEGERS:
        raise UserError(
            f"prompts must be [B, T] token ids, not {prompts.dtype} {list(prompts.shape)}"
        )
    if not len(prompts):
        return prompts
    written = _write(model, prompts, None, None, options, processors, None, False)
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
        starts = [Start(start, as_ids(row)) for row in source]
        written = write(model, starts, options, processors=processors, scores=False)
        return [each.tokens for each in written]
    if not len(source):
        return source.new_empty(0, 0)
    ids = torch.tensor([as_ids(start)]).expand(len(source), -1)
    written = _write(model, ids, None, (source, source_mask), options, processors, None, False)
    return _filled(written, options).to(source.device)


@torch.inference_mode()
def stream(
    model: Any,
    start: Start,
    options: GenerationConfig,
    *,
    processors: Sequence[Processor] = (),
    until: Until | None = None,
    speculation: Speculation | None = None,
) -> Iterator[int]:
    """New tokens of one text as they come, without the one that ends it.

    Raises:
        UserError: see `Transformer.generate`; or a search is asked for, which knows its answer at
            the end only.
    """
    _refuse_several(options, "num_beams", "streamed")
    _refuse_several(options, "num_return_sequences", "streamed")
    with evaluating(model), drafting(speculation):
        for step in _steps(model, start, options, (0, 0), speculation, processors, until):
            token = step.tokens[0]
            if token not in options.ends:
                yield token


def _refuse_several(options: GenerationConfig, name: str, done: str) -> None:
    if getattr(options, name) > 1:
        raise UserError(f"{name}={getattr(options, name)} cannot be {done}; set {name}=1")


def _steps(
    model: Any,
    start: Start,
    options: GenerationConfig,
    row: tuple[int, int],
    speculation: Speculation | None,
    processors: Sequence[Processor],
    until: Until | None,
) -> Iterator[Step]:
    """The steps of one text; `row`: see `uniforms`."""
    options = dataclasses.replace(options, num_return_sequences=1)
    source = None if start.source is None else padded([start.source], "source")
    ids, mask = padded([start.ids], "prompt")
    if options.slide and speculation is not None:
        raise UserError("slide cannot be speculated; leave one of them out")
    kind = "window" if speculation is None else "full"  # a ring forgets what is taken back
    begun = _begin(model, ids, mask, source, options, kind=kind)
    device = begun.tokens.device
    if speculation is None:
        drawn = uniforms(options, [row], device)
        yield from decode(begun, options, uniform=drawn, processors=processors, until=until)
        return
    generator = row_generator(options, row, device)
    read = None if source is None else source[0].to(device)
    draft = speculation.begin(options, model.config.vocab_size, read, generator)
    yield from speculate(
        begun,
        draft,
        options,
        ahead=speculation.ahead,
        tally=speculation.tally,
        generator=generator,
        processors=processors,
        until=until,
    )


@torch.inference_mode()
def _speculated(
    model: Any,
    start: Start,
    options: GenerationConfig,
    row: tuple[int, int],
    speculation: Speculation,
    processors: Sequence[Processor],
    until: Until | None,
) -> Written:
    with evaluating(model), drafting(speculation):
        steps = list(_steps(model, start, options, row, speculation, processors, until))
    log_p = [each for step in steps for each in step.log_p]
    tokens = [each for step in steps for each in step.tokens]
    return Written.of(tokens, log_p, options.ends)


@contextlib.contextmanager
def drafting(speculation: Speculation | None) -> Iterator[None]:
    """A draft in eval mode for a while, where there is one."""
    if speculation is None or speculation.draft is None:
        yield
        return
    with evaluating(speculation.draft):
        yield


@torch.inference_mode()
def _write(
    model: Any,
    ids: Tensor,
    mask: Tensor | None,
    source: tuple[Tensor, Tensor | None] | None,
    options: GenerationConfig,
    processors: Sequence[Processor],
    until: Until | None,
    scores: bool,
    numbers: Sequence[int] | None = None,
) -> list[Written]:
    """See `write`; rows are padded already."""
    with evaluating(model):
        begun = _begin(model, ids, mask, source, options)
        if options.num_beams > 1:
            found = beam_search(begun, options, processors=processors, until=until)
            best = (x[:, : options.num_return_sequences].flatten(0, 1).tolist() for x in found)
            return [
                Written.of(row[:length], log_p[:length], options.ends, score)
                for row, log_p, length, score in zip(*best, strict=True)
            ]
        copies = range(options.num_return_sequences)
        rows = [(n, copy) for n in (numbers or range(len(ids))) for copy in copies]
        tokens: list[list[int]] = [[] for _ in rows]
        log_p: list[list[float]] = [[] for _ in tokens]
        steps = decode(
            begun,
            options,
            uniform=uniforms(options, rows, begun.tokens.device),
            processors=processors,
            until=until,
            scores=scores,
        )
        for step in steps:
            for place, row in enumerate(step.rows):
                tokens[row].append(step.tokens[place])
                if scores:
                    log_p[row].append(step.log_p[place])
    return [Written.of(row, p, options.ends) for row, p in zip(tokens, log_p, strict=True)]


def _begin(
    model: Any,
    ids: Tensor,
    mask: Tensor | None,
    source: tuple[Tensor, Tensor | None] | None,
    options: GenerationConfig,
    *,
    kind: str = "window",
) -> Begun:
    """Checks prompts and has the model read them."""
    if source is not None and source[0].dtype in INTEGERS:
        check_ids(source[0], model.config.source_vocab_size or model.config.vocab_size)
        source = (source[0].long(), source[1])  # what is no id at all, the model itself refuses
    check(model.config, ids, options)
    longest = model.config.max_seq_len
    if options.slide and ids.shape[1] > longest:
        ids, mask = _last_halves(ids, mask, longest)
    device = next(model.parameters()).device
    memory = [] if source is None else [model.encode(*(moved(x, device) for x in source))]
    return Begun(
        model,
        ids.to(device, torch.long),  # narrower integers index no embedding
        moved(mask, device),
        options.max_new_tokens,
        memory,
        copies=options.num_beams if options.num_beams > 1 else options.num_return_sequences,
        kind=kind,
        slide=options.slide,
        weights=options.weights,
        graph=options.cuda_graph,
    )


def _last_halves(ids: Tensor, mask: Tensor | None, longest: int) -> tuple[Tensor, Tensor | None]:
    """Prompts, of which those that are too long lose their beginning: [B, T], bool [B, T]."""
    lengths = ids.new_full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1)
    lengths = torch.where(lengths > longest, half(longest), lengths)
    width = int(lengths.max())
    mask = torch.arange(width, device=ids.device) >= width - lengths[:, None]
    return ids[:, -width:], None if bool(mask.all()) else mask


def _filled(written: list[Written], options: GenerationConfig) -> Tensor:
    """New tokens of each row, int [B * N, new]; shorter ones are filled with what ends a text."""
    longest = max(len(each.tokens) + each.ended for each in written)
    fill = options.ends[0] if options.ends else 0  # without an end all are as long
    out = torch.full((len(written), longest), fill)
    for row, each in enumerate(written):
        out[row, : len(each.tokens)] = torch.tensor(each.tokens)
    return out
