"""Prefill and decode steps of the native kernels on one cache.

Letters: R rows, C capacity of the cache, S tokens in it, H heads, K key-value heads, E head width.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.config import GenerationConfig
from miniformer.generation.partial import PartialPass
from miniformer.generation.runtime import PlainRuntime
from miniformer.runtime.native import ctypes_structs as c
from miniformer.runtime.native.append_step import MAX_TOKENS, append_tokens
from miniformer.runtime.native.engine import Engine, get_engine
from miniformer.runtime.native.slot_engine import NativeSlotEngine
from miniformer.runtime.native.threads import single_openmp_thread

_PREFILL_CHUNK = 256  # prompt tokens per call
_PREFILL_MAX_LENGTH = 512  # columns; beyond it PyTorch's attention is faster


def make_native_runtime(
    model: Any, memory: Sequence[Any], options: GenerationConfig
) -> NativeRuntime | None:
    """Creates the runtime; None: no kernels for the model, or the options need another runtime.

    Raises:
        UserError: see `get_engine`.
    """
    if options.cuda_graph or options.cache_kind is not None:
        return None
    engine = get_engine(model, options.weight_dtype)
    return None if engine is None else NativeRuntime(engine, model, memory)


class NativeRuntime(PlainRuntime):
    """Runtime that calls the kernels.

    `reorder` moves an index instead of keys and values.

    Args:
        engine: engine of the model.
        model: the model; it prefills what the kernels do not support.
        memory: encoder outputs of an encoder-decoder model, otherwise empty.
    """

    cache_kind = "full"
    fuses_top_logprobs = True

    def __init__(self, engine: Engine, model: Any, memory: Sequence[Any] = ()) -> None:
        super().__init__(model, memory)
        self.engine, self.position = engine, getattr(model, "decoder", model).position
        self._struct: Any = None  # inputs and outputs of a step; None after a change of rows
        self._references: list[Any] = []  # keep the memory of `_struct` alive
        self._key_rows: Tensor | None = None  # int32 [R, C]: row that stores the key

    @property
    def supports_prefill(self) -> bool:
        """True if the kernels can also prefill."""
        return not self.memory and not self.position.adds_bias

    def prefill(
        self,
        ids: Tensor,
        mask: Tensor | None,
        max_new_tokens: int,
        *,
        trimmable: bool = False,
        capacity: int | None = None,
    ) -> Tensor:
        """Implements `Runtime.prefill`; padding is skipped."""
        self.separate_sources(len(ids))
        self._struct = self._key_rows = None
        if not self.supports_prefill or ids.shape[1] > _PREFILL_MAX_LENGTH:
            return super().prefill(
                ids, mask, max_new_tokens, trimmable=trimmable, capacity=capacity
            )
        self.make_cache(ids, mask, max_new_tokens, self.cache_kind, capacity)
        self._struct = self._make_struct()
        cache, config = self.cache, self.engine.config
        all_positions = cache.extend(mask, ids.shape[1]).expand(ids.shape)
        token_mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        rows, columns = token_mask.nonzero(as_tuple=True)
        tokens, positions = ids[token_mask], all_positions[token_mask]
        vectors = self.position.vectors(all_positions)
        logits = torch.empty(len(ids), config.vocab_size)
        step, num_done = type(self._struct).from_buffer_copy(self._struct), 0
        work = torch.empty(min(len(tokens), _PREFILL_CHUNK) * self.work_width)
        step.work, step.columns = work.data_ptr(), cache.stop
        step.key_positions = None if cache.positions is None else cache.positions.data_ptr()
        for chunk in torch.split(torch.arange(len(tokens)), _PREFILL_CHUNK):
            last = (columns[chunk] == ids.shape[1] - 1).nonzero().flatten()
            inputs = [x[chunk].contiguous() for x in (tokens, positions, rows, columns)]
            pointers = (x.data_ptr() for x in inputs)
            step.tokens, step.positions, step.rows, step.token_columns = pointers
            step.count = len(chunk)
            step.num_outputs, step.output_tokens = len(last), last.data_ptr()
            if vectors is not None:
                chunk_vectors = vectors.expand(*ids.shape, -1)[token_mask][chunk]
                chunk_vectors = chunk_vectors.float().contiguous()
                step.vectors = chunk_vectors.data_ptr()
            step.logits = logits[num_done:].data_ptr()
            self.engine.run(step)
            num_done += len(last)
        cache.end_pass()
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Implements `Runtime.step`; the logits are float32."""
        cache, step, config, position = self.cache, self.struct(), self.engine.config, self.position
        rows = cache.batch_size
        if rows != step.count:  # prevents an out-of-bounds access
            raise ValueError(f"the cache has {rows} rows, the runtime {step.count}; use `select`")
        new_positions = cache.extend(None, 1)  # [R or 1, 1]
        positions, tokens = new_positions.expand(rows, 1).contiguous(), tokens.contiguous()
        step.columns = cache.stop
        step.tokens, step.positions = tokens.data_ptr(), positions.data_ptr()
        step.key_positions = None if cache.positions is None else cache.positions.data_ptr()
        vectors = position.vectors(new_positions)
        if vectors is not None:
            vectors = vectors.expand(rows, 1, config.d_model).float().contiguous()
            step.vectors = vectors.data_ptr()
        if position.adds_bias:
            columns = cache.layers[0].key_positions(cache)
            bias = position.bias(new_positions, columns).float().contiguous()  # [R or 1, H, 1, S]
            step.bias, step.bias_per_row = bias.data_ptr(), len(bias) > 1
        logits = torch.empty(rows, config.vocab_size)
        step.logits = logits.data_ptr()
        self.engine.run(step, rows)
        cache.end_pass()
        return logits

    def append(self, tokens: Tensor, *, last_only: bool = False) -> Tensor:
        """Implements `Runtime.append`; PyTorch reads long rows."""
        if tokens.shape[1] > MAX_TOKENS:
            return super().append(tokens, last_only=last_only)
        num_logits = 1 if last_only else None
        if self.partial is None:
            return append_tokens(self, tokens, num_logits=num_logits)
        hidden, num_layers = self.partial.hidden, self.partial.num_layers
        new = tokens[:, hidden.shape[1] :]
        if new.shape[1]:
            new_hidden = hidden.new_empty(*new.shape, hidden.shape[2])
            append_tokens(self, new, stop=num_layers, hidden=new_hidden, num_logits=0)
            hidden = torch.cat((hidden, new_hidden), 1)
        self.trim(self.cache.length - tokens.shape[1])
        return append_tokens(self, tokens, start=num_layers, hidden=hidden, num_logits=num_logits)

    def step_layers(self, tokens: Tensor, num_layers: int) -> Tensor:
        """Implements `Runtime.step_layers`."""
        hidden = torch.empty(len(tokens), 1, self.engine.config.d_model)
        logits = append_tokens(self, tokens[:, None], stop=num_layers, hidden=hidden)
        self.partial = PartialPass.extend(self.partial, hidden, num_layers)
        return logits[:, 0]

    def select(self, rows: Tensor, copies: int = 1) -> None:
        """Implements `Runtime.select`."""
        self.materialize_cache()
        super().select(rows, copies)
        self._struct = None

    def reorder(self, rows: Tensor) -> None:
        """Implements `Runtime.reorder`: only the index of key rows changes."""
        if self._struct is None:
            super().reorder(rows)
            return
        if self._key_rows is None:
            identity = torch.arange(self._struct.count, dtype=torch.int32)
            self._key_rows = identity[:, None].repeat(1, self.cache.capacity)
            self._struct.key_rows = self._key_rows.data_ptr()
        columns = self._key_rows[:, : self.cache.length]
        columns.copy_(columns[rows])

    def slot_engine(self, last: Any, num_slots: int, capacity: int) -> Any:
        """Implements `Runtime.slot_engine`."""
        if getattr(last, "engine", None) is self.engine:
            return last
        return NativeSlotEngine(self.engine, self.model, num_slots, capacity)

    def materialize_cache(self) -> None:
        """Copies keys and values so that each row of the cache contains its own."""
        if self._key_rows is None:
            return
        columns = torch.arange(self.cache.length)
        for layer in self.cache.layers:
            for stored in (layer.keys, layer.values):  # [R, K, C, E]
                row = self._key_rows[:, : len(columns)].long()
                gathered = stored[row, :, columns]  # [R, S, K, E]
                stored[:, :, : len(columns)] = gathered.transpose(1, 2)
        self._key_rows, self._struct.key_rows = None, None

    def top_logprobs(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Implements `Runtime.top_logprobs`."""
        return self.engine.top_logprobs(logits, k)

    def exclusive_threads(self) -> contextlib.AbstractContextManager[None]:
        """Implements `Runtime.exclusive_threads`."""
        return single_openmp_thread()

    def struct(self) -> Any:
        """Struct of a step for the current rows of the cache, which kernel calls copy or change."""
        if self._struct is None:
            self._struct = self._make_struct()
        return self._struct

    def _make_struct(self) -> Any:
        """Makes the struct of a step for the current rows of the cache."""
        cache, config = self.cache, self.engine.config
        self._references = []
        step = c.Step(
            count=cache.batch_size,
            capacity=cache.capacity,
            rows_per_source=self.rows_per_source,
            num_outputs=-1,
        )
        width = 3 * config.d_model + config.ff_width
        self.work_width = width + 2 * (config.n_heads + config.kv_heads) * config.head_width
        step.work = self._retain(torch.empty(cache.batch_size * self.work_width))
        step.keys = self._pointer_array([layer.keys for layer in cache.layers])
        step.values = self._pointer_array([layer.values for layer in cache.layers])
        if config.position == "rotary":
            self._add_rotary_tables(step)
        if cache.cross_kv is not None:
            step.source_columns = cache.cross_kv[0][0].shape[2]
            keys, values = zip(*cache.cross_kv, strict=True)
            step.source_keys = self._pointer_array([key.contiguous() for key in keys])
            step.source_values = self._pointer_array([value.contiguous() for value in values])
            if self.memory[0].mask is not None:
                step.source_mask = self._retain(self.memory[0].mask.to(torch.uint8).contiguous())
        return step

    def _add_rotary_tables(self, step: Any) -> None:
        """Adds cos and sin of every position, for layers without and with a window."""
        cache, rotation = self.cache, self.position.rotation
        positions = torch.arange(cache.capacity)[None]
        tables = [
            rotation(positions, length=cache.final_lengths, local=local) for local in (False, True)
        ]
        rows = max(len(table.cos) for table in tables)
        cosines, sines = (
            [getattr(table, name).float().expand(rows, -1, -1, -1).contiguous() for table in tables]
            for name in ("cos", "sin")
        )
        step.table_length, step.tables_per_row = cache.capacity, rows > 1
        step.cosines, step.sines = self._pointer_array(cosines), self._pointer_array(sines)

    def _pointer_array(self, tensors: Sequence[Tensor]) -> int:
        pointers = (ctypes.c_void_p * len(tensors))(*map(self._retain, tensors))
        self._references.append(pointers)
        return ctypes.addressof(pointers)

    def _retain(self, tensor: Tensor) -> int:
        self._references.append(tensor)
        return tensor.data_ptr()
