"""Speculative decoding: several tokens are guessed, and one pass of the model judges them all.

A guess is kept as far as the model itself would have drawn it, so that greedy text is the same and
sampled text has the same distribution (Leviathan et al. 2023, Chen et al. 2023): a guess x of a
draft's distribution q is kept with probability min(1, p(x) / q(x)); where it is not, the token is
drawn from what p has more than q.

    text so far | a b c         guesses | d e f
    the model reads   c d e f   and has  d' e' f' g'   d = d', e != e': the text goes on  d e'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from miniformer.config import GenerationConfig, UserError
from miniformer.generation.logits_processors import Processor, apply_processors, build_processors
from miniformer.generation.loop import DecodingState, StepOutput, StopFn
from miniformer.generation.sampling import sampling_distribution


class Draft(Protocol):
    """What makes guesses."""

    def propose(self, tokens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """The tokens after these, int [T]: at most `count`, and maybe none.

        Returns:
            int [n], and the distributions that they were drawn from, float32 [n, V]; None: each was
            certain.
        """


@dataclasses.dataclass
class SpeculationStats:
    """How good guesses were.

    Args:
        passes: of the model.
        guessed: tokens that were guessed.
        kept: of these, how many were kept.
        written: tokens in all.
    """

    num_passes: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_generated_tokens: int = 0

    def __str__(self) -> str:
        share = self.num_accepted_tokens / max(1, self.num_draft_tokens)
        return (
            f"{self.num_generated_tokens / max(1, self.num_passes):.2f} tokens a pass; "
            f"{self.num_accepted_tokens} of {self.num_draft_tokens} guesses kept ({share:.0%})"
        )


@dataclasses.dataclass
class Speculation:
    """How to guess.

    Args:
        draft: a smaller model of the same vocabulary; None: what stood in prompt and text before is
            looked up.
        ahead: tokens guessed at once, at most.
        tally: how good the guesses were.
    """

    draft: Any = None
    num_draft_tokens: int = 4
    stats: SpeculationStats = dataclasses.field(default_factory=SpeculationStats)

    def __post_init__(self) -> None:
        if self.num_draft_tokens < 1:
            raise UserError(f"ahead must be at least 1, not {self.num_draft_tokens}")

    def make_draft(
        self,
        options: GenerationConfig,
        vocab_size: int,
        source: Tensor | None,
        generator: torch.Generator | None,
    ) -> Draft:
        """What makes the guesses of one text.

        Raises:
            UserError: the draft has another vocabulary, or is of another kind than the model.
        """
        if self.draft is None:
            return PromptLookupDraft()
        config = self.draft.config
        if config.vocab_size != vocab_size:
            raise UserError(
                f"the draft has a vocabulary of {config.vocab_size} tokens, the model one of "
                f"{vocab_size}; they must be the same"
            )
        if hasattr(self.draft, "encode") != (source is not None):
            raise UserError("draft and model must both be causal, or both seq2seq")
        memory = [] if source is None else [self.draft.encode(source)]
        return ModelDraft(self.draft, options, memory, generator)


class PromptLookupDraft:
    """Guesses what came after the last tokens where they stood before (prompt lookup).

    Args:
        longest: tokens that are looked for, at most; fewer where these were not there.
    """

    def __init__(self, max_ngram_size: int = 3) -> None:
        self.max_ngram_size = max_ngram_size

    def propose(self, tokens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """See `Draft`."""
        for size in range(min(self.max_ngram_size, len(tokens) - 1), 0, -1):
            runs = tokens.unfold(0, size, 1)[:-1]  # [T - size, size], the last one is itself
            places = (runs == tokens[-size:]).all(-1).nonzero()
            if len(places):
                after = int(places[-1]) + size
                return tokens[after : after + num_tokens], None
        return tokens[:0], None


class ModelDraft:
    """Guesses as a smaller model goes on, by the same rules as the large one.

    Args:
        model: of the same vocabulary, in eval mode.
        options: how tokens are chosen.
        memory: its own of the source, where the large model is a decoder.
        generator: source of randomness.
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
        self.cached_tokens: list[int] = []  # tokens in the cache

    def propose(self, tokens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """See `Draft`."""
        if self.cache is None:
            room = self.model.config.max_seq_len
            self.cache = self.model.new_cache(1, room, "full")
            self.cache.final_lengths.fill_(min(room, len(tokens) + self.options.max_new_tokens))
        num_tokens = min(num_tokens, self.model.config.max_seq_len - len(tokens))
        known = tokens.tolist()
        same = next((n for n, (a, b) in enumerate(zip(self.cached_tokens, known, strict=False)) if a != b),
                    min(len(self.cached_tokens), len(known)))  # fmt: skip
        same = min(same, len(known) - 1)  # the last one is read again, for its logits
        if same < len(self.cached_tokens):
            self.cache.trim(same)
        new, guesses, drawn_from = tokens[same:], [], []
        self.cached_tokens = known
        for number in range(num_tokens):
            features = self.model.features(new[None], *self.memory, cache=self.cache)[:, -1]
            shares = sampling_distribution(self.model.logits(features), self.options)  # [1, V]
            new = torch.multinomial(shares, 1, generator=self.generator)[0]  # [1]
            guesses.append(new)
            drawn_from.append(shares)
            if number + 1 < num_tokens:
                self.cached_tokens = [*self.cached_tokens, int(new)]
        if not guesses:
            self.cached_tokens = known[:same]
            return tokens[:0], None
        return torch.cat(guesses), torch.cat(drawn_from)


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
    """As `decode`, of one text.

    Args:
        begun: the prompt; its cache is of kind full.
        draft: makes guesses.
        options, generator, processors, until: see `decode`.
        ahead: tokens guessed at once, at most.
        tally: where to count.
    """
    changes = build_processors(options, state.length, processors)
    text = state.sequences[0]  # prompt and what came after it
    text = text[text >= 0]
    logits = state.logits  # [1, V]: of the next token after the text
    guesses, shares = text[:0], None
    new: list[int] = []
    while True:
        stats.num_passes += 1
        for number in range(len(guesses) + 1):
            seen = torch.cat((text, guesses[:number]))[None]
            found = logits[number : number + 1]
            step = len(new) + 1
            allowed = sampling_distribution(
                apply_processors(changes, seen, found, step), options
            )  # [1, V]
            guess = guesses[number : number + 1]
            token, kept = _accept_or_resample(
                allowed, guess, None if shares is None else shares[number : number + 1], generator
            )
            stats.num_accepted_tokens += kept
            stats.num_generated_tokens += 1
            new.append(int(token))
            ended = new[-1] in options.eos_token_ids or (stop_fn is not None and stop_fn(new))
            log_p = float(found[0].float().log_softmax(-1)[token])
            yield StepOutput([0], [int(token)], [log_p], [ended])
            if ended or step == options.max_new_tokens:
                return
            if not kept:
                break
        # The pass read the text without its last token, and guesses that were not kept, too.
        text = torch.cat((text, guesses[:number], token))
        state.cache.trim(len(text) - 1)
        left = options.max_new_tokens - len(new)
        guesses, shares = (
            draft.propose(text, min(num_draft_tokens, left - 1)) if left > 1 else (text[:0], None)
        )
        stats.num_draft_tokens += len(guesses)
        inputs = torch.cat((text[-1:], guesses))[None]
        features = state.model.features(inputs, *state.memory, cache=state.cache)  # [1, 1 + n, D]
        logits = state.model.logits(features[0])  # [1 + n, V]


def _accept_or_resample(
    target_probs: Tensor,
    draft_token: Tensor,
    draft_probs: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, bool]:
    """The next token, int [1], and whether it is the guess.

    Args:
        allowed: the model's distribution, [1, V].
        guess: int [1], or [0]: there is none.
        shares: what it was drawn from, [1, V]; None: it was certain.
        generator: source of randomness.
    """
    if len(draft_token):
        p = float(target_probs[0, draft_token])
        q = 1.0 if draft_probs is None else float(draft_probs[0, draft_token])
        if p >= q or float(torch.rand(1, generator=generator, device=target_probs.device)) < p / q:
            return draft_token, True
        certain = torch.zeros_like(target_probs).index_fill_(1, draft_token, 1.0)
        rest = (target_probs - (certain if draft_probs is None else draft_probs)).clamp_min(0)
        # Where rounding leaves nothing, both are the same.
        target_probs = rest if bool(rest.sum() > 0) else target_probs
    return torch.multinomial(target_probs, 1, generator=generator)[0], False
