"""Decode steps as CUDA graphs.

A decode step of a small model takes less time on a GPU than launching its kernels one by one. A
graph replays a fixed sequence of kernels on fixed memory. So a step attends to all columns of the
cache, with a mask for the unused ones, and everything that differs between steps is in tensors.

Letters: R rows, C capacity of the cache, T new tokens, K key-value heads, E head width,
V vocabulary.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, UserError
from miniformer.generation.runtime import PlainRuntime, Runtime
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.cache.kv_cache import KVCache
from miniformer.model.masks import Visibility
from miniformer.runtime.native.weights import unsupported_component

StepFn = Callable[[], Tensor]
_MIN_CUDA_GRAPH_STEPS = 16  # remaining tokens; capturing a graph costs several steps


def unsupported_reason(model: Any) -> str | None:
    """Reason why a model does not support CUDA graphs; None if it does."""
    weight = next(model.parameters())
    if weight.device.type != "cuda":
        return f"its weights are on {weight.device.type}"
    if torch.is_autocast_enabled("cuda"):
        return "autocast is on"
    return dynamic_component(model) or unsupported_component(model)


def dynamic_component(model: Any) -> str | None:
    """Component whose steps differ or synchronize with the CPU; None if there is none."""
    config = model.config
    if config.logit_softcap is not None:
        return "flex_attention creates a new mask for each step"
    if config.position == "alibi" or (config.rotary_scaling or {}).get("type") == "longrope":
        return "its positions depend on values on the CPU"
    for module in model.modules():
        if isinstance(module, MultiHeadAttention) and module.backend in ("flex", "varlen"):
            return f"attention backend {module.backend} creates a new mask for each step"
    return None


def make_cuda_graph_runtime(
    model: Any, memory: Sequence[Any], options: GenerationConfig
) -> CudaGraphRuntime | None:
    """Creates the runtime; None: the options do not ask for CUDA graphs.

    Raises:
        UserError: the model does not support CUDA graphs.
    """
    if not options.cuda_graph:
        return None
    reason = unsupported_reason(model)
    if reason is not None:
        raise UserError(f"this model does not support cuda_graph=true: {reason}; leave it out")
    if options.converts_weights:
        raise UserError(
            f"weight_dtype={options.weight_dtype} needs the decoding kernels, which are for CPUs; "
            "leave it out with cuda_graph=true"
        )
    return CudaGraphRuntime(model, memory)


class CudaGraphRuntime(PlainRuntime):
    """Runtime that replays decode steps as a CUDA graph, captured again for each set of rows.

    Args:
        model: model in eval mode without `unsupported_reason`.
        memory: encoder outputs of an encoder-decoder model, otherwise empty.
    """

    cache_kind = "full"

    def __init__(self, model: Any, memory: Sequence[Any] = ()) -> None:
        super().__init__(model, memory)
        self._replay: StepFn | None = None  # writes the next logits to the same memory each time
        self._token = self._column = torch.empty(0)  # inputs of the captured step

    def prefill(self, *args: Any, **options: Any) -> Tensor:
        """Implements `Runtime.prefill` with the modules of the model."""
        self._replay = None
        return super().prefill(*args, **options)

    def step(self, tokens: Tensor) -> Tensor:
        """Implements `Runtime.step`; a few steps are not worth a graph."""
        if self._replay is None:
            if self.cache.capacity - self.cache.length <= _MIN_CUDA_GRAPH_STEPS:
                return super().step(tokens)
            self._replay = self._capture()
        self.cache.reserve(1)
        self._token.copy_(tokens[:, None])
        self._column.fill_(self.cache.start)
        return self._replay().clone()

    def select(self, rows: Tensor, copies: int = 1) -> None:
        """Implements `Runtime.select`."""
        self._replay = None
        super().select(rows, copies)

    def insert(self, rows: Tensor, runtime: Runtime) -> None:
        """Implements `Runtime.insert`; the cache stays in place, but a source does not."""
        if self.memory:
            self._replay = None
        super().insert(rows, runtime)

    def _capture(self) -> StepFn:
        """Captures a step for the current rows.

        Raises:
            UserError: CUDA reports an error.
        """
        cache = self.cache
        cache.make_positions()
        self._token = torch.zeros(cache.batch_size, 1, dtype=torch.long, device=cache.device)
        self._column = torch.full((1,), cache.length, device=cache.device)
        view = _StaticCacheView(cache, self._column)

        def step() -> Tensor:
            features = self.model.features(self._token, *self.memory, cache=view)  # [R, 1, D]
            return self.model.logits(features[:, 0])

        try:
            return capture_graph(step, cache.device)
        except RuntimeError as error:
            message = str(error).partition("\n")[0]
            raise UserError(
                f"cuda_graph=true: graph capture failed: {message}; leave it out"
            ) from error


class _StaticCacheView:
    """Static view of a cache: all columns, of which `column`, int [1], is new."""

    length = 0  # never full

    def __init__(self, cache: KVCache, column: Tensor) -> None:
        self.cache, self.column = cache, column
        self.batch_size, self.final_lengths = cache.batch_size, cache.final_lengths
        self.source_kv = cache.source_kv

    def extend(self, attention_mask: Tensor | None, num_new: int) -> Tensor:
        """Positions of the new tokens, int [R, 1]; idempotent."""
        positions = self.cache.positions
        assert positions is not None
        positions.index_fill_(1, self.column, -1)
        new_positions = (positions >= 0).sum(1, keepdim=True)
        positions.index_copy_(1, self.column, new_positions)
        return new_positions

    def visibility(self, layer: int, positions: Tensor, window: int | None) -> Visibility:
        """See `PassCache.visibility`; unused columns have position -1 and are masked."""
        assert self.cache.positions is not None
        return Visibility(True, window, positions, self.cache.positions)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values, [R, K, 1, E]; returns all, [R, K, C, E]."""
        columns = self.cache.layers[layer]
        for stored, new in ((columns.keys, keys), (columns.values, values)):
            stored.index_copy_(2, self.column, new.to(stored.dtype))
        return columns.keys, columns.values

    def end_pass(self) -> None:
        """Does nothing: there is no state between steps."""


_CAPTURE_LOCK = threading.Lock()  # one capture at a time per process


def capture_graph(step_fn: StepFn, device: torch.device) -> StepFn:
    """Captures `step_fn`; the returned function replays the graph into the same memory."""
    with _CAPTURE_LOCK, torch.cuda.device(device):
        stream = _capture_stream(torch.cuda.current_device())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # warm-up: excludes lazy initialization from the capture
                step_fn()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may use CUDA during the capture.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = step_fn()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


@functools.cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """Stream for graph capture on a GPU."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
