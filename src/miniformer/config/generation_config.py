"""GenerationConfig: how the next token is chosen and when to stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from miniformer.config.renames import GENERATION_FIELDS
from miniformer.config.strict import StrictConfig, option


@dataclasses.dataclass(frozen=True)
class GenerationConfig(StrictConfig):
    """Decoding settings; saved in the model directory as its defaults.

    What is chosen goes through these in their order: penalties and bans, temperature, top_k, top_p,
    min_p. That of Hugging Face and vLLM is the same.

    Args:
        max_new_tokens: tokens to add to each prompt at most.
        context_shift: forget the beginning of what is longer than the model reads: of a prompt, and of a
            text that has grown so long, the last half is read again and gone on from.
        min_new_tokens: tokens to add before one that ends the text may come.
        temperature: logits are divided by it before sampling; 0: always the likeliest token
            (greedy).
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the fewest tokens that hold at least this probability (nucleus sampling,
            Holtzman et al. 2019).
        min_p: sample among tokens at least this many times as likely as the likeliest one (Nguyen
            et al. 2024).
        repetition_penalty: logits of tokens that are in prompt or text are divided by it where they
            are above 0, else multiplied with it (CTRL, Keskar et al. 2019); 1: none.
        frequency_penalty: taken off a token's logit for each time that it has been written.
        presence_penalty: taken off once it has been written at all.
        no_repeat_ngram_size: no run of so many tokens comes twice, in prompt and text; null: it may.
        bad_words_ids: runs of token ids that are never written, such as [[17], [4, 5]].
        eos_id: token at which a sequence ends; it is not part of the text.
        stop_token_ids: more of these.
        stop_strings: texts before which an answer ends; they need a tokenizer, so they are for a
            `Pipeline`.
        regex: a regular expression that an answer matches as a whole; like choices and json_schema
            it needs a tokenizer and the extra miniformer[constrain].
        choices: texts of which an answer is one.
        json_schema: a JSON schema that an answer keeps to.
        weight_dtype: how a model's weights are read while it writes on a CPU: float32 as they are, bf16,
            or int8 or int4 with a scale for each 32; fewer bytes are read in less time.
        cuda_graph: on an NVIDIA GPU, record a step once and play it back, without Python between
            its operations; of models of built-in parts. Each step reads the room of the whole text.
        seed: makes sampling repeatable: a text depends on it, on the prompt, and on the number of
            the prompt and of its continuation, but on no other prompt; null: a new draw each time.
        num_return_sequences: continuations of each prompt; of a beam search its best ones.
        num_beams: hypotheses that beam search keeps of each text; 1: none is searched.
        length_penalty: beam search divides a log-probability by its length to this power; above 0
            it favours longer texts.
        length_normalization: what counts as the length: tokens, or gnmt: (5 + tokens) / 6 (Wu et al. 2016).
        num_beam_groups: groups that num_beams is divided into, which are to differ (diverse beam
            search, Vijayakumar et al. 2016).
        diversity_penalty: taken off a token's log-probability for each beam of an earlier group
            that has chosen it at the same step.
    """

    former_names: ClassVar[Mapping[str, str]] = GENERATION_FIELDS

    max_new_tokens: int = option(50, low=1)
    context_shift: bool = False
    min_new_tokens: int = option(0, low=0)
    temperature: float = option(1.0, low=0.0)
    top_k: int | None = option(None, low=1)
    top_p: float | None = option(None, low=0.0, high=1.0)
    min_p: float | None = option(None, low=0.0, high=1.0)
    repetition_penalty: float = option(1.0, above=0.0)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int | None = option(None, low=1)
    bad_words_ids: list[list[int]] | None = None
    eos_id: int | None = option(None, low=0)
    stop_token_ids: list[int] | None = None
    stop_strings: list[str] | None = None
    regex: str | None = None
    choices: list[str] | None = None
    json_schema: dict[str, Any] | None = None
    weight_dtype: str = option("float32", choices=("float32", "bf16", "int8", "int4"))
    cuda_graph: bool = False
    seed: int | None = option(None, low=0, high=2**63 - 1)
    num_return_sequences: int = option(1, low=1)
    num_beams: int = option(1, low=1)
    length_penalty: float = 1.0
    length_normalization: str = option("tokens", choices=("tokens", "gnmt"))
    num_beam_groups: int = option(1, low=1)
    diversity_penalty: float = option(0.0, low=0.0)

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end a text: eos_id and stop_token_ids."""
        return [*([] if self.eos_id is None else [self.eos_id]), *(self.stop_token_ids or [])]

    @property
    def constraint(self) -> str | None:
        """The name of the field that says what form text has to keep to."""
        names = ("regex", "choices", "json_schema")
        return next((name for name in names if getattr(self, name) is not None), None)

    def cross_check(self) -> list[str]:
        """Problems between fields, each with its fix."""
        problems = []
        if self.top_p == 0:
            problems.append(
                "top_p must be above 0, not 0; for the likeliest token use temperature=0"
            )
        if self.min_new_tokens > self.max_new_tokens:
            problems.append(
                f"min_new_tokens={self.min_new_tokens} is above "
                f"max_new_tokens={self.max_new_tokens}; lower it"
            )
        if self.bad_words_ids is not None and not all(self.bad_words_ids):
            problems.append(
                "bad_words_ids must hold runs of one token or more, such as [[17], [4, 5]]"
            )
        if self.stop_strings is not None and not all(self.stop_strings):
            problems.append("stop_strings must hold texts of one character or more")
        forms = [n for n in ("regex", "choices", "json_schema") if getattr(self, n) is not None]
        if len(forms) > 1:
            problems.append(f"{' and '.join(forms)} both say what form text has; leave one out")
        if self.choices is not None and (not self.choices or not all(self.choices)):
            problems.append("choices must hold texts of one character or more")
        return problems + (
            self._beam_search_problems() if self.num_beams > 1 else self._sampling_problems()
        )

    def _beam_search_problems(self) -> list[str]:
        problems = []
        if self.temperature not in (0.0, 1.0):
            problems.append(
                f"num_beams={self.num_beams} searches what is likeliest and samples nothing; "
                f"set temperature=0, not {self.temperature}, or num_beams=1"
            )
        problems += [
            f"num_beams={self.num_beams} samples nothing; leave {name} out"
            for name in ("top_k", "top_p", "min_p", "seed")
            if getattr(self, name) is not None
        ]
        if self.num_return_sequences > self.num_beams:
            problems.append(
                f"num_return_sequences={self.num_return_sequences} are more than "
                f"num_beams={self.num_beams} find; raise num_beams"
            )
        if self.num_beams % self.num_beam_groups:
            problems.append(
                f"num_beam_groups={self.num_beam_groups} does not divide num_beams={self.num_beams}"
            )
        if self.diversity_penalty and self.num_beam_groups == 1:
            problems.append("diversity_penalty is between groups; set num_beam_groups to 2 or more")
        return problems

    def _sampling_problems(self) -> list[str]:
        problems = [
            f"{name} is of a beam search; set num_beams to 2 or more, or leave it out"
            for name, usual in (("num_beam_groups", 1), ("diversity_penalty", 0.0))
            if getattr(self, name) != usual
        ]
        if self.num_return_sequences > 1 and self.temperature == 0:
            problems.append(
                f"num_return_sequences={self.num_return_sequences} would all be the same with "
                "temperature=0; raise it, or set num_beams"
            )
        return problems
