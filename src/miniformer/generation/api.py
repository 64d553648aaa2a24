"""Generation of token ids, with decoder-only and encoder-decoder models.

GenerationInput -> PromptBatch -> prefill -> decode, speculate or beam_search -> GenerationOutput
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, UserError
from miniformer.generation.beam_search import beam_search
from miniformer.generation.inference import eval_mode
from miniformer.generation.inputs import PromptBatch, left_pad, left_pad_vectors
from miniformer.generation.logits_processors import Processor
from miniformer.generation.loop import StepOutput, StopFn, decode, prefill
from miniformer.generation.sampling import row_generator, row_uniforms
from miniformer.generation.speculative import Speculation, speculate


@dataclasses.dataclass(frozen=True)
class GenerationInput:
    """Input of one sequence.

    Args:
        input_ids: prompt, or decoder prompt of an encoder-decoder model.
        source: encoder input, token ids or vectors, float [S, input_dim]; None for a decoder-only
            model.
    """

    input_ids: Sequence[int]
    source: Sequence[int] | Tensor | None = None


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


@torch.inference_mode()
def generate(
    model: Any,
    inputs: Sequence[GenerationInput] | PromptBatch,
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
    if not len(inputs):
        return []
    if options.num_beams > 1:
        if speculation is not None:
            require_single(options, "num_beams", "speculated")
        with eval_mode(model):
            state = prefill(model, pad_inputs(inputs), options)
            hypotheses = beam_search(state, options, processors=processors, stop_fn=stop_fn)
        best = (x[:, : options.num_return_sequences].flatten(0, 1).tolist() for x in hypotheses)
        return [
            GenerationOutput.from_tokens(
                row[:length], logprobs[:length], options.eos_token_ids, score
            )
            for row, logprobs, length, score in zip(*best, strict=True)
        ]
    copies = range(options.num_return_sequences)
    rows = [(index, copy) for index in prompt_indices or range(len(inputs)) for copy in copies]
    row_tokens: list[list[int]] = [[] for _ in rows]
    row_logprobs: list[list[float]] = [[] for _ in rows]
    for step in _decode_rows(
        model, inputs, rows, options, processors, stop_fn, speculation, return_logprobs
    ):
        for n, row in enumerate(step.rows):
            row_tokens[row].append(step.tokens[n])
            if step.logprobs:
                row_logprobs[row].append(step.logprobs[n])
    return [
        GenerationOutput.from_tokens(tokens, logprobs, options.eos_token_ids)
        for tokens, logprobs in zip(row_tokens, row_logprobs, strict=True)
    ]


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
    """Yields the new tokens of one sequence, without EOS; see `generate`.

    Raises:
        UserError: see `Transformer.generate`; also for beam search, which cannot be streamed.
    """
    require_single(options, "num_beams", "streamed")
    require_single(options, "num_return_sequences", "streamed")
    for step in _decode_rows(model, [inputs], [(0, 0)], options, processors, stop_fn, speculation):
        if step.tokens[0] not in options.eos_token_ids:
            yield step.tokens[0]


def _decode_rows(
    model: Any,
    inputs: Sequence[GenerationInput] | PromptBatch,
    rows: Sequence[tuple[int, int]],
    options: GenerationConfig,
    processors: Sequence[Processor],
    stop_fn: StopFn | None,
    speculation: Speculation | None,
    return_logprobs: bool = True,
) -> Iterator[StepOutput]:
    """Yields the steps of all rows; `rows`: see `row_uniforms`."""
    if speculation is None:
        with eval_mode(model):
            state = prefill(model, pad_inputs(inputs), options)
            uniform = row_uniforms(options, rows, state.tokens.device)
            yield from decode(
                state, options, uniform=uniform, processors=processors, stop_fn=stop_fn,
                return_logprobs=return_logprobs,
            )  # fmt: skip
        return
    if options.context_shift:
        raise UserError("context_shift cannot be speculated; leave one of them out")
    assert not isinstance(inputs, PromptBatch)
    single = dataclasses.replace(options, num_return_sequences=1)
    drafts = [] if speculation.draft is None else [speculation.draft]
    with eval_mode(model, *drafts):
        for number, row in enumerate(rows):
            prompt = pad_inputs([inputs[number // options.num_return_sequences]])
            state = prefill(model, prompt, single, trimmable=True)
            device = state.tokens.device
            generator = row_generator(options, row, device)
            source = prompt.to(device).source
            draft = speculation.make_draft(single, model, source, generator, state.runtime)
            for step in speculate(
                state,
                draft,
                single,
                num_draft_tokens=speculation.num_draft_tokens,
                stats=speculation.stats,
                generator=generator,
                processors=processors,
                stop_fn=stop_fn,
            ):
                yield step._replace(rows=[number])


def pad_inputs(inputs: Sequence[GenerationInput] | PromptBatch) -> PromptBatch:
    """Pads prompts and sources on the left."""
    if isinstance(inputs, PromptBatch):
        return inputs
    ids, mask = left_pad([item.input_ids for item in inputs], "prompt")
    if inputs[0].source is None:
        return PromptBatch(ids, mask)
    sources: list[Any] = [[] if item.source is None else item.source for item in inputs]
    if isinstance(inputs[0].source, Tensor) and inputs[0].source.dim() > 1:
        return PromptBatch(ids, mask, *left_pad_vectors(sources))
    return PromptBatch(ids, mask, *left_pad(sources, "source"))


def require_single(options: GenerationConfig, name: str, verb: str) -> None:
    """Raises UserError if an option is above 1."""
    if getattr(options, name) > 1:
        raise UserError(f"{name}={getattr(options, name)} cannot be {verb}; set {name}=1")


def pad_outputs(outputs: Sequence[GenerationOutput], eos_token_ids: Sequence[int]) -> Tensor:
    """New tokens of each row, int [B * N, max new], padded with EOS."""
    width = max((len(output.tokens) + output.finished for output in outputs), default=0)
    # Without EOS all rows have the same length.
    ids = torch.full((len(outputs), width), next(iter(eos_token_ids), 0))
    for row, output in enumerate(outputs):
        ids[row, : len(output.tokens)] = torch.tensor(output.tokens)
    return ids
