"""Speculative decoding: a draft proposes several tokens, and one model pass verifies them.

Draft tokens are accepted so that greedy output is unchanged and sampled output has the same
distribution (Leviathan et al. 2023, Chen et al. 2023). A draft token x of the draft distribution q
is accepted with probability min(1, p(x) / q(x)). After a rejection the token is sampled from the
normalized positive part of p - q.

    tokens so far | a b c       draft | d e f
    the model reads   c d e f   and predicts  d' e' f' g';  d = d', e != e': the result is  d e'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, UserError
from miniformer.generation.layer_draft import PREFIX, LayerDraft, parse_layers
from miniformer.generation.logits_processors import (
    Processor,
    apply_processors,
    build_processors,
    check_finite,
)
from miniformer.generation.loop import DecodingState, StepOutput, StopFn, token_logprobs
from miniformer.generation.runtime import Runtime
from miniformer.generation.sampling import sampling_distribution


class Draft(Protocol):
    """Source of draft tokens."""

    def propose(self, tokens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Proposes at most `num_tokens` tokens, or none, to follow `tokens`, int [T].

        Returns:
            int [n], and the distributions they were sampled from, float32 [n, V]; None: the tokens
            are deterministic.
        """


_LAYER_DRAFT_TOKENS = 3  # fastest in benchmarks/layer_drafts.py


@dataclasses.dataclass
class SpeculationStats:
    """Statistics of speculative decoding.

    Args:
        num_passes: model passes.
        num_draft_tokens: proposed tokens.
        num_accepted_tokens: accepted draft tokens.
        num_generated_tokens: new tokens in total.
    """

    num_passes: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_generated_tokens: int = 0

    def __str__(self) -> str:
        acceptance_rate = self.num_accepted_tokens / max(1, self.num_draft_tokens)
        return (
            f"{self.num_generated_tokens / max(1, self.num_passes):.2f} tokens per pass; "
            f"{self.num_accepted_tokens} of {self.num_draft_tokens} draft tokens accepted "
            f"({acceptance_rate:.0%})"
        )


@dataclasses.dataclass
class Speculation:
    """Settings of speculative decoding.

    Args:
        draft: smaller model with the same vocabulary; None: prompt lookup, or `num_layers`.
        num_draft_tokens: maximum number of draft tokens per pass.
        num_layers: draft with this many of the first layers of the model itself; see `LayerDraft`.
        stats: statistics, updated during generation.
    """

    draft: Any = None
    num_draft_tokens: int = 4
    num_layers: int | None = None
    stats: SpeculationStats = dataclasses.field(default_factory=SpeculationStats)

    def __post_init__(self) -> None:
        if self.num_draft_tokens < 1:
            raise UserError(f"num_draft_tokens must be at least 1, not {self.num_draft_tokens}")
        if self.draft is not None and self.num_layers is not None:
            raise UserError("draft and num_layers are two drafts; leave one out")

    @classmethod
    def from_draft(cls, draft: Any) -> Speculation | None:
        """Converts the argument `draft` of `Pipeline.generate`.

        Raises:
            UserError: it is not a Pipeline, a Speculation, "lookup", "layers:N" or None.
        """
        if draft is None or isinstance(draft, Speculation):
            return draft
        if hasattr(draft, "model"):
            return cls(draft.model)
        if draft == "lookup":
            return cls()
        if isinstance(draft, str) and draft.startswith(PREFIX):
            return cls(num_draft_tokens=_LAYER_DRAFT_TOKENS, num_layers=parse_layers(draft))
        raise UserError(
            f'draft must be a Pipeline, a Speculation, "lookup" or "layers:N", not {draft!r}'
        )

    def make_draft(
        self,
        options: GenerationConfig,
        model: Any,
        source: Tensor | None,
        generator: torch.Generator | None,
        runtime: Runtime,
    ) -> Draft:
        """Creates the draft of one sequence.

        Args:
            options: sampling options.
            model: the model that verifies.
            source: encoder input of the sequence.
            generator: random generator.
            runtime: runtime of the sequence after prefill.

        Raises:
            UserError: vocabulary or architecture of the draft do not match the model, or it has no
                more than `num_layers` layers.
        """
        if self.num_layers is not None:
            return LayerDraft(model, self.num_layers, runtime, options, generator)
        if self.draft is None:
            return PromptLookupDraft()
        config, vocab_size = self.draft.config, model.config.vocab_size
        if config.vocab_size != vocab_size:
            raise UserError(
                f"the draft has a vocabulary of {config.vocab_size} tokens, the model one of "
                f"{vocab_size}; they must be equal"
            )
        if hasattr(self.draft, "encode") != (source is not None):
            raise UserError("draft and model must both be causal, or both seq2seq")
        memory = [] if source is None else [self.draft.encode(source)]
        return ModelDraft(self.draft, options, memory, generator)


