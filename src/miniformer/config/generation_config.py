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
        num_beams: hypotheses that beam search keeps of each text; 1: none is searched.
        length_penalty: beam search divides a log-probability by length ** length_penalty; above 0
            it favours longer texts.
    """

    max_new_tokens: int = option(50, low=1)
    temperature: float = option(1.0, low=0.0)
    top_k: int | None = option(None, low=1)
    top_p: float | None = option(None, low=0.0, high=1.0)
    eos_id: int | None = option(None, low=0)
    seed: int | None = option(None, low=0, high=2**63 - 1)
    num_beams: int = option(1, low=1)
    length_penalty: float = 1.0

    def cross_check(self) -> list[str]:
        """Problems between fields, each with its fix."""
        problems = []
        if self.top_p == 0:
            problems.append(
                "top_p must be above 0, not 0; for the likeliest token use temperature=0"
            )
        if self.num_beams > 1:
            if self.temperature not in (0.0, 1.0):
                problems.append(
                    f"num_beams={self.num_beams} searches what is likeliest and samples nothing; "
                    f"set temperature=0, not {self.temperature}, or num_beams=1"
                )
            problems += [
                f"num_beams={self.num_beams} samples nothing; leave {name} out"
                for name in ("top_k", "top_p")
                if getattr(self, name) is not None
            ]
        return problems
