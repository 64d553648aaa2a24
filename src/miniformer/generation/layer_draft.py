"""Draft tokens from the first layers of the model itself (LayerSkip, Elhoushi et al. 2024).

The final norm and the head read the output of layer N. The draft and the model share weights and
cache: keys and values of the first layers are computed once, and the verification of draft tokens
runs the other layers only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, UserError
from miniformer.generation.partial import check_num_layers
from miniformer.generation.runtime import Runtime
from miniformer.generation.sampling import sampling_distribution

PREFIX = "layers:"


def parse_layers(draft: str) -> int:
    """The N of `layers:N`.

    Raises:
        UserError: it is no number.
    """
    number = draft.removeprefix(PREFIX)
    if not number.isascii() or not number.isdecimal():
        raise UserError(f"draft {draft}: N of layers:N must be a number of layers, not {number!r}")
    return int(number)


class LayerDraft:
    """Drafts with the first layers, on the runtime of the sequence.

    Args:
        model: the model.
        num_layers: number of layers that draft.
        runtime: runtime of the sequence, which has all tokens but the last.
        options: sampling options.
        generator: random generator.

    Raises:
        UserError: the model has no more layers than that.
    """

    def __init__(
        self,
        model: Any,
        num_layers: int,
        runtime: Runtime,
        options: GenerationConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        check_num_layers(model, num_layers)
        self.num_layers, self.runtime = num_layers, runtime
        self.options, self.generator = options, generator

    def propose(self, tokens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Implements `Draft.propose`; greedy draft tokens are deterministic."""
        token, draft_tokens, draft_probs = tokens[-1:], [tokens[:0]], []
        for _ in range(num_tokens):
            logits = self.runtime.step_layers(token, self.num_layers)  # [1, V]
            if self.options.temperature == 0:
                token = logits.argmax(-1)
            else:
                probs = sampling_distribution(logits, self.options)
                token = torch.multinomial(probs, 1, generator=self.generator)[0]
                draft_probs.append(probs)
            draft_tokens.append(token)
        return torch.cat(draft_tokens), torch.cat(draft_probs) if draft_probs else None
