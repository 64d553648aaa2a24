"""Continuous batching with the kernels: each slot has a row of the cache, from column 0.

One call of the kernels takes the last token of running sequences and parts of prompts. The column
of a token is its position, and the kernels sum in one order for any number of tokens. So the keys,
values and logits of a sequence do not depend on the others, nor on the parts of its prompt: they
are the same bits. For the same reason a prompt that begins like another one, running or ended,
takes over its keys and values. This needs no memory beyond the slots, which keep their content
until they are used again.

Letters: N tokens of a call, C capacity, H heads, K key-value heads, E head width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.generation.slot_engine import SlotEngine
from miniformer.generation.slot_sequence import SlotSequence
from miniformer.runtime.native.engine import Engine
from miniformer.runtime.native.slot_cache import SlotCache
from miniformer.runtime.native.threads import single_openmp_thread

_MAX_TOKENS = 256  # of a call
_MIN_REUSED = 8  # tokens that are worth a copy


@dataclasses.dataclass
class _Slot:
    """Content of a slot.

    Attributes:
        ids: tokens of its sequence; without one, of its last sequence.
        num_cached: number of them with keys and values in the cache.
        is_running: it has a sequence.
        used: number of the sequence, in the order of use.
    """

    ids: list[int] = dataclasses.field(default_factory=list)
    num_cached: int = 0
    is_running: bool = False
    used: int = -1


class NativeSlotEngine(SlotEngine):
    """Slots of the kernels.

    Args:
        engine: engine of the model.
        model: the model.
        num_slots, capacity: see `Runtime.slot_engine`.
    """

    fuses_top_logprobs = True

    def __init__(self, engine: Engine, model: Any, num_slots: int, capacity: int) -> None:
        self.engine, self.capacity = engine, capacity
        self.num_read = self.num_reused = 0
        self.cache = SlotCache(engine, model, num_slots, capacity)
        self._slots = [_Slot() for _ in range(num_slots)]
        self._numbers = itertools.count()

    def begin(self, item: SlotSequence, memory: Sequence[Any], free: Sequence[int]) -> int:
        """Implements `SlotEngine.begin`."""
        donor, length = self._longest_prefix(item.prompt)
        slot = min(free, key=lambda index: (self._slots[index].used, index))
        if donor in free and 2 * length >= self._slots[donor].num_cached:
            slot = donor
        elif length:
            self.cache.copy(donor, slot, length)
        self.cache.begin(slot, item.final_length, memory)
        self._slots[slot] = _Slot([*item.prompt], length, True, next(self._numbers))
        self.num_reused += length
        return slot

    def advance(
        self, tokens: Mapping[int, int], max_prompt_tokens: int | None
    ) -> tuple[list[int], Tensor]:
        """Implements `SlotEngine.advance`."""
        for index, token in tokens.items():
            self._slots[index].ids.append(token)
        parts = [(index, 1) for index in sorted(tokens)]
        parts += self._prompt_parts(tokens, max_prompt_tokens)
        logits = torch.empty(len(parts), self.engine.config.vocab_size)
        complete = list[int]()  # numbers of parts that end a prompt, and slots
        for call in _calls(parts):
            rows, columns, outputs = [], list[int](), list[int]()
            ids, first = list[int](), len(complete)
            for index, count in call:
                item = self._slots[index]
                start, item.num_cached = item.num_cached, item.num_cached + count
                ids += item.ids[start : item.num_cached]
                rows += [index] * count
                columns += range(start, item.num_cached)
                if item.num_cached == len(item.ids):
                    outputs.append(len(ids) - 1)
                    complete.append(index)
            is_step = len(ids) == len(call)
            self.cache.run(ids, rows, columns, outputs, logits[first:], is_step=is_step)
        order = sorted(range(len(complete)), key=complete.__getitem__)
        logits = logits[: len(complete)]
        return sorted(complete), logits if order == [*range(len(order))] else logits[order]

    def remove(self, slot: int) -> None:
        """Implements `SlotEngine.remove`; the slot keeps its content for the same prefix."""
        self._slots[slot].is_running = False

    def top_logprobs(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Implements `SlotEngine.top_logprobs`."""
        return self.engine.top_logprobs(logits, k)

    def exclusive_threads(self) -> contextlib.AbstractContextManager[None]:
        """Implements `SlotEngine.exclusive_threads`."""
        return single_openmp_thread()

    def _prompt_parts(self, tokens: Mapping[int, int], limit: int | None) -> list[tuple[int, int]]:
        """Slots and numbers of tokens of prompts to read, the oldest prompts first."""
        waiting = [
            (item.used, index)
            for index, item in enumerate(self._slots)
            if item.is_running and index not in tokens and item.num_cached < len(item.ids)
        ]
        parts = []
        for _, index in sorted(waiting):
            count = len(self._slots[index].ids) - self._slots[index].num_cached
            if limit is not None:
                count = min(count, limit)
                limit -= count
            if count:
                parts.append((index, count))
                self.num_read += count
        return parts

    def _longest_prefix(self, prompt: list[int]) -> tuple[int, int]:
        """The slot whose content begins like the prompt, and the number of equal tokens.

        The last token of the prompt is read in any case: its logits are not stored.
        """
        best, length = -1, 0
        if not self.cache.can_reuse:
            return best, length
        limit = len(prompt) - 1
        for index, item in enumerate(self._slots):
            end = min(limit, item.num_cached)
            if end <= length or item.ids[:length] != prompt[:length]:
                continue
            equal = length
            while equal < end and item.ids[equal] == prompt[equal]:
                equal += 1
            if equal > length:
                best, length = index, equal
        return (best, length) if length >= _MIN_REUSED else (-1, 0)


def _calls(parts: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Parts in calls of at most `_MAX_TOKENS` tokens; a longer one is in several calls."""
    calls, room = list[list[tuple[int, int]]](), 0
    for index, count in parts:
        left = count
        while left:
            if not room:
                calls.append([])
                room = _MAX_TOKENS
            size = min(left, room)
            calls[-1].append((index, size))
            left, room = left - size, room - size
    return calls
