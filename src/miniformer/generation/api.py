"""Token-level generation for decoder-only and encoder-decoder models.

Letters: B prompts, N sequences per prompt, T prompt length.
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
    """Generated tokens of one sequence.

    Args:
        tokens: new token ids without EOS.
        logprobs: log-probability of each new token under the model, in nats, including EOS.
        score: sum of the log-probabilities; for beam search, normalized by `length_penalty`.
        finished: the sequence ends with an EOS id.
    """

    tokens: list[int]
    logprobs: list[float]
    score: float
    finished: bool

    @classmethod
    def from_tokens(
        cls,
        tokens: list[int],
        logprobs: list[float],
        eos_token_ids: list[int],
        score: float | None = None,
    ) -> GenerationOutput:
        """Cuts the tokens at the first EOS id; `score` defaults to the sum of `logprobs`."""
        end = next((n for n, token in enumerate(tokens) if token in eos_token_ids), None)
        score = sum(logprobs) if score is None else score
        return cls(tokens[:end], logprobs, score, end is not None)


@dataclasses.dataclass(frozen=True)
class GenerationInput:
    """Input of one sequence.

    Args:
        input_ids: prompt, or decoder prompt of an encoder-decoder model.
        source: encoder input; None for a decoder-only model.
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
    """Generates `num_return_sequences` sequences per input, in the order of the inputs.

    Args:
        model: causal Transformer, or Seq2SeqTransformer if the inputs have sources.
        inputs: prompts of any lengths.
        options: decoding options.
        processors: custom processors; see `miniformer.generation.logits_processors`.
        stop_fn: stop condition on the new tokens, in addition to EOS.
        speculation: settings of speculative decoding, which generates one sequence at a time.
        return_logprobs: compute log-probabilities; beam search always does.
        prompt_indices: index of each input in the user's list, which together with the seed
            determines its samples. None: 0, 1, ...

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
                model, prompt, options, (index, copy), speculation, processors, stop_fn
            )
            for index, prompt in zip(prompt_indices, inputs, strict=True)
            for copy in range(options.num_return_sequences)
        ]
    ids, mask = left_pad([prompt.input_ids for prompt in inputs], "prompt")
    source = None
    if inputs[0].source is not None:
        source = left_pad([prompt.source or [] for prompt in inputs], "source")
    return _generate_padded(
        model, ids, mask, source, options, processors, stop_fn, return_logprobs, prompt_indices
    )


def generate(
    model: Model,
    prompts: Tensor | Sequence[Sequence[int]],
    options: GenerationConfig,
    processors: Sequence[Processor] = (),
) -> Tensor | list[list[int]]:
    """Implements `Transformer.generate`."""
    if not isinstance(prompts, Tensor):
        rows = [as_token_ids(prompt) for prompt in prompts]
        inputs = [GenerationInput(row) for row in rows]
        outputs = generate_batch(
            model, inputs, options, processors=processors, return_logprobs=False
        )
        copies = options.num_return_sequences
        return [rows[n // copies] + output.tokens for n, output in enumerate(outputs)]
    if prompts.dim() != 2 or prompts.dtype not in INTEGER_DTYPES:
        raise UserError(
            f"prompts must be [B, T] token ids, not {prompts.dtype} {list(prompts.shape)}"
        )
    if not len(prompts):
        return prompts
    outputs = _generate_padded(model, prompts, None, None, options, processors, None, False)
    new = _pad_outputs(outputs, options).to(prompts)
    return torch.cat((prompts.repeat_interleave(options.num_return_sequences, 0), new), 1)


def generate_target(
    model: Model,
    source: Tensor | Sequence[Sequence[int]],
    source_mask: Tensor | None,
    decoder_input_ids: Sequence[int],
    options: GenerationConfig,
    processors: Sequence[Processor] = (),
) -> Tensor | list[list[int]]:
    """Implements `Seq2SeqTransformer.generate`."""
    if not isinstance(source, Tensor):
        inputs = [GenerationInput(decoder_input_ids, as_token_ids(row)) for row in source]
        outputs = generate_batch(
            model, inputs, options, processors=processors, return_logprobs=False
        )
        return [output.tokens for output in outputs]
    if not len(source):
        return source.new_empty(0, 0)
    ids = torch.tensor([as_token_ids(decoder_input_ids)]).expand(len(source), -1)
    outputs = _generate_padded(
        model, ids, None, (source, source_mask), options, processors, None, False
    )
    return _pad_outputs(outputs, options).to(source.device)


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
    """Yields the new tokens of one sequence, without EOS.

    Raises:
        UserError: see `Transformer.generate`; also for beam search, which cannot be streamed.
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
    """Yields the decoding steps of one sequence; `row`: see `row_uniforms`."""
    options = dataclasses.replace(options, num_return_sequences=1)
    source = None if inputs.source is None else left_pad([inputs.source], "source")
    ids, mask = left_pad([inputs.input_ids], "prompt")
    if options.context_shift and speculation is not None:
        raise UserError("context_shift cannot be speculated; leave one of them out")
    cache_kind = "window" if speculation is None else "full"  # a ring buffer cannot be trimmed
    state = _prefill(model, ids, mask, source, options, cache_kind=cache_kind)
    device = state.tokens.device
    if speculation is None:
        uniform = row_uniforms(options, [row], device)
        yield from decode(state, options, uniform=uniform, processors=processors, stop_fn=stop_fn)
        return
    generator = row_generator(options, row, device)
    source_ids = None if source is None else source[0].to(device)
    draft = speculation.make_draft(options, model.config.vocab_size, source_ids, generator)
    yield from speculate(
        state,
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
    tokens = [token for step in steps for token in step.tokens]
    logprobs = [logprob for step in steps for logprob in step.logprobs]
    return GenerationOutput.from_tokens(tokens, logprobs, options.eos_token_ids)


@contextlib.contextmanager
def draft_eval_mode(speculation: Speculation | None) -> Iterator[None]:
    """Context manager that sets eval mode of the draft model, if there is one."""
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
    """Implements `generate_batch` for padded rows."""
    with eval_mode(model):
        state = _prefill(model, ids, mask, source, options)
        if options.num_beams > 1:
            hypotheses = beam_search(state, options, processors=processors, stop_fn=stop_fn)
            best = (x[:, : options.num_return_sequences].flatten(0, 1).tolist() for x in hypotheses)
            return [
                GenerationOutput.from_tokens(
                    row[:length], logprobs[:length], options.eos_token_ids, score
                )
                for row, logprobs, length, score in zip(*best, strict=True)
            ]
        copies = range(options.num_return_sequences)
        rows = [(index, copy) for index in (prompt_indices or range(len(ids))) for copy in copies]
        row_tokens: list[list[int]] = [[] for _ in rows]
        row_logprobs: list[list[float]] = [[] for _ in rows]
        steps = decode(
            state,
            options,
            uniform=row_uniforms(options, rows, state.tokens.device),
            processors=processors,
            stop_fn=stop_fn,
            return_logprobs=return_logprobs,
        )
        for step in steps:
            for n, row in enumerate(step.rows):
                row_tokens[row].append(step.tokens[n])
                if return_logprobs:
                    row_logprobs[row].append(step.logprobs[n])
    return [
        GenerationOutput.from_tokens(tokens, logprobs, options.eos_token_ids)
        for tokens, logprobs in zip(row_tokens, row_logprobs, strict=True)
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
    """Checks the prompts, encodes the source and runs prefill."""
    if source is not None and source[0].dtype in INTEGER_DTYPES:
        check_token_ids(source[0], model.config.source_vocab_size or model.config.vocab_size)
        source = (source[0].long(), source[1])  # the model rejects other dtypes
    check_prompts(model.config, ids, options)
    max_seq_len = model.config.max_seq_len
    if options.context_shift and ids.shape[1] > max_seq_len:
        ids, mask = _truncate_prompts(ids, mask, max_seq_len)
    device = next(model.parameters()).device
    memory = [] if source is None else [model.encode(*(to_device(x, device) for x in source))]
    return DecodingState(
        model,
        ids.to(device, torch.long),  # an embedding needs int32 or int64
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
    """Truncates too long prompts on the left; returns ids [B, T] and mask, bool [B, T]."""
    lengths = ids.new_full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1)
    lengths = torch.where(lengths > max_seq_len, truncation_keep(max_seq_len), lengths)
    width = int(lengths.max())
    mask = torch.arange(width, device=ids.device) >= width - lengths[:, None]
    return ids[:, -width:], None if bool(mask.all()) else mask


def _pad_outputs(outputs: list[GenerationOutput], options: GenerationConfig) -> Tensor:
    """New tokens of each row, int [B * N, max new], padded with EOS."""
    width = max(len(output.tokens) + output.finished for output in outputs)
    # Without EOS all rows have the same length.
    padding = options.eos_token_ids[0] if options.eos_token_ids else 0
    ids = torch.full((len(outputs), width), padding)
    for row, output in enumerate(outputs):
        ids[row, : len(output.tokens)] = torch.tensor(output.tokens)
    return ids
