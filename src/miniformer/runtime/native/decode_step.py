"""Prefill and decode steps of the native kernels on one cache.

Letters: B rows, C capacity of the cache, T tokens in it, K key-value heads, E head width,
V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from miniformer.model.cache.kv_cache import KVCache
from miniformer.runtime.native import ctypes_structs as c

if TYPE_CHECKING:
    from miniformer.runtime.native.engine import Engine


_PREFILL_CHUNK = 256  # prompt tokens per call


class NativeRunner:
    """Runner of steps on one cache; see `Engine.make_runner`.

    A change of the rows of the cache requires a new runner.
    """

    def __init__(
        self, engine: Engine, cache: KVCache, mask: Tensor | None, copies: int = 1
    ) -> None:
        config = engine.config
        self.engine, self.cache = engine, cache
        self._references: list[Any] = []
        self._key_rows: Tensor | None = None  # int32 [B, C]: row that stores the key
        self.step = step = c.Step(
            count=cache.batch_size,
            capacity=cache.capacity,
            rows_per_source=copies,
            num_outputs=-1,
        )
        width = 3 * config.d_model + config.ff_width
        self._work_width = width + 2 * (config.n_heads + config.kv_heads) * config.head_width
        step.work = self._retain(torch.empty(cache.batch_size * self._work_width))
        step.keys = self._pointer_array([layer.keys for layer in cache.layers])
        step.values = self._pointer_array([layer.values for layer in cache.layers])
        if config.position == "rotary":
            self._make_rotary_tables()
        if cache.cross_kv is not None:
            step.source_columns = cache.cross_kv[0][0].shape[2]
            keys, values = zip(*cache.cross_kv, strict=True)
            step.source_keys = self._pointer_array([key.contiguous() for key in keys])
            step.source_values = self._pointer_array([value.contiguous() for value in values])
            if mask is not None:
                step.source_mask = self._retain(mask.to(torch.uint8).contiguous())

    def __call__(self, tokens: Tensor) -> Tensor:
        """Appends a token to each row, int [B]; returns the next logits, float32 [B, V]."""
        cache, step, engine = self.cache, self.step, self.engine
        config, position = engine.config, engine.stack.position
        rows = cache.batch_size
        if rows != step.count:  # prevents an out-of-bounds access
            raise ValueError(
                f"the cache has {rows} rows, the runner {step.count}; create a new runner"
            )
        new_positions = cache.extend(None, 1)  # [B or 1, 1]
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
            bias = position.bias(new_positions, columns).float().contiguous()  # [B or 1, H, 1, S]
            step.bias, step.bias_per_row = bias.data_ptr(), len(bias) > 1
        logits = torch.empty(rows, config.vocab_size)
        step.logits = logits.data_ptr()
        engine.run(step, rows)
        cache.end_pass()
        return logits

    def prefill(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Fills an empty cache with prompts; returns the next logits, float32 [B, V].

        Padding is skipped.

        Args:
            ids: int [B, T].
            mask: real tokens, bool [B, T], including the last column; None: all.
        """
        cache, config, position = self.cache, self.engine.config, self.engine.stack.position
        all_positions = cache.extend(mask, ids.shape[1]).expand(ids.shape)
        token_mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        rows, columns = token_mask.nonzero(as_tuple=True)
        tokens, positions = ids[token_mask], all_positions[token_mask]
        vectors = position.vectors(all_positions)
        logits = torch.empty(len(ids), config.vocab_size)
        step, num_done = type(self.step).from_buffer_copy(self.step), 0
        work = torch.empty(min(len(tokens), _PREFILL_CHUNK) * self._work_width)
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

    def reorder_rows(self, rows: Tensor) -> None:
        """Replaces each row by row `rows`, int [B], which has the same prompt and source.

        Keys and values are not moved; only the row index changes.
        """
        if self._key_rows is None:
            identity = torch.arange(self.step.count, dtype=torch.int32)
            self._key_rows = identity[:, None].repeat(1, self.cache.capacity)
            self.step.key_rows = self._key_rows.data_ptr()
        columns = self._key_rows[:, : self.cache.length]
        columns.copy_(columns[rows])

    def materialize_cache(self) -> None:
        """Copies keys and values so that each row of the cache contains its own."""
        if self._key_rows is None:
            return
        columns = torch.arange(self.cache.length)
        for layer in self.cache.layers:
            for stored in (layer.keys, layer.values):  # [B, K, C, E]
                row = self._key_rows[:, : len(columns)].long()
                gathered = stored[row, :, columns]  # [B, T, K, E]
                stored[:, :, : len(columns)] = gathered.transpose(1, 2)
        self._key_rows, self.step.key_rows = None, None

    def _make_rotary_tables(self) -> None:
        """Computes cos and sin of every position, for layers without and with a window."""
        cache, step = self.cache, self.step
        positions = torch.arange(cache.capacity)[None]
        rotation = self.engine.stack.position.rotation
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
