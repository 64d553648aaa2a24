"""Autoregressive decoding with a key-value cache: prefill, decode steps and sampling.

Letters: B prompts, R unfinished rows, T prompt length, D model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, TransformerConfig
from miniformer.generation.logits_processors import (
    Processor,
    apply_processors,
    build_processors,
    check_finite,
)
from miniformer.generation.sampling import sample_next_token

StopFn = Callable[[list[int]], bool]  # stop condition on the new tokens of a sequence
_NATIVE_PREFILL_MAX_LENGTH = 512  # columns; beyond it PyTorch's attention is faster
_MIN_CUDA_GRAPH_STEPS = 16  # remaining tokens; capturing a graph costs several steps
_COMPACTION_THRESHOLD = 0.25  # fraction of finished rows at which the batch is compacted


class Model(Protocol):
    """Model interface that decoding requires."""

    config: TransformerConfig

    def new_cache(self, batch_size: int, capacity: int, kind: str = "window") -> Any:
        """Creates a key-value cache; see `miniformer.model.cache.kv_cache`."""

    def features(self, *inputs: Any, **options: Any) -> Tensor:
        """Hidden states before the head."""

    def logits(self, features: Tensor) -> Tensor:
        """Applies the head to `features`."""

    def cuda_graph_capture(self) -> Any:
        """Function that captures decode steps; see `GenerationConfig.cuda_graph`."""

    def parameters(self) -> Any:
        """As in `nn.Module`."""

    def modules(self) -> Any:
        """As in `nn.Module`."""

    def train(self, mode: bool = True) -> Any:
        """As in `nn.Module`."""


class DecodingState:
    """Decoding state after prefill; each prompt is repeated `copies` times.

    Args:
        model: model in eval mode.
        ids: prompts, int [B, T].
        mask: real tokens of `ids`, bool [B, T]; None: all.
        max_new_tokens: maximum number of new tokens.
        memory: encoder outputs of an encoder-decoder model, otherwise empty.
        copies: rows per prompt, which share one prefill.
        cache_kind: cache kind; see `miniformer.model.cache.kv_cache`.
        truncate: truncate the context of a row that reaches max_seq_len to its last half.
        weight_dtype: dtype of the weights in decode steps; see `GenerationConfig`.
        cuda_graph: run decode steps as a CUDA graph; see `GenerationConfig`.

    Attributes:
        logits: logits of the next token, [R, V].
        tokens: prompts and new tokens, int [R, T + max_new_tokens]; -1: padding.
        first_columns: column of the first token in the cache, int [R].
    """

    def __init__(
        self,
        model: Any,
        ids: Tensor,
        mask: Tensor | None,
        max_new_tokens: int,
        memory: Sequence[Any] = (),
        copies: int = 1,
        cache_kind: str = "window",
        truncate: bool = False,
        weight_dtype: str = "float32",
        cuda_graph: bool = False,
    ) -> None:
        self.model, self.memory = model, list(memory)
        self.length, self.max_seq_len = ids.shape[1], model.config.max_seq_len
        self.cache_kind, self.truncate, self.num_remaining = cache_kind, truncate, max_new_tokens
        self.copies = 1  # consecutive rows that share a source
        get_engine = getattr(model, "engine", None)
        self.engine = None if get_engine is None else get_engine(weight_dtype)
        self.capture_fn = model.cuda_graph_capture() if cuda_graph else None
        if self.engine is not None or self.capture_fn is not None:
            self.cache_kind = "full"
        self.runner: Any = None  # native or CUDA graph runner of this cache
        self.tokens = ids.new_full((len(ids), self.length + max_new_tokens), -1)
        self.tokens[:, : self.length] = ids if mask is None else ids.where(mask, -1)
        self.first_columns = (
            (self.tokens < 0).cumprod(1).sum(1) if mask is not None else ids.new_zeros(len(ids))
        )
        self._prefill(ids, mask)
        if copies > 1:
            self.select_rows(
                torch.arange(len(ids), device=ids.device).repeat_interleave(copies), copies
            )

    @property
    def sequences(self) -> Tensor:
        """Prompts and new tokens so far, int [R, `length`]."""
        return self.tokens[:, : self.length]

    def exclusive_threads(self) -> contextlib.AbstractContextManager[None]:
        """Context manager for sampling between steps; see `Engine.exclusive_threads`."""
        if self.engine is None:
            return contextlib.nullcontext()
        return cast("contextlib.AbstractContextManager[None]", self.engine.exclusive_threads())

    def step(self, token: Tensor) -> None:
        """Appends a token to each row, int [R], and computes the next logits."""
        self.tokens[:, self.length] = token
        self.length, self.num_remaining = self.length + 1, self.num_remaining - 1
        if self.truncate:
            full = self.length - self.first_columns > self.max_seq_len
            # The cache may be full before any row is: longer rows may have been removed.
            if bool(full.any()) or self.cache.length == self.cache.capacity:
                self._truncate_context(full)
                return
        if self.runner is None and self.engine is not None:
            mask = self.memory[0].mask if self.memory else None
            self.runner = self.engine.make_runner(self.cache, mask, self.copies)
        elif (
            self.runner is None and self.capture_fn and self.num_remaining >= _MIN_CUDA_GRAPH_STEPS
        ):
            self.runner = self.capture_fn(self.cache, self.memory)
        if self.runner is not None:
            self.logits = self.runner(token)
            return
        features = self.model.features(token[:, None], *self.memory, cache=self.cache)  # [R, 1, D]
        self.logits = self.model.logits(features[:, 0])

    def select_rows(self, rows: Tensor, copies: int = 1) -> None:
        """Selects rows, int [any]: a subset, or `copies` of each."""
        if self.runner is not None:
            self.runner.materialize_cache()
        sources = rows // self.copies
        self.copies = copies if self.engine is not None else 1
        sources = sources[:: self.copies]
        self.cache.select(rows, sources)
        self.logits, self.tokens = self.logits[rows], self.tokens[rows]
        self.first_columns, self.runner = self.first_columns[rows], None
        self.memory = [
            type(item)(*(None if x is None else x[sources] for x in item)) for item in self.memory
        ]

    def reorder_rows(self, rows: Tensor) -> None:
        """Replaces each row by row `rows`, int [R], another copy of the same prompt."""
        if self.runner is None:
            self.cache.reorder(rows, same_source=True)
        else:
            self.runner.reorder_rows(rows)
        self.tokens, self.first_columns = self.tokens[rows], self.first_columns[rows]

    def top_logprobs(self, k: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and ids of the `k` most likely next tokens, both [R, k]."""
        if self.engine is not None:
            return cast("tuple[Tensor, Tensor]", self.engine.top_logprobs(self.logits, k))
        logprobs, tokens = self.logits.float().log_softmax(-1).topk(k)
        return logprobs, tokens

    def _truncate_context(self, full: Tensor) -> None:
        """Truncates the rows in `full`, bool [R], to their last half and repeats prefill."""
        self.first_columns = torch.where(
            full, self.length - truncation_keep(self.max_seq_len), self.first_columns
        )
        columns = torch.arange(int(self.first_columns.min()), self.length, device=full.device)
        mask = columns >= self.first_columns[:, None]
        ids = self.tokens[:, columns[0] : self.length].where(mask, 0)
        self._prefill(ids, None if bool(mask.all()) else mask)

    def _prefill(self, ids: Tensor, mask: Tensor | None) -> None:
        """Creates a cache and fills it with the prompts."""
        capacity = ids.shape[1] + self.num_remaining
        if self.truncate:
            capacity = min(capacity, self.max_seq_len)
        self.cache = self.model.new_cache(len(ids), capacity, self.cache_kind)
        if mask is not None:  # padding does not count towards the length of a row
            self.cache.final_lengths = (mask.sum(1, keepdim=True) + self.num_remaining).clamp_max(
                self.max_seq_len
            )
        if (
            self.engine is not None
            and self.engine.supports_prefill
            and ids.shape[1] <= _NATIVE_PREFILL_MAX_LENGTH
        ):
            self.runner = self.engine.make_runner(self.cache)
            self.logits = self.runner.prefill(ids, mask)
            return
        features = self.model.features(ids, *self.memory, mask, cache=self.cache)  # [R, T, D]
        self.logits, self.runner = self.model.logits(features[:, -1]), None  # [R, V]


