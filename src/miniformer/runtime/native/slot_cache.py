"""Keys, values and tables of the slots of the kernels.

Letters: N tokens of a call, B slots, C capacity, K key-value heads, E head width, S source length,
D model width, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.runtime.native import ctypes_structs as c
from miniformer.runtime.native.engine import Engine


class SlotCache:
    """Memory of slots, and calls of the kernels on it.

    Memory that no sequence has used yet is reserved, not occupied.

    Args:
        engine: engine of the model.
        model: the model.
        num_slots: number of slots, B.
        capacity: columns of a slot, C.

    Attributes:
        can_reuse: keys and values depend only on the tokens up to theirs.
    """

    def __init__(self, engine: Engine, model: Any, num_slots: int, capacity: int) -> None:
        config = engine.config
        stack = getattr(model, "decoder", model)
        self.engine, self.position, self.layers = engine, stack.position, stack.layers
        self.capacity = capacity
        shape = (num_slots, config.kv_heads, capacity, config.head_width)
        self.keys = [torch.empty(shape) for _ in self.layers]
        self.values = [torch.empty(shape) for _ in self.layers]
        self._tables = list[Tensor]()  # cosines and sines, without and with a window
        self._references = list[Any]()  # keep memory of the struct alive
        self._step = c.Step(capacity=capacity, rows_per_source=1, num_outputs=-1)
        self._step.keys, self._step.values = map(self._pointers, (self.keys, self.values))
        width = 3 * config.d_model + config.ff_width
        self._work_width = width + 2 * (config.n_heads + config.kv_heads) * config.head_width
        self._work = torch.empty(0)
        if config.position == "rotary":
            self._make_tables(num_slots)
        self.can_reuse = not self._step.tables_per_row
        if stack is not model:
            self._make_sources(num_slots, config)

    def begin(self, slot: int, final_length: int, memory: Sequence[Any]) -> None:
        """Prepares a slot for a sequence.

        Args:
            slot: the slot.
            final_length: most tokens of the sequence.
            memory: encoder output of its source, of one row, or none.
        """
        if self._step.tables_per_row:
            lengths = torch.tensor([[final_length]])
            for table, row in zip(self._tables, self._rotations(lengths), strict=True):
                table[slot] = row[0]
        if memory:
            self._set_source(slot, memory[0])

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies keys and values of the first tokens of a slot to another one."""
        for stored in (*self.keys, *self.values):
            stored[target, :, :length] = stored[source, :, :length]

    def run(
        self,
        ids: list[int],
        rows: list[int],
        columns: list[int],
        outputs: list[int],
        logits: Tensor,
        *,
        is_step: bool,
    ) -> None:
        """Runs the kernels on N tokens.

        Args:
            ids: the tokens.
            rows: their slots, N; tokens of a slot are adjacent and in order.
            columns: their columns, which are their positions.
            outputs: numbers of the tokens whose logits are computed.
            logits: receives them, float32 [at least len(outputs), V].
            is_step: each token is the next one of a sequence.
        """
        step, count = self._step, len(ids)
        tensors = [torch.tensor(item) for item in (ids, rows, columns, outputs)]
        tokens, row_ids, positions, output_ids = tensors
        if len(self._work) < count * self._work_width:
            self._work = torch.empty(count * self._work_width)
        step.count, step.columns, step.num_outputs = count, max(columns) + 1, len(outputs)
        step.work, step.logits = self._work.data_ptr(), logits.data_ptr()
        step.tokens, step.rows = tokens.data_ptr(), row_ids.data_ptr()
        step.positions = step.token_columns = positions.data_ptr()
        step.output_tokens = output_ids.data_ptr()
        vectors = self.position.vectors(positions[:, None])  # [N, 1, D]
        if vectors is not None:
            vectors = vectors.float().contiguous()
            step.vectors = vectors.data_ptr()
        if self.position.adds_bias:
            keys = torch.arange(step.columns)[None]
            bias = self.position.bias(positions[:, None], keys).float().contiguous()
            step.bias, step.bias_per_row = bias.data_ptr(), True
        self.engine.run(step, count if is_step else None)

    def _make_tables(self, num_slots: int) -> None:
        """Makes the rotary tables of all positions; scaled ones may differ between sequences."""
        probe = torch.tensor([[1], [self.capacity]])
        per_row = any(len(table) > 1 for table in self._rotations(probe))
        lengths = torch.full((num_slots if per_row else 1, 1), self.capacity)
        rows = len(lengths)
        self._tables = [
            table.expand(rows, -1, -1, -1).contiguous() for table in self._rotations(lengths)
        ]
        step = self._step
        step.table_length, step.tables_per_row = self.capacity, per_row
        step.cosines = self._pointers(self._tables[:2])
        step.sines = self._pointers(self._tables[2:])

    def _rotations(self, lengths: Tensor) -> list[Tensor]:
        """Cosines of layers without and with a window, and their sines; `lengths`: int [B, 1]."""
        positions = torch.arange(self.capacity)[None]
        tables = [
            self.position.rotation(positions, length=lengths, local=local)
            for local in (False, True)
        ]
        return [getattr(table, name).float() for name in ("cos", "sin") for table in tables]

    def _make_sources(self, num_slots: int, config: Any) -> None:
        """Makes the memory for keys and values of sources."""
        self.can_reuse = False  # keys depend on the source
        shape = (num_slots, config.kv_heads, config.max_seq_len, config.head_width)
        self.source_keys = [torch.empty(shape) for _ in self.layers]
        self.source_values = [torch.empty(shape) for _ in self.layers]
        self.source_lengths = torch.zeros(num_slots, dtype=torch.int32)
        self._step.source_lengths = self.source_lengths.data_ptr()
        self._point_to_sources()

    def _point_to_sources(self) -> None:
        step = self._step
        step.source_columns = self.source_keys[0].shape[2]
        step.source_keys = self._pointers(self.source_keys)
        step.source_values = self._pointers(self.source_values)

    def _set_source(self, slot: int, memory: Any) -> None:
        """Stores keys and values of a source; `memory`: that of one row, [1, S, D]."""
        features = memory.features if memory.mask is None else memory.features[:, memory.mask[0]]
        self.source_lengths[slot] = length = features.shape[1]
        if missing := max(0, length - self._step.source_columns):
            for stored in (self.source_keys, self.source_values):
                stored[:] = [F.pad(item, (0, 0, 0, missing)) for item in stored]
            self._point_to_sources()
        for index, layer in enumerate(self.layers):
            keys, values = layer.cross_attention.keys_values(features)
            self.source_keys[index][slot, :, :length] = keys[0]
            self.source_values[index][slot, :, :length] = values[0]

    def _pointers(self, tensors: Sequence[Tensor]) -> int:
        pointers = (ctypes.c_void_p * len(tensors))(*(item.data_ptr() for item in tensors))
        self._references.append(pointers)
        return ctypes.addressof(pointers)
