"""Engines of a `SlotDecoder`: keys, values and passes of sequences that come and go.

    RowEngine    rows of a `Runtime`, which grow, shrink and are compacted      below
    native       a fixed row of the cache for each slot      miniformer.runtime.native.slot_engine

Letters: R rows of the runtime, n sequences with new logits, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from miniformer.config import GenerationConfig
from miniformer.generation.runtime import Runtime, make_runtime
from miniformer.generation.slot_sequence import SlotSequence

_MIN_WASTED_COLUMNS = 32  # of a cache that is compacted before it is full


class SlotEngine(Protocol):
    """Passes of the sequences of a `SlotDecoder`."""

    num_read: int  # prompt tokens so far that were read
    num_reused: int  # prompt tokens so far whose keys and values were those of another prompt
    fuses_top_logprobs: bool  # see `Runtime`

    def begin(self, item: SlotSequence, memory: Sequence[Any], free: Sequence[int]) -> int:
        """Gives a sequence one of the free slots, which it returns; its prompt is read later.

        Args:
            item: the sequence.
            memory: encoder output of its source, or none.
            free: free slots in ascending order, at least one.
        """

    def advance(
        self, tokens: Mapping[int, int], max_prompt_tokens: int | None
    ) -> tuple[list[int], Tensor]:
        """Appends a token to each running sequence, and reads parts of prompts.

        Args:
            tokens: last token of each running sequence, by slot.
            max_prompt_tokens: most tokens of prompts to read; None: all.

        Returns:
            Slots whose next logits are known, and these logits, [n, V].
        """

    def remove(self, slot: int) -> None:
        """Ends the sequence of a slot."""

    def top_logprobs(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Runtime.top_logprobs`."""

    def exclusive_threads(self) -> contextlib.AbstractContextManager[None]:
        """See `Runtime.exclusive_threads`."""


@dataclasses.dataclass
class _Prompt:
    """A prompt that is read apart from the running rows."""

    slot: int
    item: SlotSequence
    runtime: Runtime
    num_read: int = 0


class RowEngine(SlotEngine):
    """Rows of one runtime. A prompt has a runtime of its own until it is read.

    Args:
        model, options: see `make_runtime`.
        num_slots: maximum number of rows.
        capacity: columns of the cache.
    """

    fuses_top_logprobs = False

    def __init__(
        self, model: Any, options: GenerationConfig, num_slots: int, capacity: int
    ) -> None:
        self.model, self.options = model, options
        self.num_slots, self.capacity = num_slots, capacity
        self.num_read = self.num_reused = 0
        self._device = next(model.parameters()).device
        self._prompts: list[_Prompt] = []
        self._rows: list[SlotSequence | None] = []  # of the runtime; None: free
        self._runtime: Runtime | None = None  # None: no row
        self._logits = torch.empty(0)  # of the next token, [R, V]

    def begin(self, item: SlotSequence, memory: Sequence[Any], free: Sequence[int]) -> int:
        """Implements `SlotEngine.begin`."""
        runtime = make_runtime(self.model, memory, self.options)
        self._prompts.append(_Prompt(free[0], item, runtime))
        return free[0]

    def advance(
        self, tokens: Mapping[int, int], max_prompt_tokens: int | None
    ) -> tuple[list[int], Tensor]:
        """Implements `SlotEngine.advance`."""
        for row, item in enumerate(self._rows):
            if item is not None and item.slot not in tokens:
                self._rows[row] = None
        if tokens:
            self._step(tokens)
        else:
            self._runtime, self._rows = None, []
        while self._prompts and max_prompt_tokens != 0:
            num_read = self._read(self._prompts[0], max_prompt_tokens)
            if max_prompt_tokens is not None:
                max_prompt_tokens -= num_read
            if self._prompts[0].num_read == len(self._prompts[0].item.prompt):
                self._insert(self._prompts.pop(0))
        live = {row: item.slot for row, item in enumerate(self._rows) if item is not None}
        logits = self._logits if len(live) == len(self._rows) else self._logits[[*live]]
        return [*live.values()], logits

    def remove(self, slot: int) -> None:
        """Implements `SlotEngine.remove`."""
        self._prompts = [prompt for prompt in self._prompts if prompt.slot != slot]
        for row, item in enumerate(self._rows):
            if item is not None and item.slot == slot:
                self._rows[row] = None

    def _read(self, prompt: _Prompt, limit: int | None) -> int:
        """Reads at most `limit` tokens of a prompt; returns their number."""
        ids = prompt.item.prompt[prompt.num_read :][:limit]
        part = torch.tensor([ids], device=self._device)
        if prompt.num_read:
            logits = prompt.runtime.append(part, last_only=True)[:, -1]
        else:
            later = prompt.item.final_length - len(ids)
            logits = prompt.runtime.prefill(part, None, later, capacity=self.capacity)
        prompt.num_read += len(ids)
        self.num_read += len(ids)
        self._last_logits = logits
        return len(ids)

    def _insert(self, prompt: _Prompt) -> None:
        """Gives a sequence a row once its prompt is read."""
        logits = self._last_logits
        if self._runtime is None:
            self._runtime, self._rows = prompt.runtime, [prompt.item]
            self._logits = logits
            return
        num_rows = len(self._rows)
        if None not in self._rows:  # doubled, so that a row is rarely copied
            copies = range(num_rows, min(2 * num_rows, self.num_slots))
            self._select([*range(num_rows), *(num_rows - 1 for _ in copies)])
            self._rows[num_rows:] = [None for _ in copies]
        row = self._rows.index(None)
        index = torch.tensor([row], device=logits.device)
        self._runtime.insert(index, prompt.runtime)
        self._rows[row] = prompt.item
        self._logits = self._logits.index_copy(0, index, logits.to(self._logits.dtype))

    def _step(self, tokens: Mapping[int, int]) -> None:
        """Appends the new tokens to the cache, and computes the next logits."""
        assert self._runtime is not None
        live = [row for row, item in enumerate(self._rows) if item is not None]
        if len(live) <= len(self._rows) // 4:
            self._select(live)
        items = self._rows
        longest = max(len(item.prompt) + len(item.tokens) - 1 for item in items if item is not None)
        wasted = self._runtime.num_columns - longest
        if self._runtime.is_full or wasted > longest + _MIN_WASTED_COLUMNS:
            finished = torch.tensor([item is None for item in items], device=self._device)
            self._runtime.compact(finished)
        new = [0 if item is None else tokens[item.slot] for item in items]
        self._logits = self._runtime.step(torch.tensor(new, device=self._device))

    def _select(self, rows: list[int]) -> None:
        """Selects rows of the runtime, which may repeat."""
        assert self._runtime is not None
        index = torch.tensor(rows, device=self._device)
        self._runtime.select(index)
        self._logits, self._rows = self._logits[index], [self._rows[row] for row in rows]

    def top_logprobs(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Implements `SlotEngine.top_logprobs`."""
        assert self._runtime is not None
        return self._runtime.top_logprobs(logits, k)

    def exclusive_threads(self) -> contextlib.AbstractContextManager[None]:
        """Implements `SlotEngine.exclusive_threads`."""
        return contextlib.nullcontext()
