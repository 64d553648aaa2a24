"""Autoregressive decoding with a key-value cache: what all ways of choosing tokens share.

Letters: B rows, R rows still written, T prompt length, D model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

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

StopFn = Callable[[list[int]], bool]  # whether a text of these new tokens is complete
_NATIVE_PREFILL_MAX_LENGTH = (
    512  # columns of prompts; PyTorch's attention is faster where there are many
)
_MIN_CUDA_GRAPH_STEPS = 16  # tokens to come: a recording takes as long as some steps
_COMPACTION_THRESHOLD = (
    0.25  # share of the rows that must have ended before they are taken out of the batch
)


class Model(Protocol):
    """What decoding needs of a model."""

    config: TransformerConfig

    def new_cache(self, batch_size: int, capacity: int, kind: str = "window") -> Any:
        """A cache of keys and values; see `miniformer.model.cache.kv_cache`."""

    def features(self, *inputs: Any, **options: Any) -> Tensor:
        """What the head reads."""

    def logits(self, features: Tensor) -> Tensor:
        """The head."""

    def cuda_graph_capture(self) -> Any:
        """What records steps on a GPU; see `GenerationConfig.cuda_graph`."""

    def parameters(self) -> Any:
        """As of any `nn.Module`."""

    def modules(self) -> Any:
        """As of any `nn.Module`."""

    def train(self, mode: bool = True) -> Any:
        """As of any `nn.Module`."""


class DecodingState:
    """Prompts that a model has read, each of them `copies` times, ready to be gone on with.

    Args:
        model: in eval mode.
        ids: prompts, int [B, T].
        mask: which of it is real, bool [B, T]; None: all.
        new: tokens that may come.
        memory: the encoded sources of a decoder, or nothing.
        copies: rows of each prompt, which is read once.
        kind: of the cache; see `miniformer.model.cache.kv_cache`.
        context_shift: where a row is as long as the model reads, go on from its last half.
        weights: how weights are read after the prompt; see `GenerationConfig`.
        graph: steps are those of a CUDA graph; see `GenerationConfig`.

    Attributes:
        logits: of the next token, [R, V].
        tokens: prompts and what came after them, int [R, T + new]; -1: padding.
        first: the column of the first token that is in the cache, int [R].
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
        self.length, self.cache_kind, self.max_seq_len = (
            ids.shape[1],
            cache_kind,
            model.config.max_seq_len,
        )
        self.truncate, self.num_remaining = truncate, max_new_tokens
        self.copies = 1  # rows, one after the other, that share a source
        engine = getattr(model, "engine", None)
        self.engine = None if engine is None else engine(weight_dtype)
        self.capture_fn = model.cuda_graph_capture() if cuda_graph else None
        if self.engine is not None or self.capture_fn is not None:
            self.cache_kind = "full"
        self.runner: Any = None  # of the engine or recorded, from this cache on
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
        """All tokens so far, int [R, T + new so far]."""
        return self.tokens[:, : self.length]

    def exclusive_threads(self) -> contextlib.AbstractContextManager[None]:
        """For what is done between steps; see `Engine`."""
        if self.engine is None:
            return contextlib.nullcontext()
        found: contextlib.AbstractContextManager[None] = self.engine.exclusive_threads()
        return found

    def step(self, token: Tensor) -> None:
        """Takes the next token of each row, int [R]."""
        self.tokens[:, self.length] = token
        self.length, self.num_remaining = self.length + 1, self.num_remaining - 1
        full = (
            self.length - self.first_columns > self.max_seq_len
            if self.truncate
            else self.first_columns
        )
        # Columns may run out before a row is full: those of longer rows that have been taken out.
        if self.truncate and (bool(full.any()) or self.cache.length == self.cache.capacity):
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
        """Goes on with these rows, int [any]: fewer than there were, or `copies` of each."""
        if self.runner is not None:
            self.runner.materialize_cache()
        sources = rows // self.copies
        self.copies = copies if self.engine is not None else 1
        sources = sources[:: self.copies]
        self.cache.select(rows, sources)
        self.logits, self.tokens = self.logits[rows], self.tokens[rows]
        self.first_columns, self.runner = self.first_columns[rows], None
        self.memory = [
            type(each)(*(None if x is None else x[sources] for x in each)) for each in self.memory
        ]

    def reorder_rows(self, rows: Tensor) -> None:
        """Each row goes on from what row `rows`, int [R], was: another copy of the same prompt."""
        if self.runner is None:
            self.cache.reorder(rows, same_source=True)
        else:
            self.runner.reorder_rows(rows)
        self.tokens, self.first_columns = self.tokens[rows], self.first_columns[rows]

    def top_logprobs(self, k: int) -> tuple[Tensor, Tensor]:
        """The likeliest next tokens of each row: log-probabilities and tokens, [R, many] both."""
        if self.engine is not None:
            found: tuple[Tensor, Tensor] = self.engine.top_logprobs(self.logits, k)
            return found
        likeliest, tokens = self.logits.float().log_softmax(-1).topk(k)
        return likeliest, tokens

    def _truncate_context(self, full: Tensor) -> None:
        """Reads the texts again, of those that are `full`, bool [R], only the last half."""
        self.first_columns = torch.where(
            full, self.length - truncation_keep(self.max_seq_len), self.first_columns
        )
        columns = torch.arange(int(self.first_columns.min()), self.length, device=full.device)
        mask = columns >= self.first_columns[:, None]
        ids = self.tokens[:, columns[0] : self.length].where(mask, 0)
        self._prefill(ids, None if bool(mask.all()) else mask)

    def _prefill(self, ids: Tensor, mask: Tensor | None) -> None:
        """Makes a cache and fills it with prompts."""
        capacity = ids.shape[1] + self.num_remaining
        if self.truncate:
            capacity = min(capacity, self.max_seq_len)
        self.cache = self.model.new_cache(len(ids), capacity, self.cache_kind)
        if mask is not None:  # a row's text is as long as it is alone
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
    """Tokens that are kept of a text that has become too long to be read."""
    return max(1, max_seq_len // 2)


class StepOutput(NamedTuple):
    """New tokens of the rows still written, R of each."""

    rows: list[int]  # which they are
    tokens: list[int]
    logprobs: list[float]  # that the model itself gives them; empty where nobody asks
    finished: list[bool]  # whether the row's text is complete now


def decode(
    state: DecodingState,
    options: GenerationConfig,
    *,
    uniform: Tensor | None = None,
    processors: Sequence[Processor] = (),
    stop_fn: StopFn | None = None,
    return_logprobs: bool = True,
) -> Iterator[StepOutput]:
    """Chooses a token for each row, again and again, until every text is complete.

    Rows that have ended are taken out, so that the others do not wait for them. What is small is in
    lists: for a few rows an operation on tensors takes longer than what it does.

    Args:
        begun: the prompts.
        options: how tokens are chosen.
        uniform: random numbers of each row and step, see `uniforms`; None: nothing is sampled.
        processors: the user's own; see `processors`.
        until: ends a text that is complete though no token says so.
        scores: whether log-probabilities are asked for.
    """
    changes = build_processors(options, state.length, processors)
    # The kernels find the likeliest tokens while they add up all.
    likeliest = state.engine is not None and options.temperature == 0 and not changes
    ends, rows = set(options.eos_token_ids), list(range(len(state.tokens)))
    over = [False] * len(rows)  # of these, which have ended
    texts: list[list[int]] = [[] for _ in rows]
    for step in range(1, options.max_new_tokens + 1):
        logits = state.logits  # [R, V]
        with state.exclusive_threads():
            if likeliest:
                found, token = (each[:, 0] for each in state.top_logprobs(1))
                check_finite(found, step)
                log_p = found.tolist() if return_logprobs else []
            else:
                allowed = apply_processors(changes, state.sequences, logits, step)
                drawn = None if uniform is None else uniform[:, step - 1]
                token = sample_next_token(allowed, options, drawn)
                log_p = _token_logprobs(logits, token) if return_logprobs else []
        tokens = token.tolist()
        ended = [each in ends for each in tokens]
        if stop_fn is not None:
            for text, new in zip(texts, tokens, strict=True):
                text.append(new)
            ended = [end or stop_fn(text) for end, text in zip(ended, texts, strict=True)]
        if any(over):
            alive = [place for place, done in enumerate(over) if not done]
            some = ([each[place] for place in alive] if each else [] for each in
                    (rows, tokens, log_p, ended))  # fmt: skip
            yield StepOutput(*some)  # type: ignore[arg-type]
        else:
            yield StepOutput(rows, tokens, log_p, ended)
        over = [one or other for one, other in zip(over, ended, strict=True)]
        if step == options.max_new_tokens or all(over):
            return
        state.step(token)
        if sum(over) >= max(1, _COMPACTION_THRESHOLD * len(over)):
            kept = [place for place, done in enumerate(over) if not done]
            state.select_rows(torch.tensor(kept, device=token.device))
            uniform = None if uniform is None else uniform[kept]
            rows, texts = [rows[place] for place in kept], [texts[place] for place in kept]
            over = [False] * len(rows)


def _token_logprobs(logits: Tensor, token: Tensor) -> list[float]:
    """Log-probabilities of some tokens, int [R]; logits: [R, V]."""
    logits = logits.float()
    found: list[float] = (logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)).tolist()
    return found
