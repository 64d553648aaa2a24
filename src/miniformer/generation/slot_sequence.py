"""Sequences of a `SlotDecoder`: their state and their tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from miniformer.config import GenerationConfig
from miniformer.generation.logits_processors import Processor
from miniformer.generation.loop import StopFn


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
    with_logprobs: bool
    num_top: int
    tokens: list[int] = dataclasses.field(default_factory=list)  # new ones
    logprobs: list[float] = dataclasses.field(default_factory=list)
    finished: bool = False
    top: list[tuple[int, float]] = dataclasses.field(default_factory=list)  # of the last token

    @property
    def final_length(self) -> int:
        """Tokens of the prompt and most new tokens."""
        return len(self.prompt) + self.options.max_new_tokens

    def add_token(self, token: int) -> None:
        """Appends a new token and finds out if it is the last."""
        self.tokens.append(token)
        self.finished = (
            token in self.options.eos_token_ids
            or len(self.tokens) == self.options.max_new_tokens
            or (self.stop_fn is not None and self.stop_fn(self.tokens))
        )
