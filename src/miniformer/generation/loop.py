"""Autoregressive decoding: prefill, decode steps and sampling.

Letters: B prompts, R unfinished rows, T prompt length, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from miniformer.config import GenerationConfig
from miniformer.generation.encoding import encode_sources
from miniformer.generation.inputs import (
    PromptBatch,
    check_prompts,
    truncate_prompts,
    truncation_keep,
)
from miniformer.generation.logits_processors import (
    Processor,
    apply_processors,
    build_processors,
    check_finite,
)
from miniformer.generation.runtime import Runtime, make_runtime
from miniformer.generation.sampling import sample_next_token

StopFn = Callable[[list[int]], bool]  # stop condition on the new tokens of a sequence
_COMPACTION_THRESHOLD = 0.25  # fraction of finished rows at which the batch is compacted


@dataclasses.dataclass
class DecodingState:
    """State of a batch between decode steps, made by `prefill`.

    Args:
        runtime: executes the steps.
        logits: logits of the next token, [R, V].
        tokens: prompts and new tokens, int [R, T + max_new_tokens]; -1: padding.
        length: number of columns of `tokens` in use.
        first_columns: column of the first token in the cache, int [R].
        truncate_at: length at which the context of a row is truncated to its last half; None:
            never.
    """

    runtime: Runtime
    logits: Tensor
    tokens: Tensor
    length: int
    first_columns: Tensor
    truncate_at: int | None

    @property
    def sequences(self) -> Tensor:
        """Prompts and new tokens so far, int [R, `length`]."""
        return self.tokens[:, : self.length]

    def step(self, token: Tensor) -> None:
        """Appends a token to each row, int [R], and computes the next logits."""
        self.tokens[:, self.length] = token
        self.length += 1
        if self.truncate_at is not None:
            full = self.length - self.first_columns > self.truncate_at
            # The cache may be full before any row is: longer rows may have been removed.
            if self.runtime.is_full or bool(full.any()):
                self._truncate_context(full, truncation_keep(self.truncate_at))
                return
        self.logits = self.runtime.step(token)

    def select_rows(self, rows: Tensor, copies: int = 1) -> None:
        """Selects rows, int [any]: a subset, or `copies` of each."""
        self.runtime.select(rows, copies)
        self.logits, self.tokens = self.logits[rows], self.tokens[rows]
        self.first_columns = self.first_columns[rows]

    def reorder_rows(self, rows: Tensor) -> None:
        """Replaces each row by row `rows`, int [R], another copy of the same prompt."""
        self.runtime.reorder(rows)
        self.tokens, self.first_columns = self.tokens[rows], self.first_columns[rows]

    def _truncate_context(self, full: Tensor, num_retained: int) -> None:
        """Truncates the rows in `full`, bool [R], and prefills all rows again."""
        self.first_columns = torch.where(full, self.length - num_retained, self.first_columns)
        columns = torch.arange(int(self.first_columns.min()), self.length, device=full.device)
        mask = columns >= self.first_columns[:, None]
        ids = self.tokens[:, columns[0] : self.length].where(mask, 0)
        num_remaining = self.tokens.shape[1] - self.length
        self.logits = self.runtime.prefill(ids, None if bool(mask.all()) else mask, num_remaining)


def prefill(
    model: Any, batch: PromptBatch, options: GenerationConfig, *, trimmable: bool = False
) -> DecodingState:
    """Checks the prompts, encodes their sources and fills a key-value cache.

    Args:
        model: model in eval mode.
        batch: prompts. Copies of a prompt, for `num_return_sequences` or `num_beams`, are
            consecutive rows and share one prefill.
        options: decoding options.
        trimmable: see `Runtime.prefill`.

    Raises:
        UserError: see `check_prompts` and `make_runtime`.
    """
    check_prompts(model.config, batch, options)
    max_seq_len = model.config.max_seq_len
    if options.context_shift and batch.ids.shape[1] > max_seq_len:
        batch = truncate_prompts(batch, max_seq_len)
    batch = batch.to(next(model.parameters()).device)
    ids, mask = batch.ids, batch.mask
    memory = []
    if batch.source is not None:
        memory = encode_sources(model, batch, weight_dtype=options.weight_dtype)
    runtime = make_runtime(model, memory, options)
    tokens = ids.new_full((len(ids), ids.shape[1] + options.max_new_tokens), -1)
    tokens[:, : ids.shape[1]] = ids if mask is None else ids.where(mask, -1)
    state = DecodingState(
        runtime,
        logits=runtime.prefill(ids, mask, options.max_new_tokens, trimmable=trimmable),
        tokens=tokens,
        length=ids.shape[1],
        first_columns=(tokens < 0).cumprod(1).sum(1),
        truncate_at=max_seq_len if options.context_shift else None,
    )
    copies = max(options.num_beams, options.num_return_sequences)
    if copies > 1:
        rows = torch.arange(len(ids), device=ids.device).repeat_interleave(copies)
        state.select_rows(rows, copies)
    return state


class StepOutput(NamedTuple):
    """New tokens of the R unfinished rows."""

    rows: list[int]  # row indices
    tokens: list[int]
    logprobs: list[float]  # under the model; empty if not requested
    finished: list[bool]  # the row ends with this token


def decode(
    state: DecodingState,
    options: GenerationConfig,
    *,
    uniform: Tensor | None = None,
    processors: Sequence[Processor] = (),
    stop_fn: StopFn | None = None,
    return_logprobs: bool = True,
) -> Iterator[StepOutput]:
    """Samples one token per row and step until every row is finished.

    Finished rows are removed from the batch. Small data is in lists: for a few rows the overhead of
    a tensor operation exceeds its work.

    Args:
        state: state after prefill.
        options: decoding options.
        uniform: random numbers of each row and step, see `row_uniforms`; None: greedy.
        processors: custom processors; see `miniformer.generation.logits_processors`.
        stop_fn: stop condition on the new tokens, in addition to EOS.
        return_logprobs: compute log-probabilities.
    """
    all_processors = build_processors(options, state.length, processors)
    use_top_logprobs = (
        state.runtime.fuses_top_logprobs and options.temperature == 0 and not all_processors
    )
    eos_token_ids, rows = set(options.eos_token_ids), list(range(len(state.tokens)))
    finished = [False] * len(rows)  # finished rows that are still in the batch
    new_tokens: list[list[int]] = [[] for _ in rows]
    for step in range(1, options.max_new_tokens + 1):
        logits = state.logits  # [R, V]
        with state.runtime.exclusive_threads():
            if use_top_logprobs:
                top, token = (x[:, 0] for x in state.runtime.top_logprobs(logits, 1))
                check_finite(top, step)
                logprobs = top.tolist() if return_logprobs else []
            else:
                processed = apply_processors(all_processors, state.sequences, logits, step)
                step_uniform = None if uniform is None else uniform[:, step - 1]
                token = sample_next_token(processed, options, step_uniform)
                logprobs = token_logprobs(logits, token) if return_logprobs else []
        tokens = token.tolist()
        ended = [new in eos_token_ids for new in tokens]
        if stop_fn is not None:
            for row_tokens, new in zip(new_tokens, tokens, strict=True):
                row_tokens.append(new)
            ended = [
                is_eos or stop_fn(row_tokens)
                for is_eos, row_tokens in zip(ended, new_tokens, strict=True)
            ]
        if any(finished):
            running = [n for n, done in enumerate(finished) if not done]
            selected = (
                [column[n] for n in running] if column else []
                for column in (rows, tokens, logprobs, ended)
            )
            yield StepOutput(*selected)  # type: ignore[arg-type]
        else:
            yield StepOutput(rows, tokens, logprobs, ended)
        finished = [before or now for before, now in zip(finished, ended, strict=True)]
        if step == options.max_new_tokens or all(finished):
            return
        state.step(token)
        if sum(finished) >= max(1, _COMPACTION_THRESHOLD * len(finished)):
            running = [n for n, done in enumerate(finished) if not done]
            state.select_rows(torch.tensor(running, device=token.device))
            uniform = None if uniform is None else uniform[running]
            rows, new_tokens = [rows[n] for n in running], [new_tokens[n] for n in running]
            finished = [False] * len(rows)


def token_logprobs(logits: Tensor, token: Tensor) -> list[float]:
    """Log-probabilities of the tokens, int [R]; logits: [R, V]."""
    logits = logits.float()
    logprobs = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
    return cast("list[float]", logprobs.tolist())
