"""GenerationConfig: decoding settings."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

from miniformer.config.errors import ConfigError, NoEffectWarning
from miniformer.config.renames import GENERATION_FIELDS
from miniformer.config.strict import StrictConfig, option

_CONSTRAINTS = ("regex", "choices", "json_schema")


@dataclasses.dataclass(frozen=True)
class GenerationConfig(StrictConfig):
    """Decoding settings; a model directory stores its defaults.

    Logits go through, in this order: penalties and bans, temperature, top_k, top_p, min_p. The
    order is that of Hugging Face and vLLM.

    Args:
        max_new_tokens: maximum number of new tokens per prompt.
        context_shift: drop the start of a prompt that is longer than the context; when a text
            reaches the end of the context, prefill its last half again and continue.
        min_new_tokens: new tokens before EOS is allowed.
        temperature: divisor of the logits before sampling; 0: greedy decoding.
        top_k: sample from the k most likely tokens only.
        top_p: sample from the fewest tokens that have at least this probability together (nucleus
            sampling, Holtzman et al. 2019).
        min_p: sample from tokens with at least this share of the highest probability (Nguyen et al.
            2024).
        repetition_penalty: divisor of positive logits, and factor of negative logits, of tokens in
            the prompt or text (CTRL, Keskar et al. 2019); 1: off.
        frequency_penalty: subtracted from a token's logit for each time it was generated.
        presence_penalty: subtracted from a token's logit if it was generated.
        no_repeat_ngram_size: n-grams of this size occur at most once in prompt and text; null: off.
        bad_words_ids: sequences of token ids that are never generated, such as [[17], [4, 5]].
        logits_processors: registered logits processors and their options, such as
            [{"type": "my_bias", "strength": 2}], after penalties and bans.
        eos_id: EOS token; it is not part of the text.
        stop_token_ids: more EOS tokens.
        stop_strings: strings before which the text ends. They need a tokenizer, so a `Pipeline`.
        regex: regular expression that the text must match; like choices and json_schema it needs a
            tokenizer and the extra miniformer[constrain].
        choices: the text must be one of these strings.
        json_schema: JSON schema that the text must match.
        weight_dtype: dtype of weights for decoding on a CPU: float32, bf16, or int8 or int4 with a
            scale per 32 weights. Fewer bytes take less time. stored: the type in which the model
            directory has each matrix, such as int8 in one that `quantize` wrote.
        cache_kind: kind of key-value cache, with which the modules of the model compute all steps:
            window stores the window of layers that have one, full all tokens, int8 a byte for each
            value; null: that of the fastest implementation.
        cuda_graph: on an NVIDIA GPU, capture a decoding step as a CUDA graph and replay it; for
            models of built-in parts. Each step attends to the full length of the cache.
        seed: seed of sampling. A text depends on it, on the prompt, and on the indices of the
            prompt and of the continuation, but not on other prompts; null: random.
        num_return_sequences: continuations per prompt; with beam search the best ones.
        num_beams: beams per prompt; 1: no beam search.
        length_penalty: beam search divides log-probabilities by the length to this power; above 0
            it prefers longer texts.
        length_normalization: the length: tokens, or gnmt: (5 + tokens) / 6 (Wu et al. 2016).
        num_beam_groups: groups of beams that should differ (diverse beam search, Vijayakumar et al.
            2016).
        diversity_penalty: subtracted from a token's log-probability for each beam of an earlier
            group that selected it in the same step.
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
    logits_processors: list[dict[str, Any]] | None = option(None, kind="logits_processor")
    eos_id: int | None = option(None, low=0)
    stop_token_ids: list[int] | None = None
    stop_strings: list[str] | None = None
    regex: str | None = None
    choices: list[str] | None = None
    json_schema: dict[str, Any] | None = None
    weight_dtype: str = option("stored", choices=("stored", "float32", "bf16", "int8", "int4"))
    cache_kind: str | None = option(None, kind="cache")
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
        """EOS tokens: eos_id and stop_token_ids."""
        return [*([] if self.eos_id is None else [self.eos_id]), *(self.stop_token_ids or [])]

    @property
    def converts_weights(self) -> bool:
        """True if decoding computes with another type of weights than that of the model."""
        return self.weight_dtype not in ("stored", "float32")

    @property
    def constraint(self) -> str | None:
        """Name of the field that constrains the text, if any."""
        return next((name for name in _CONSTRAINTS if getattr(self, name) is not None), None)

    def override(self, options: Mapping[str, Any], *, stacklevel: int = 3) -> GenerationConfig:
        """Replaces fields by `options`, under current or former names.

        Beam search takes its sampling options from `options` only.

        Args:
            options: values by field.
            stacklevel: frames up to the one that warnings name.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        options, problems = self.current_names(options)
        if problems:
            raise ConfigError(type(self).__name__, problems)
        defaults = dataclasses.asdict(self)
        beams = options.get("num_beams")
        if isinstance(beams, int) and beams > 1:
            defaults |= {"temperature": 0.0, "top_k": None, "top_p": None, "min_p": None}
        config = self.from_dict({**defaults, **options})
        for name in ("top_k", "top_p", "seed") if config.temperature == 0 else ():
            if options.get(name) is not None:
                message = f"{name}={options[name]} has no effect with temperature=0"
                warnings.warn(message, NoEffectWarning, stacklevel=stacklevel)
        return config

    def cross_check(self) -> list[str]:
        """Conflicts between fields, each with its fix."""
        problems = []
        if self.top_p == 0:
            problems.append("top_p must be above 0, not 0; for greedy decoding use temperature=0")
        if self.min_new_tokens > self.max_new_tokens:
            problems.append(
                f"min_new_tokens={self.min_new_tokens} is above "
                f"max_new_tokens={self.max_new_tokens}; lower it"
            )
        if self.bad_words_ids is not None and not all(self.bad_words_ids):
            problems.append(
                "bad_words_ids must hold sequences of one token or more, such as [[17], [4, 5]]"
            )
        if self.stop_strings is not None and not all(self.stop_strings):
            problems.append("stop_strings must hold strings of one character or more")
        constraints = [name for name in _CONSTRAINTS if getattr(self, name) is not None]
        if len(constraints) > 1:
            problems.append(f"{' and '.join(constraints)} are both constraints; leave one out")
        if self.cache_kind is not None and (self.cuda_graph or self.converts_weights):
            name = "cuda_graph=true" if self.cuda_graph else f"weight_dtype={self.weight_dtype}"
            problems.append(
                f"{name} has a cache of its own; leave cache_kind={self.cache_kind} out"
            )
        if self.choices is not None and (not self.choices or not all(self.choices)):
            problems.append("choices must hold strings of one character or more")
        return problems + (
            self._beam_search_problems() if self.num_beams > 1 else self._sampling_problems()
        )

    def _beam_search_problems(self) -> list[str]:
        problems = []
        if self.temperature not in (0.0, 1.0):
            problems.append(
                f"num_beams={self.num_beams} is beam search, which does not sample; "
                f"set temperature=0, not {self.temperature}, or num_beams=1"
            )
        problems += [
            f"num_beams={self.num_beams} does not sample; leave {name} out"
            for name in ("top_k", "top_p", "min_p", "seed")
            if getattr(self, name) is not None
        ]
        if self.num_return_sequences > self.num_beams:
            problems.append(
                f"num_return_sequences={self.num_return_sequences} is above "
                f"num_beams={self.num_beams}; raise num_beams"
            )
        if self.num_beams % self.num_beam_groups:
            problems.append(
                f"num_beam_groups={self.num_beam_groups} does not divide num_beams={self.num_beams}"
            )
        if self.diversity_penalty and self.num_beam_groups == 1:
            problems.append("diversity_penalty needs groups; set num_beam_groups to 2 or more")
        return problems

    def _sampling_problems(self) -> list[str]:
        problems = [
            f"{name} is an option of beam search; set num_beams to 2 or more, or leave it out"
            for name, default in (("num_beam_groups", 1), ("diversity_penalty", 0.0))
            if getattr(self, name) != default
        ]
        if self.num_return_sequences > 1 and self.temperature == 0:
            problems.append(
                f"num_return_sequences={self.num_return_sequences} would all be equal with "
                "temperature=0; raise it, or set num_beams"
            )
        return problems
