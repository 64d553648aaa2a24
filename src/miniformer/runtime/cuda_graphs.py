"""Decoding steps as CUDA graphs: recorded once, then played back without Python or waits between.

On a GPU a step of a small model takes less time than it takes to ask for its operations one by
one. A recording always does the same with the same memory. So a step sees all columns of the cache,
those to come too, which its mask hides; and what differs from step to step is in tensors.

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

from miniformer.config import UserError
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.cache.kv_cache import KVCache
from miniformer.model.masks import Visibility
from miniformer.runtime.native.weights import unsupported_component

StepFn = Callable[[], Tensor]


def unsupported_reason(model: Any) -> str | None:
    """Why a model's steps cannot be recorded; None: they can."""
    weight = next(model.parameters())
    if weight.device.type != "cuda":
        return f"its weights are on {weight.device.type}"
    if torch.is_autocast_enabled("cuda"):
        return "autocast is on"
    return dynamic_component(model) or unsupported_component(model)


def dynamic_component(model: Any) -> str | None:
    """What in a model does not do the same in each step, or waits for the CPU; None: nothing."""
    config = model.config
    if config.logit_softcap is not None:
        return "flex_attention makes a mask anew for each step"
    if config.position == "alibi" or (config.rotary_scaling or {}).get("type") == "longrope":
        return "its positions are made of numbers on the CPU"
    for module in model.modules():
        if isinstance(module, MultiHeadAttention) and module.backend in ("flex", "varlen"):
            return f"attention backend {module.backend} makes a mask anew for each step"
    return None


class CudaGraphRunner:
    """Steps from one cache on. With other rows than before new ones are due.

    Args:
        model: in eval mode; no `why_not`.
        cache: of kind full, filled with prompts.
        memory: the encoded sources of a decoder, or nothing.
    """

    def __init__(self, model: Any, cache: KVCache, memory: Sequence[Any]) -> None:
        self.cache, self.memory = cache, memory
        cache.make_positions()
        self.token = torch.zeros(cache.batch_size, 1, dtype=torch.long, device=cache.device)
        self.column = torch.full((1,), cache.length, device=cache.device)
        columns = _StaticCacheView(cache, self.column)

        def step() -> Tensor:
            features = model.features(self.token, *memory, cache=columns)  # [R, 1, D]
            logits: Tensor = model.logits(features[:, 0])
            return logits

        self.replay = capture_graph(step, cache.device)

    def __call__(self, token: Tensor) -> Tensor:
        """Logits after each row's next token: int [R] -> [R, V]."""
        self.cache.reserve(1)
        self.token.copy_(token[:, None])
        self.column.fill_(self.cache.start)
        return self.replay().clone()

    def reorder_rows(self, rows: Tensor) -> None:
        """Each row goes on from what row `rows` of it, int [R], was, of the same source."""
        self.cache.reorder(rows, same_source=True)

    def materialize_cache(self) -> None:
        """Each row has its own keys and values already."""


class _StaticCacheView:
    """A cache as a recorded step sees it: all columns, of which `column`, int [1], is new."""

    length = 0  # there is room

    def __init__(self, cache: KVCache, column: Tensor) -> None:
        self.cache, self.column = cache, column
        self.batch_size, self.final_lengths = cache.batch_size, cache.final_lengths
        self.source_kv = cache.source_kv

    def extend(self, attention_mask: Tensor | None, num_new: int) -> Tensor:
        """Positions of the new tokens, int [R, 1]; the same however often it is done."""
        positions = self.cache.positions
        assert positions is not None
        positions.index_fill_(1, self.column, -1)
        placed = (positions >= 0).sum(1, keepdim=True)
        positions.index_copy_(1, self.column, placed)
        return placed

    def visibility(self, layer: int, positions: Tensor, window: int | None) -> Visibility:
        """See `KVCache.visibility`; columns to come have no position, and are not seen."""
        assert self.cache.positions is not None
        return Visibility(True, window, positions, self.cache.positions)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values, [R, K, 1, E]; returns all, [R, K, C, E]."""
        columns = self.cache.layers[layer]
        for kept, new in ((columns.keys, keys), (columns.values, values)):
            kept.index_copy_(2, self.column, new.to(kept.dtype))
        return columns.keys, columns.values

    def end_pass(self) -> None:
        """Nothing is under way between steps."""


CaptureFn = Callable[[KVCache, Sequence[Any]], CudaGraphRunner]


def get_capture_fn(model: Any) -> CaptureFn:
    """A function of a filled cache of kind full and of the encoded sources, that gives the steps.

    Raises:
        UserError: they cannot be recorded; later also where the GPU refuses.
    """
    reason = unsupported_reason(model)
    if reason is not None:
        raise UserError(f"cuda_graph=true is not for this model: {reason}; leave it out")

    def capture(cache: KVCache, memory: Sequence[Any]) -> CudaGraphRunner:
        try:
            return CudaGraphRunner(model, cache, memory)
        except RuntimeError as error:
            first = str(error).partition("\n")[0]
            raise UserError(f"cuda_graph=true: the GPU refuses: {first}; leave it out") from error

    return capture


_CAPTURE_LOCK = threading.Lock()  # a process records one graph at a time


def capture_graph(step_fn: StepFn, device: torch.device) -> StepFn:
    """A function that does what `step` does, with the same memory, as one operation of the GPU."""
    with _CAPTURE_LOCK, torch.cuda.device(device):
        aside = _capture_stream(torch.cuda.current_device())
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):  # what is chosen or made on first use is not for the recording
                step_fn()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on, as long as what they do is none of this stream's business.
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            out = step_fn()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


@functools.cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """The stream of a GPU on which its steps are recorded."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