def truncation_keep(max_seq_len: int) -> int:
    """Number of tokens that truncation retains of a sequence that exceeds `max_seq_len`."""
    return max(1, max_seq_len // 2)


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
    # The kernels compute the argmax and its log-probability in one pass.
    use_top_logprobs = state.engine is not None and options.temperature == 0 and not all_processors
    eos_token_ids, rows = set(options.eos_token_ids), list(range(len(state.tokens)))
    finished = [False] * len(rows)  # finished rows that are still in the batch
    new_tokens: list[list[int]] = [[] for _ in rows]
    for step in range(1, options.max_new_tokens + 1):
        logits = state.logits  # [R, V]
        with state.exclusive_threads():
            if use_top_logprobs:
                top, token = (x[:, 0] for x in state.top_logprobs(1))
                check_finite(top, step)
                logprobs = top.tolist() if return_logprobs else []
            else:
                processed = apply_processors(all_processors, state.sequences, logits, step)
                step_uniform = None if uniform is None else uniform[:, step - 1]
                token = sample_next_token(processed, options, step_uniform)
                logprobs = _token_logprobs(logits, token) if return_logprobs else []
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


def _token_logprobs(logits: Tensor, token: Tensor) -> list[float]:
    """Log-probabilities of the tokens, int [R]; logits: [R, V]."""
    logits = logits.float()
    logprobs = logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)
    return cast("list[float]", logprobs.tolist())
