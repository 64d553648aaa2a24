"""Runtimes: the execution of prefill and decode steps for one batch.

    plain        the modules of the model                     `PlainRuntime`, below
    native       C++ kernels on CPUs                          miniformer.runtime.native.decode_step
    cuda_graphs  decode steps replayed as a CUDA graph        miniformer.runtime.cuda_graphs

Letters: R rows of the batch, T prompt length, N new tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from miniformer import registry
from miniformer.config import GenerationConfig, TransformerConfig
from miniformer.generation.partial import (
    PartialPass,
    read_first_layers,
    read_other_layers,
    stack_of,
)


class Model(Protocol):
    """Interface of an `nn.Module` that decoding requires.

    One with an encoder also has `encode`, whose result has `select` and `insert`; see
    `miniformer.model.memory.Memory`.
    """

    config: TransformerConfig

    def new_cache(self, batch_size: int, capacity: int, kind: str = "window") -> Any:
        """Creates a key-value cache; see `miniformer.model.cache.kv_cache`."""

    def features(self, *inputs: Any, **options: Any) -> Tensor:
        """Hidden states before the head."""

    def logits(self, features: Tensor) -> Tensor:
        """Applies the head to `features`."""


class Runtime(Protocol):
    """Executes the passes of one batch and holds its key-value cache.

    Every loop uses `prefill` and `step`; compaction of finished rows and copies of a prompt use
    `select`, beam search `reorder`, speculative decoding `append` and `trim`, continuous batching
    `insert` and `compact`. Logits are those of the token after a pass; later passes do not
    overwrite them.
    """

    fuses_top_logprobs: ClassVar[bool] = False  # `top_logprobs` is one pass over the logits

    def prefill(
        self,
        ids: Tensor,
        mask: Tensor | None,
        max_new_tokens: int,
        *,
        trimmable: bool = False,
        capacity: int | None = None,
    ) -> Tensor:
        """Fills a new cache with tokens; returns the next logits, [R, V].

        A truncated context is prefilled again, with the rows selected until then.

        Args:
            ids: int [R, T].
            mask: real tokens, bool [R, T], always with the last column; None: all.
            max_new_tokens: maximum number of tokens to append.
            trimmable: `trim` is called later, so layers with a sliding window evict nothing.
            capacity: columns of the cache, at least those of the prompt and the new tokens, for
                rows that are inserted later; None: as many as these.
        """

    def step(self, tokens: Tensor) -> Tensor:
        """Appends a token to each row, int [R]; returns the next logits, [R, V]."""

    def select(self, rows: Tensor, copies: int = 1) -> None:
        """Selects rows, int [any], in ascending order: a subset, or `copies` of each.

        With `copies` of 1 rows may repeat.
        """

    def reorder(self, rows: Tensor) -> None:
        """Replaces each row by row `rows`, int [R], a copy of the same prompt and source."""

    @property
    def is_full(self) -> bool:
        """True if the cache has no column for another step."""

    @property
    def num_columns(self) -> int:
        """Columns of the cache in use: the tokens of the longest row, and padding."""

    def top_logprobs(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and ids of the `k` most likely tokens, in descending order.

        Args:
            logits: [R, V].
            k: number of tokens.

        Returns:
            float32 [R, k], and int [R, k].
        """
        logprobs, tokens = logits.float().log_softmax(-1).topk(k)
        return logprobs, tokens

    def exclusive_threads(self) -> contextlib.AbstractContextManager[None]:
        """Context manager for sampling between steps, which leaves the cores to the runtime."""
        return contextlib.nullcontext()

    def append(self, tokens: Tensor, *, last_only: bool = False) -> Tensor:
        """Appends tokens, int [R, N], but not after `reorder`; returns logits, [R, N, V].

        With `last_only`, logits of the last column only, [R, 1, V]. Tokens of `step_layers` since
        the last `append` are the first of `tokens`, and only the other layers read them.
        """

    def step_layers(self, tokens: Tensor, num_layers: int) -> Tensor:
        """Appends a token to each row in the first layers; returns the logits of these, [R, V].

        The output of layer `num_layers` takes the place of the last layer's before the final norm.
        Rows have no padding. `append` completes the tokens.

        Args:
            tokens: int [R].
            num_layers: number of layers, at least 1 and not all.
        """

    def trim(self, length: int) -> None:
        """Truncates each row to its first `length` tokens, as after a rejected draft."""

    def insert(self, rows: Tensor, runtime: Runtime) -> None:
        """Replaces rows by those of a runtime that was prefilled with the same `capacity`.

        Args:
            rows: int [n], without repetition.
            runtime: runtime of n rows of the same class and model; it must not be used again.
        """

    def compact(self, finished: Tensor) -> None:
        """Frees the columns that only finished rows use.

        Args:
            finished: bool [R]; tokens of these rows are evicted. At least one row is unfinished.
        """

    def slot_engine(self, last: Any, num_slots: int, capacity: int) -> Any:
        """A `SlotEngine` with a fixed row of the cache for each slot; None: there is none.

        Args:
            last: engine to use again if its weights are those of the model, or None.
            num_slots: number of slots.
            capacity: columns of each slot.
        """
        return None


def make_runtime(model: Any, memory: Sequence[Any], options: GenerationConfig) -> Runtime:
    """Creates the last registered runtime that accepts the model and options, or the plain one.

    A registered factory has the same arguments and returns None if it does not apply. A model whose
    rows have different weights brings its own as the attribute `row_runtime`, which is tried first.

    Args:
        model: model in eval mode.
        memory: encoder outputs of an encoder-decoder model, otherwise empty.
        options: decoding options.

    Raises:
        UserError: the options require a runtime that does not support the model.
    """
    own = getattr(model, "row_runtime", None)
    if own is not None and (runtime := own(model, memory, options)) is not None:
        return cast("Runtime", runtime)
    for _, make in registry.load_all("runtime", last_first=True):
        runtime = make(model, memory, options)
        if runtime is not None:
            return cast("Runtime", runtime)
    return PlainRuntime(model, memory, options.cache_kind)


