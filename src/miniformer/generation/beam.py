"""Beam search: the most likely continuations that a search of some width finds.

At each step every row keeps its N likeliest unended hypotheses, and apart from them the N best that
have ended. A row's search is over once no unended hypothesis can become one of the best any more,
so that stopping early changes nothing: log-probabilities only fall, which bounds what a hypothesis
can still score.

Letters: B rows, N beams, L new tokens at most, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.config import GenerationConfig


class Beams(NamedTuple):
    """Hypotheses of each row, the best first; where there are fewer, their score is -inf."""

    tokens: Tensor  # int [B, N, L], without what they were given
    lengths: Tensor  # int [B, N], the end of text included
    scores: Tensor  # float32 [B, N], log-probability over length ** length_penalty


class Search:
    """The state of a beam search, without its model.

    Args:
        rows: number B of rows.
        options: its width `num_beams`, `length_penalty`, `max_new_tokens` and `eos_id`.
        device: where logits are.
    """

    def __init__(self, rows: int, options: GenerationConfig, device: torch.device) -> None:
        self.options = options
        beams, longest = options.num_beams, options.max_new_tokens
        self.step = 0
        self.tokens = torch.zeros(rows, beams, longest, dtype=torch.long, device=device)
        self.running = torch.full((rows, beams), -torch.inf, device=device)
        self.running[:, 0] = 0.0  # all beams are one at first
        self.ended = Beams(
            torch.zeros_like(self.tokens),
            torch.zeros(rows, beams, dtype=torch.long, device=device),
            torch.full((rows, beams), -torch.inf, device=device),
        )
        self._offsets = torch.arange(rows, device=device)[:, None] * beams

    def advance(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the next token of every hypothesis.

        Args:
            logits: [B * N, V].

        Returns:
            For each row of the cache, int [B * N], the row that it goes on from, and its new token.
        """
        rows, beams = self.running.shape
        vocabulary = logits.shape[-1]
        log_p = logits.float().log_softmax(-1).view(rows, beams, vocabulary)
        totals = (self.running[..., None] + log_p).flatten(1)  # [B, N * V]
        # As many may end as there are beams, and as many more must be there to go on.
        top, index = totals.topk(min(2 * beams, totals.shape[1]))
        origin, token = index // vocabulary, index % vocabulary
        self.step += 1
        grown = self.tokens.gather(1, origin[..., None].expand(-1, -1, self.tokens.shape[-1]))
        grown[..., self.step - 1] = token
        ends = torch.full_like(token, self.step == self.options.max_new_tokens, dtype=torch.bool)
        if self.options.eos_id is not None:
            ends = ends | (token == self.options.eos_id)
        best = torch.arange(token.shape[1], device=token.device) < beams
        self._keep_ended(grown, top.masked_fill(~(ends & best), -torch.inf))
        self.running, chosen = top.masked_fill(ends, -torch.inf).topk(beams)
        self.tokens = grown.gather(1, chosen[..., None].expand_as(self.tokens))
        origin, token = origin.gather(1, chosen), token.gather(1, chosen)
        return (origin + self._offsets).flatten(), token.flatten()

    def over(self) -> bool:
        """Whether nothing that could still come changes the result."""
        if self.step == self.options.max_new_tokens:
            return True
        # A score is a sum that only falls over a divisor that grows with length, or, for a
        # penalty below 0, falls: at best the sum stays and the divisor is the larger one.
        divisors = [self._divisor(n) for n in (self.step + 1, self.options.max_new_tokens)]
        reachable = self.running[:, 0] / max(divisors)  # [B]
        return bool((self.ended.scores[:, -1] >= reachable).all())

    def _keep_ended(self, tokens: Tensor, totals: Tensor) -> None:
        lengths = torch.full(totals.shape, self.step, device=totals.device)
        both = Beams(
            torch.cat((self.ended.tokens, tokens), 1),
            torch.cat((self.ended.lengths, lengths), 1),
            torch.cat((self.ended.scores, totals / self._divisor(self.step)), 1),
        )
        scores, kept = both.scores.topk(self.running.shape[1])
        self.ended = Beams(
            both.tokens.gather(1, kept[..., None].expand_as(self.ended.tokens)),
            both.lengths.gather(1, kept),
            scores,
        )

    def _divisor(self, length: int) -> float:
        """What a hypothesis of some tokens is divided by: `length ** length_penalty`."""
        return float(length**self.options.length_penalty)


def beam_search(
    model: Any, ids: Tensor, mask: Tensor | None, options: GenerationConfig, memory: list[Any]
) -> Beams:
    """The best continuations of each row.

    Args:
        model: in eval mode; see `generate.Model`.
        ids: what each row begins with, int [B, T].
        mask: which of it is real, bool [B, T]; None: all.
        options: see `Search`.
        memory: the encoded source of a decoder, or nothing.
    """
    beams = options.num_beams
    search = Search(len(ids), options, ids.device)
    ids = ids.repeat_interleave(beams, 0)
    mask = None if mask is None else mask.repeat_interleave(beams, 0)
    memory = [
        type(each)(*(None if x is None else x.repeat_interleave(beams, 0) for x in each))
        for each in memory
    ]
    cache = model.new_cache(len(ids), ids.shape[1] + options.max_new_tokens)
    if mask is not None:  # a row's text is as long as it is alone
        cache.spans = mask.sum(1, keepdim=True) + options.max_new_tokens
    features = model.features(ids, *memory, mask, cache=cache)  # [B * N, T, D]
    while True:
        origin, token = search.advance(model.logits(features[:, -1]))
        if search.over():
            return search.ended
        cache.reorder(origin)
        features = model.features(token[:, None], *memory, cache=cache)  # [B * N, 1, D]
