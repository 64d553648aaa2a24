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
from miniformer.generation.beam_search import beam_search
from miniformer.generation.inputs import (
    INTEGER_DTYPES,
    as_token_ids,
    check_prompts,
    check_token_ids,
    left_pad,
    to_device,
)
from miniformer.generation.logits_processors import Processor
from miniformer.generation.loop import (
    DecodingState,
    Model,
    StepOutput,
    StopFn,
    decode,
    truncation_keep,
)
from miniformer.generation.modes import eval_mode
from miniformer.generation.sampling import row_generator, row_uniforms
from miniformer.generation.speculative import Speculation, speculate


@dataclasses.dataclass(frozen=True)
class GenerationOutput:
    """A continuation.

    Args:
        tokens: without the one that ended it.
        log_p: the log-probability of each, in nats, as the model itself gives it; where one ended
            the text, of that, too.
        score: their sum; of a beam search, that over the length as `length_penalty` says.
        ended: whether a token has ended it.
    """

    tokens: list[int]
    logprobs: list[float]
    score: float
    finished: bool

    @classmethod
    def from_tokens(
        cls,
        tokens: list[int],
        log_p: list[float],
        eos_token_ids: list[int],
        score: float | None = None,
    ) -> GenerationOutput:
        """A text of all tokens that were written; score: None: the sum of log_p."""
        place = next((place for place, token in enumerate(tokens) if token in eos_token_ids), None)
        text, total = tokens[:place], sum(log_p) if score is None else score
        return cls(text, log_p, total, place is not None)


@dataclasses.dataclass(frozen=True)
class GenerationInput:
    """What a text begins with.

    Args:
        ids: the prompt, or what a decoder begins with.
        source: what a decoder's encoder reads; None: the model has none.
    """

    input_ids: Sequence[int]
    source: Sequence[int] | None = None


def generate_batch(
    model: Model,
    inputs: Sequence[GenerationInput],
    options: GenerationConfig,
    *,
    processors: Sequence[Processor] = (),
    stop_fn: StopFn | None = None,
    speculation: Speculation | None = None,
    return_logprobs: bool = True,
    prompt_indices: Sequence[int] | None = None,
) -> list[GenerationOutput]:
    """Goes on from each start: `num_return_sequences` of the first, of the second, and so on.

    Args:
        model: a causal Transformer, or a Seq2SeqTransformer where starts have sources.
        starts: of any lengths.
        options: how.
        processors: the user's own; see `miniformer.generation.logits_processors`.
        until: whether a text of these new tokens is complete, though no token says so.
        speculation: how to guess tokens ahead; texts are then written one after another.
        scores: whether log-probabilities are asked for; of a search they are known anyway.
        numbers: of each start among all that a user gave: by it and the seed its text is sampled;
            None: from 0.

    Raises:
        UserError: see `Transformer.generate`.
    """
    if not inputs:
        return []
    prompt_indices = range(len(inputs)) if prompt_indices is None else prompt_indices
    if speculation is not None:
        _require_single(options, "num_beams", "speculated")
        return [
            _generate_speculative(
                model, start, options, (number, copy), speculation, processors, stop_fn
            )
            for number, start in zip(prompt_indices, inputs, strict=True)
            for copy in range(options.num_return_sequences)
        ]
    ids, mask = left_pad([each.input_ids for each in inputs], "prompt")
    source = None
    if inputs[0].source is not None:
        source = left_pad([each.source or [] for each in inputs], "source")
    return _generate_padded(
        model, ids, mask, source, options, processors, stop_fn, return_logprobs, prompt_indices
    )


