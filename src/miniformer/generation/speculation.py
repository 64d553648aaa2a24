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
from miniformer.generation.decoding import Begun, Step, Until
from miniformer.generation.processors import Processor, process, processors_of
from miniformer.generation.sampling import distribution


class Draft(Protocol):
    """What makes guesses."""

    def guess(self, tokens: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """The tokens after these, int [T]: at most `count`, and maybe none.

        Returns:
            int [n], and the distributions that they were drawn from, float32 [n, V]; None: each was
            certain.
        """


@dataclasses.dataclass
class Tally:
    """How good guesses were.

    Args:
        passes: of the model.
        guessed: tokens that were guessed.
        kept: of these, how many were kept.
        written: tokens in all.
    """

    passes: int = 0
    guessed: int = 0
    kept: int = 0
    written: int = 0

    def __str__(self) -> str:
        share = self.kept / max(1, self.guessed)
        return (
            f"{self.written / max(1, self.passes):.2f} tokens a pass; "
            f"{self.kept} of {self.guessed} guesses kept ({share:.0%})"
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
    ahead: int = 4
    tally: Tally = dataclasses.field(default_factory=Tally)

    def __post_init__(self) -> None:
        if self.ahead < 1:
            raise UserError(f"ahead must be at least 1, not {self.ahead}")

    def begin(
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
            return Lookup()
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


class Lookup:
    """Guesses what came after the last tokens where they stood before (prompt lookup).

    Args:
        longest: tokens that are looked for, at most; fewer where these were not there.
    """

    def __init__(self, longest: int = 3) -> None:
        self.longest = longest

    def guess(self, tokens: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """See `Draft`."""
        for size in range(min(self.longest, len(tokens) - 1), 0, -1):
            runs = tokens.unfold(0, size, 1)[:-1]  # [T - size, size], the last one is itself
            places = (runs == tokens[-size:]).all(-1).nonzero()
            if len(places):
                after = int(places[-1]) + size
                return tokens[after : after + count], None
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
        self.read: list[int] = []  # tokens in the cache

    def guess(self, tokens: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """See `Draft`."""
        if self.cache is None:
            room = self.model.config.max_seq_len
            self.cache = self.model.new_cache(1, room, "full")
            self.cache.spans.fill_(min(room, len(tokens) + self.options.max_new_tokens))
        count = min(count, self.model.config.max_seq_len - len(tokens))
        known = tokens.tolist()
        same = next((n for n, (a, b) in enumerate(zip(self.read, known, strict=False)) if a != b),
                    min(len(self.read), len(known)))  # fmt: skip
        same = min(same, len(known) - 1)  # the last one is read again, for its logits
        if same < len(self.read):
            self.cache.trim(same)
        new, guesses, drawn_from = tokens[same:], [], []
        self.read = known
        for number in range(count):
            features = self.model.features(new[None], *self.memory, cache=self.cache)[:, -1]
            shares = distribution(self.model.logits(features), self.options)  # [1, V]
            new = torch.multinomial(shares, 1, generator=self.generator)[0]  # [1]
            guesses.append(new)
            drawn_from.append(shares)
            if number + 1 < count:
                self.read = [*self.read, int(new)]
        if not guesses:
            self.read = known[:same]
            return tokens[:0], None
        return torch.cat(guesses), torch.cat(drawn_from)


def speculate(
    begun: Begun,
    draft: Draft,
    options: GenerationConfig,
    *,
    ahead: int,
    tally: Tally,
    generator: torch.Generator | None = None,
    processors: Sequence[Processor] = (),
    until: Until | None = None,
) -> Iterator[Step]:
    """As `decode`, of one text.

    Args:
        begun: the prompt; its cache is of kind full.
        draft: makes guesses.
        options, generator, processors, until: see `decode`.
        ahead: tokens guessed at once, at most.
        tally: where to count.
    """
    changes = processors_of(options, begun.length, processors)
    text = begun.written[0]  # prompt and what came after it
    text = text[text >= 0]
    logits = begun.logits  # [1, V]: of the next token after the text
    guesses, shares = text[:0], None
    new: list[int] = []
    while True:
        tally.passes += 1
        for number in range(len(guesses) + 1):
            seen = torch.cat((text, guesses[:number]))[None]
            found = logits[number : number + 1]
            step = len(new) + 1
            allowed = distribution(process(changes, seen, found, step), options)  # [1, V]
            guess = guesses[number : number + 1]
            token, kept = _judge(
                allowed, guess, None if shares is None else shares[number : number + 1], generator
            )
            tally.kept += kept
            tally.written += 1
            new.append(int(token))
            ended = new[-1] in options.ends or (until is not None and until(new))
            log_p = float(found[0].float().log_softmax(-1)[token])
            yield Step([0], [int(token)], [log_p], [ended])
            if ended or step == options.max_new_tokens:
                return
            if not kept:
                break
        # The pass read the text without its last token, and guesses that were not kept, too.
        text = torch.cat((text, guesses[:number], token))
        begun.cache.trim(len(text) - 1)
        left = options.max_new_tokens - len(new)
        guesses, shares = draft.guess(text, min(ahead, left - 1)) if left > 1 else (text[:0], None)
        tally.guessed += len(guesses)
        inputs = torch.cat((text[-1:], guesses))[None]
        features = begun.model.features(inputs, *begun.memory, cache=begun.cache)  # [1, 1 + n, D]
        logits = begun.model.logits(features[0])  # [1 + n, V]


def _judge(
    allowed: Tensor, guess: Tensor, shares: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, bool]:
    """The next token, int [1], and whether it is the guess.

    Args:
        allowed: the model's distribution, [1, V].
        guess: int [1], or [0]: there is none.
        shares: what it was drawn from, [1, V]; None: it was certain.
        generator: source of randomness.
    """
    if len(guess):
        p = float(allowed[0, guess])
        q = 1.0 if shares is None else float(shares[0, guess])
        if p >= q or float(torch.rand(1, generator=generator, device=allowed.device)) < p / q:
            return guess, True
        certain = torch.zeros_like(allowed).index_fill_(1, guess, 1.0)
        rest = (allowed - (certain if shares is None else shares)).clamp_min(0)
        # Where rounding leaves nothing, both are the same.
        allowed = rest if bool(rest.sum() > 0) else allowed
    return torch.multinomial(allowed, 1, generator=generator)[0], False