class PromptLookupDraft:
    """Prompt lookup: proposes the tokens that followed the last occurrence of the last n-gram.

    Args:
        max_ngram_size: longest n-gram to search for; shorter ones follow.
    """

    def __init__(self, max_ngram_size: int = 3) -> None:
        self.max_ngram_size = max_ngram_size

    def propose(self, tokens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Implements `Draft.propose`."""
        for size in range(min(self.max_ngram_size, len(tokens) - 1), 0, -1):
            ngrams = tokens.unfold(0, size, 1)[:-1]  # [T - size, size], without the last one
            matches = (ngrams == tokens[-size:]).all(-1).nonzero()
            if len(matches):
                start = int(matches[-1]) + size
                return tokens[start : start + num_tokens], None
        return tokens[:0], None


class ModelDraft:
    """Samples draft tokens from a smaller model.

    Args:
        model: model with the same vocabulary, in eval mode.
        options: sampling options.
        memory: encoder outputs of an encoder-decoder draft.
        generator: random generator.
    """

    def __init__(
        self,
        model: Any,
        options: GenerationConfig,
        memory: Sequence[Any] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        self.model, self.options = model, options
        self.memory, self.generator = list(memory), generator
        self.cache: Any = None
        self.cached_tokens: list[int] = []

    def propose(self, tokens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Implements `Draft.propose`."""
        max_seq_len = self.model.config.max_seq_len
        if self.cache is None:
            self.cache = self.model.new_cache(1, max_seq_len, "full")
            final_length = min(max_seq_len, len(tokens) + self.options.max_new_tokens)
            self.cache.final_lengths.fill_(final_length)
        num_tokens = min(num_tokens, max_seq_len - len(tokens))
        token_ids = tokens.tolist()
        # The last token is always an input: its logits are needed.
        pairs = zip(self.cached_tokens, token_ids[:-1], strict=False)
        prefix_length = [*(cached == current for cached, current in pairs), False].index(False)
        if prefix_length < len(self.cached_tokens):
            self.cache.trim(prefix_length)
        if num_tokens <= 0:
            self.cached_tokens = token_ids[:prefix_length]
            return tokens[:0], None
        inputs, draft_tokens, draft_probs = tokens[prefix_length:], [], []
        self.cached_tokens = token_ids
        for n in range(num_tokens):
            features = self.model.features(inputs[None], *self.memory, cache=self.cache)[:, -1]
            probs = sampling_distribution(self.model.logits(features), self.options)  # [1, V]
            inputs = torch.multinomial(probs, 1, generator=self.generator)[0]  # [1]
            draft_tokens.append(inputs)
            draft_probs.append(probs)
            if n + 1 < num_tokens:
                self.cached_tokens = [*self.cached_tokens, int(inputs)]
        return torch.cat(draft_tokens), torch.cat(draft_probs)


def speculate(
    state: DecodingState,
    draft: Draft,
    options: GenerationConfig,
    *,
    num_draft_tokens: int,
    stats: SpeculationStats,
    generator: torch.Generator | None = None,
    processors: Sequence[Processor] = (),
    stop_fn: StopFn | None = None,
) -> Iterator[StepOutput]:
    """Speculative counterpart of `decode` for one sequence.

    Args:
        state: state after prefill with `trimmable`.
        draft: source of draft tokens.
        options, generator, processors, stop_fn: see `decode`.
        num_draft_tokens: maximum number of draft tokens per pass.
        stats: statistics to update.
    """
    all_processors = build_processors(options, state.length, processors)
    is_greedy = options.temperature == 0 and not all_processors
    text = state.sequences[0]  # prompt and new tokens
    text = text[text >= 0]
    logits = state.logits  # [1, V], of the next token
    draft_tokens, draft_probs = text[:0], None
    new_tokens: list[int] = []
    while True:
        stats.num_passes += 1
        drafted = draft_tokens.tolist()
        best = _greedy_tokens(state.runtime, logits, len(new_tokens) + 1) if is_greedy else []
        for n in range(len(drafted) + 1):
            step = len(new_tokens) + 1
            if is_greedy:
                token_id, logprob = best[n]
                accepted = drafted[n : n + 1] == [token_id]
            else:
                context = torch.cat((text, draft_tokens[:n]))[None]
                token_logits = logits[n : n + 1]
                target_probs = sampling_distribution(
                    apply_processors(all_processors, context, token_logits, step), options
                )  # [1, V]
                token, accepted = _accept_or_resample(
                    target_probs,
                    draft_tokens[n : n + 1],
                    None if draft_probs is None else draft_probs[n : n + 1],
                    generator,
                )
                token_id = int(token)
                logprob = float(token_logits[0].float().log_softmax(-1)[token])
            stats.num_accepted_tokens += accepted
            stats.num_generated_tokens += 1
            new_tokens.append(token_id)
            finished = token_id in options.eos_token_ids or (
                stop_fn is not None and stop_fn(new_tokens)
            )
            yield StepOutput([0], [token_id], [logprob], [finished])
            if finished or step == options.max_new_tokens:
                return
            if not accepted:
                break
        # The cache lacks the last token and may contain rejected draft tokens.
        text = torch.cat((text, draft_tokens[:n], text.new_tensor([token_id])))
        state.runtime.trim(len(text) - 1)
        remaining = options.max_new_tokens - len(new_tokens)
        draft_tokens, draft_probs = (
            draft.propose(text, min(num_draft_tokens, remaining - 1))
            if remaining > 1
            else (text[:0], None)
        )
        stats.num_draft_tokens += len(draft_tokens)
        inputs = torch.cat((text[-1:], draft_tokens))[None]
        logits = state.runtime.append(inputs)[0]  # [1 + n, V]


def _greedy_tokens(runtime: Runtime, logits: Tensor, step: int) -> list[tuple[int, float]]:
    """The most likely token of each row of logits, [N, V], with its log-probability.

    Raises:
        UserError: logits are not finite; see `check_finite`.
    """
    if runtime.fuses_top_logprobs:
        top, ids = runtime.top_logprobs(logits, 1)
        check_finite(top, step)
        return [*zip(ids[:, 0].tolist(), top[:, 0].tolist(), strict=True)]
    check_finite(logits.amax(-1), step)
    token = logits.argmax(-1)
    return [*zip(token.tolist(), token_logprobs(logits, token), strict=True)]


def _accept_or_resample(
    target_probs: Tensor,
    draft_token: Tensor,
    draft_probs: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, bool]:
    """The next token, int [1], and True if it is the draft token.

    Args:
        target_probs: distribution of the model, [1, V].
        draft_token: int [1], or [0]: no draft token.
        draft_probs: distribution of the draft, [1, V]; None: the draft is deterministic.
        generator: random generator.
    """
    if len(draft_token):
        p = float(target_probs[0, draft_token])
        q = 1.0 if draft_probs is None else float(draft_probs[0, draft_token])
        if p >= q or float(torch.rand(1, generator=generator, device=target_probs.device)) < p / q:
            return draft_token, True
        if draft_probs is None:
            draft_probs = torch.zeros_like(target_probs).index_fill_(1, draft_token, 1.0)
        residual = (target_probs - draft_probs).clamp_min(0)
        # If rounding leaves nothing, both distributions are equal.
        target_probs = residual if bool(residual.sum() > 0) else target_probs
    return torch.multinomial(target_probs, 1, generator=generator)[0], False