def generate(
    model: Model,
    prompts: Tensor | Sequence[Sequence[int]],
    options: GenerationConfig,
    processors: Sequence[Processor] = (),
) -> Tensor | list[list[int]]:
    """See `Transformer.generate`."""
    if not isinstance(prompts, Tensor):
        rows = [as_token_ids(prompt) for prompt in prompts]
        starts = [GenerationInput(row) for row in rows]
        written = generate_batch(
            model, starts, options, processors=processors, return_logprobs=False
        )
        copies = options.num_return_sequences
        return [rows[n // copies] + each.tokens for n, each in enumerate(written)]
    if prompts.dim() != 2 or prompts.dtype not in INTEGER_DTYPES:
        raise UserError(
            f"prompts must be [B, T] token ids, not {prompts.dtype} {list(prompts.shape)}"
        )
    if not len(prompts):
        return prompts
    written = _generate_padded(model, prompts, None, None, options, processors, None, False)
    new = _pad_outputs(written, options).to(prompts)
    return torch.cat((prompts.repeat_interleave(options.num_return_sequences, 0), new), 1)


def generate_target(
    model: Model,
    source: Tensor | Sequence[Sequence[int]],
    source_mask: Tensor | None,
    decoder_input_ids: Sequence[int],
    options: GenerationConfig,
    processors: Sequence[Processor] = (),
) -> Tensor | list[list[int]]:
    """See `Seq2SeqTransformer.generate`."""
    if not isinstance(source, Tensor):
        starts = [GenerationInput(decoder_input_ids, as_token_ids(row)) for row in source]
        written = generate_batch(
            model, starts, options, processors=processors, return_logprobs=False
        )
        return [each.tokens for each in written]
    if not len(source):
        return source.new_empty(0, 0)
    ids = torch.tensor([as_token_ids(decoder_input_ids)]).expand(len(source), -1)
    written = _generate_padded(
        model, ids, None, (source, source_mask), options, processors, None, False
    )
    return _pad_outputs(written, options).to(source.device)


@torch.inference_mode()
def stream(
    model: Any,
    inputs: GenerationInput,
    options: GenerationConfig,
    *,
    processors: Sequence[Processor] = (),
    stop_fn: StopFn | None = None,
    speculation: Speculation | None = None,
) -> Iterator[int]:
    """New tokens of one text as they come, without the one that ends it.

    Raises:
        UserError: see `Transformer.generate`; or a search is asked for, which knows its answer at
            the end only.
    """
    _require_single(options, "num_beams", "streamed")
    _require_single(options, "num_return_sequences", "streamed")
    with eval_mode(model), draft_eval_mode(speculation):
        for step in _stream_steps(model, inputs, options, (0, 0), speculation, processors, stop_fn):
            token = step.tokens[0]
            if token not in options.eos_token_ids:
                yield token


def _require_single(options: GenerationConfig, name: str, verb: str) -> None:
    if getattr(options, name) > 1:
        raise UserError(f"{name}={getattr(options, name)} cannot be {verb}; set {name}=1")


def _stream_steps(
    model: Any,
    inputs: GenerationInput,
    options: GenerationConfig,
    row: tuple[int, int],
    speculation: Speculation | None,
    processors: Sequence[Processor],
    stop_fn: StopFn | None,
) -> Iterator[StepOutput]:
    """The steps of one text; `row`: see `uniforms`."""
    options = dataclasses.replace(options, num_return_sequences=1)
    source = None if inputs.source is None else left_pad([inputs.source], "source")
    ids, mask = left_pad([inputs.input_ids], "prompt")
    if options.context_shift and speculation is not None:
        raise UserError("context_shift cannot be speculated; leave one of them out")
    kind = "window" if speculation is None else "full"  # a ring forgets what is taken back
    begun = _prefill(model, ids, mask, source, options, cache_kind=kind)
    device = begun.tokens.device
    if speculation is None:
        drawn = row_uniforms(options, [row], device)
        yield from decode(begun, options, uniform=drawn, processors=processors, stop_fn=stop_fn)
        return
    generator = row_generator(options, row, device)
    read = None if source is None else source[0].to(device)
    draft = speculation.make_draft(options, model.config.vocab_size, read, generator)
    yield from speculate(
        begun,
        draft,
        options,
        num_draft_tokens=speculation.num_draft_tokens,
        stats=speculation.stats,
        generator=generator,
        processors=processors,
        stop_fn=stop_fn,
    )


@torch.inference_mode()
def _generate_speculative(
    model: Any,
    inputs: GenerationInput,
    options: GenerationConfig,
    row: tuple[int, int],
    speculation: Speculation,
    processors: Sequence[Processor],
    stop_fn: StopFn | None,
) -> GenerationOutput:
    with eval_mode(model), draft_eval_mode(speculation):
        steps = list(_stream_steps(model, inputs, options, row, speculation, processors, stop_fn))
    log_p = [each for step in steps for each in step.logprobs]
    tokens = [each for step in steps for each in step.tokens]
    return GenerationOutput.from_tokens(tokens, log_p, options.eos_token_ids)


@contextlib.contextmanager
def draft_eval_mode(speculation: Speculation | None) -> Iterator[None]:
    """A draft in eval mode for a while, where there is one."""
    if speculation is None or speculation.draft is None:
        yield
        return
    with eval_mode(speculation.draft):
        yield


@torch.inference_mode()
def _generate_padded(
    model: Any,
    ids: Tensor,
    mask: Tensor | None,
    source: tuple[Tensor, Tensor | None] | None,
    options: GenerationConfig,
    processors: Sequence[Processor],
    stop_fn: StopFn | None,
    return_logprobs: bool,
    prompt_indices: Sequence[int] | None = None,
) -> list[GenerationOutput]:
    """See `write`; rows are padded already."""
    with eval_mode(model):
        begun = _prefill(model, ids, mask, source, options)
        if options.num_beams > 1:
            found = beam_search(begun, options, processors=processors, stop_fn=stop_fn)
            best = (x[:, : options.num_return_sequences].flatten(0, 1).tolist() for x in found)
            return [
                GenerationOutput.from_tokens(
                    row[:length], log_p[:length], options.eos_token_ids, score
                )
                for row, log_p, length, score in zip(*best, strict=True)
            ]
        copies = range(options.num_return_sequences)
        rows = [(n, copy) for n in (prompt_indices or range(len(ids))) for copy in copies]
        tokens: list[list[int]] = [[] for _ in rows]
        log_p: list[list[float]] = [[] for _ in tokens]
        steps = decode(
            begun,
            options,
            uniform=row_uniforms(options, rows, begun.tokens.device),
            processors=processors,
            stop_fn=stop_fn,
            return_logprobs=return_logprobs,
        )
        for step in steps:
            for place, row in enumerate(step.rows):
                tokens[row].append(step.tokens[place])
                if return_logprobs:
                    log_p[row].append(step.logprobs[place])
    return [
        GenerationOutput.from_tokens(row, p, options.eos_token_ids)
        for row, p in zip(tokens, log_p, strict=True)
    ]


def _prefill(
    model: Any,
    ids: Tensor,
    mask: Tensor | None,
    source: tuple[Tensor, Tensor | None] | None,
    options: GenerationConfig,
    *,
    cache_kind: str = "window",
) -> DecodingState:
    """Checks prompts and has the model read them."""
    if source is not None and source[0].dtype in INTEGER_DTYPES:
        check_token_ids(source[0], model.config.source_vocab_size or model.config.vocab_size)
        source = (source[0].long(), source[1])  # what is no id at all, the model itself refuses
    check_prompts(model.config, ids, options)
    longest = model.config.max_seq_len
    if options.context_shift and ids.shape[1] > longest:
        ids, mask = _truncate_prompts(ids, mask, longest)
    device = next(model.parameters()).device
    memory = [] if source is None else [model.encode(*(to_device(x, device) for x in source))]
    return DecodingState(
        model,
        ids.to(device, torch.long),  # narrower integers index no embedding
        to_device(mask, device),
        options.max_new_tokens,
        memory,
        copies=options.num_beams if options.num_beams > 1 else options.num_return_sequences,
        cache_kind=cache_kind,
        truncate=options.context_shift,
        weight_dtype=options.weight_dtype,
        cuda_graph=options.cuda_graph,
    )


def _truncate_prompts(
    ids: Tensor, mask: Tensor | None, max_seq_len: int
) -> tuple[Tensor, Tensor | None]:
    """Prompts, of which those that are too long lose their beginning: [B, T], bool [B, T]."""
    lengths = ids.new_full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1)
    lengths = torch.where(lengths > max_seq_len, truncation_keep(max_seq_len), lengths)
    width = int(lengths.max())
    mask = torch.arange(width, device=ids.device) >= width - lengths[:, None]
    return ids[:, -width:], None if bool(mask.all()) else mask


def _pad_outputs(outputs: list[GenerationOutput], options: GenerationConfig) -> Tensor:
    """New tokens of each row, int [B * N, new]; shorter ones are filled with what ends a text."""
    longest = max(len(each.tokens) + each.finished for each in outputs)
    fill = (
        options.eos_token_ids[0] if options.eos_token_ids else 0
    )  # without an end all are as long
    out = torch.full((len(outputs), longest), fill)
    for row, each in enumerate(outputs):
        out[row, : len(each.tokens)] = torch.tensor(each.tokens)
    return out
