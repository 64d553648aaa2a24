"""GenerationConfig: how the next token is chosen and when to stop."""

from __future__ import annotations

import dataclasses

from miniformer.config.strict import StrictConfig, option


@dataclasses.dataclass(frozen=True)
class GenerationConfig(StrictConfig):
    """Decoding settings; saved in the model directory as its defaults.

    Args:
        max_new_tokens: tokens to add to each prompt at most.
        temperature: logits are divided by it before sampling; 0: always the likeliest token
            (greedy).
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the fewest tokens that hold at least this probability (nucleus sampling,
            Holtzman et al. 2019).
        eos_id: token at which a sequence ends; it is not part of the text.
        seed: makes sampling repeatable; null: a new draw each time.
    """

    max_new_tokens: int = option(50, low=1)
    temperature: float = option(1.0, low=0.0)
    top_k: int | None = option(None, low=1)
    top_p: float | None = option(None, low=0.0, high=1.0)
    eos_id: int | None = option(None, low=0)
    seed: int | None = option(None, low=0, high=2**63 - 1)

    def cross_check(self) -> list[str]:
        """Problems between fields, each with its fix."""
        if self.top_p == 0:
            return ["top_p must be above 0, not 0; for the likeliest token use temperature=0"]
        return []
