"""Sequences of a `SlotDecoder`: their state, their prefill, and their tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from miniformer.config import GenerationConfig
from miniformer.generation.logits_processors import Processor
from miniformer.generation.loop import StopFn
from miniformer.generation.runtime import Runtime


class SlotToken(NamedTuple):
    """A new token of a sequence.

    Attributes:
        slot: slot of the sequence.
        token: token id; the last one may be EOS.
        logprob: log-probability under the model; None if not requested.
        finished: the sequence ends with this token: EOS, a stop function or `max_new_tokens`.
        top: the most likely tokens with their log-probabilities, as many as `add` asks for.
    """

    slot: int
    token: int
    logprob: float | None
    finished: bool
    top: list[tuple[int, float]]


@dataclasses.dataclass
class SlotSequence:
    """A sequence and the state of its sampling."""

    slot: int
    options: GenerationConfig
    processors: Sequence[Processor]
    stop_fn: StopFn | None
    uniform: Tensor | None  # [max_new_tokens]; None: greedy
    prompt: list[int]
    tokens: list[int] = dataclasses.field(default_factory=list)  # new ones
    logprobs: list[float] = dataclasses.field(default_factory=list)
    finished: bool = False
    num_top: int = 0
    top: list[tuple[int, float]] = dataclasses.field(default_factory=list)  # of the last token

    @property
    def cached_length(self) -> int:
        """Tokens in the cache: all but the last new one."""
        return len(self.prompt) + max(0, len(self.tokens) - 1)

    def add_token(self, token: int) -> None:
        """Appends a new token and finds out if it is the last."""
        self.tokens.append(token)
        self.finished = (
            token in self.options.eos_token_ids
            or len(self.tokens) == self.options.max_new_tokens
            or (self.stop_fn is not None and self.stop_fn(self.tokens))
        )


class PendingPrompt:
    """A prompt of a `SlotDecoder` whose prefill may be interrupted by steps of the others.

    The parts do not depend on the other sequences, so that the logits do not either.

    Args:
        sequence: the sequence, which has no slot yet.
        runtime: runtime of its own, without tokens.
        ids: prompt, int [1, T].
        capacity: columns of the cache.
        chunk: tokens of a call of `advance`; None: all.

    Attributes:
        logits: of the token after the prompt, [1, V], once it is prefilled.
    """

    def __init__(
        self,
        sequence: SlotSequence,
        runtime: Runtime,
        ids: Tensor,
        capacity: int,
        chunk: int | None = None,
    ) -> None:
        self.sequence, self.runtime, self.capacity = sequence, runtime, capacity
        self.logits = torch.empty(0)
        self._parts = [*torch.split(ids, chunk or max(1, ids.shape[1]), dim=1)]
        self._done = 0

    @torch.inference_mode()
    def advance(self) -> bool:
        """Prefills a chunk; returns True once the whole prompt is prefilled."""
        if self._done == len(self._parts):
            return True
        part = self._parts[self._done]
        if self._done:
            self.logits = self.runtime.append(part, last_only=True)[:, -1]
        else:
            later = sum(item.shape[1] for item in self._parts[1:])
            new = later + self.sequence.options.max_new_tokens
            self.logits = self.runtime.prefill(part, None, new, capacity=self.capacity)
        self._done += 1
        return self._done == len(self._parts)