class PlainRuntime(Runtime):
    """Runtime that calls the modules of the model; supports every `Model`.

    Args:
        model, memory: see `make_runtime`.
        cache_kind: kind of cache; None: that of the class.
    """

    cache_kind: str = "window"  # see `miniformer.model.stack.Stack.new_cache`

    def __init__(
        self, model: Model, memory: Sequence[Any] = (), cache_kind: str | None = None
    ) -> None:
        self.model, self.memory = model, list(memory)
        self.cache_kind = cache_kind or self.cache_kind
        self.cache: Any = None  # made by `prefill`
        self.rows_per_source = 1  # copies of a prompt share keys and values of their source
        self.partial: PartialPass | None = None  # tokens of `step_layers`

    def prefill(
        self,
        ids: Tensor,
        mask: Tensor | None,
        max_new_tokens: int,
        *,
        trimmable: bool = False,
        capacity: int | None = None,
    ) -> Tensor:
        """Implements `Runtime.prefill`."""
        self.separate_sources(len(ids))
        trimmed = trimmable and self.cache_kind == "window"
        kind = "full" if trimmed else self.cache_kind
        self.make_cache(ids, mask, max_new_tokens, kind, capacity)
        features = self.model.features(ids, *self.memory, mask, cache=self.cache)  # [R, T, D]
        return self.model.logits(features[:, -1])

    def make_cache(
        self,
        ids: Tensor,
        mask: Tensor | None,
        max_new_tokens: int,
        kind: str,
        capacity: int | None = None,
    ) -> None:
        """Makes an empty cache; see `Runtime.prefill`."""
        rows, length = ids.shape
        max_seq_len = self.model.config.max_seq_len
        final_length = min(length + max_new_tokens, max_seq_len)
        self.cache = self.model.new_cache(rows, capacity or final_length, kind)
        if mask is not None:  # padding does not count towards the length of a row
            final_lengths = mask.sum(1, keepdim=True) + max_new_tokens
            self.cache.final_lengths = final_lengths.clamp_max(max_seq_len)
        elif capacity is not None:
            self.cache.final_lengths.fill_(final_length)

    def step(self, tokens: Tensor) -> Tensor:
        """Implements `Runtime.step`."""
        return self.append(tokens[:, None])[:, 0]

    def append(self, tokens: Tensor, *, last_only: bool = False) -> Tensor:
        """Implements `Runtime.append`."""
        if self.partial is None:
            features = self.model.features(tokens, *self.memory, cache=self.cache)  # [R, N, D]
        else:
            features = self._complete(tokens, self.partial)
        return self.model.logits(features[:, -1:] if last_only else features)

    def step_layers(self, tokens: Tensor, num_layers: int) -> Tensor:
        """Implements `Runtime.step_layers`."""
        inputs = (self.memory, self.cache, num_layers)
        hidden = read_first_layers(self.model, tokens[:, None], *inputs)  # [R, 1, D]
        self.partial = PartialPass.extend(self.partial, hidden, num_layers)
        return self.model.logits(stack_of(self.model).final_norm(hidden[:, 0]))

    def _complete(self, tokens: Tensor, partial: PartialPass) -> Tensor:
        """Appends tokens that begin with those of `step_layers`; returns features, [R, N, D]."""
        self.partial, hidden = None, partial.hidden
        inputs = (self.memory, self.cache, partial.num_layers)
        new = tokens[:, hidden.shape[1] :]
        if new.shape[1]:
            hidden = torch.cat((hidden, read_first_layers(self.model, new, *inputs)), 1)
        return read_other_layers(self.model, hidden, *inputs)

    def select(self, rows: Tensor, copies: int = 1) -> None:
        """Implements `Runtime.select`."""
        sources = (rows // self.rows_per_source)[::copies]
        self.cache.select(rows, sources)
        self.select_sources(sources)
        self.rows_per_source = copies

    def separate_sources(self, num_rows: int) -> None:
        """Gives each of the rows its own source, as a new cache needs."""
        if self.rows_per_source > 1:
            self.select_sources(torch.arange(num_rows) // self.rows_per_source)
            self.rows_per_source = 1

    def select_sources(self, rows: Tensor) -> None:
        """Selects rows of the encoder outputs, int [any]."""
        self.memory = [memory.select(rows) for memory in self.memory]

    def reorder(self, rows: Tensor) -> None:
        """Implements `Runtime.reorder`."""
        self.cache.reorder(rows, same_source=True)

    @property
    def is_full(self) -> bool:
        """Implements `Runtime.is_full`."""
        return bool(self.cache.length == self.cache.capacity)

    @property
    def num_columns(self) -> int:
        """Implements `Runtime.num_columns`."""
        length: int = self.cache.length
        return length

    def trim(self, length: int) -> None:
        """Implements `Runtime.trim`."""
        self.partial = None
        self.cache.trim(length)

    def insert(self, rows: Tensor, runtime: Runtime) -> None:
        """Implements `Runtime.insert`."""
        assert isinstance(runtime, PlainRuntime)
        self.cache.insert(rows, runtime.cache)
        pairs = zip(self.memory, runtime.memory, strict=True)
        self.memory = [memory.insert(rows, inserted) for memory, inserted in pairs]

    def compact(self, finished: Tensor) -> None:
        """Implements `Runtime.compact`."""
        self.cache.trim(self.cache.lengths.masked_fill(finished, 0))
        self.cache.compact()
