"""Beam search: the most likely continuations that a search of some width finds.

At each step every row keeps its N likeliest unended hypotheses, and apart from them the N best that
have ended. A row's search is over once no unended hypothesis can become one of the best any more,
so that stopping early changes nothing: log-probabilities only fall, which bounds what a hypothesis
can still score.

In diverse search (Vijayakumar et al. 2016) a row's beams are groups, each with a search of its own;
what earlier groups have just chosen costs a later one a penalty.

Letters: B rows, G groups, N beams of each, L new tokens at most, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from miniformer.config import GenerationConfig
from miniformer.generation.logits_processors import (
    Processor,
    apply_processors,
    build_processors,
    check_finite,
)
from miniformer.generation.loop import DecodingState, StopFn


class BeamHypotheses(NamedTuple):
    """Hypotheses of each row, the best first; where there are fewer, their score is -inf."""

    tokens: Tensor  # int [B, N, L], without what they were given
    logprobs: Tensor  # float32 [B, N, L], of each token
    lengths: Tensor  # int [B, N], the end of text included
    scores: Tensor  # float32 [B, N], log-probability by length

    def select(self, indices: Tensor) -> BeamHypotheses:
        """Those at `chosen`, int [B, any], of each row."""
        wide = indices[..., None].expand(-1, -1, self.tokens.shape[-1])
        return BeamHypotheses(
            self.tokens.gather(1, wide),
            self.logprobs.gather(1, wide),
            self.lengths.gather(1, indices),
            self.scores.gather(1, indices),
        )


class BeamSearch:
    """The state of a search, without its model.

    Args:
        rows: number B of rows.
        options: its width `num_beams`, `length_penalty`, `max_new_tokens` and so on.
        device: where logits are.
        until: whether a text of these tokens is complete, though no token says so.
    """

    def __init__(
        self,
        batch_size: int,
        options: GenerationConfig,
        device: torch.device,
        stop_fn: StopFn | None = None,
    ) -> None:
        self.options, self.stop_fn = options, stop_fn
        self.num_groups = options.num_beam_groups
        self.beams_per_group, longest = options.num_beams // self.num_groups, options.max_new_tokens
        self.step = 0
        many = batch_size * self.num_groups
        self.running = BeamHypotheses(
            torch.zeros(many, self.beams_per_group, longest, dtype=torch.long, device=device),
            torch.zeros(many, self.beams_per_group, longest, device=device),
            torch.zeros(many, self.beams_per_group, dtype=torch.long, device=device),
            torch.full(
                (many, self.beams_per_group), -torch.inf, device=device
            ),  # sums, by no length
        )
        self.running.scores[:, 0] = 0.0  # all beams are one at first
        self.finished = BeamHypotheses(*(x.clone() for x in self.running))
        self.finished.scores.fill_(-torch.inf)
        self._eos_token_ids = torch.tensor(options.eos_token_ids, device=device)
        self._offsets = torch.arange(many, device=device)[:, None] * self.beams_per_group

    def advance(self, log_p: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Takes the next token of every hypothesis.

        Args:
            log_p: log-probabilities, [B * G * N, V].
            tokens: those that they are of, int [B * G * N, any], at least the 2 N likeliest, where
                there is one group; None: all of the vocabulary.

        Returns:
            For each row of the cache, int [B * G * N], the row that it goes on from, and its new
            token.
        """
        self.step += 1
        totals = self.running.scores[..., None] + log_p.view(*self.running.scores.shape, -1)
        if self.num_groups == 1:
            tokens = None if tokens is None else tokens.view(totals.shape)
            origin, token, _ = self._advance_groups(slice(None), totals, tokens)
        else:
            taken = totals.new_zeros(len(totals) // self.num_groups, totals.shape[-1])  # [B, V]
            origin = totals.new_zeros(totals.shape[:2], dtype=torch.long)
            token = torch.zeros_like(origin)
            for group in range(self.num_groups):
                rows = slice(group, None, self.num_groups)
                penalty = self.options.diversity_penalty * taken[:, None]
                origin[rows], token[rows], best = self._advance_groups(rows, totals[rows] - penalty)
                taken.scatter_add_(1, best, torch.ones_like(best, dtype=taken.dtype))
        return (origin + self._offsets).flatten(), token.flatten()

    def is_done(self) -> bool:
        """Whether nothing that could still come changes the result."""
        if self.step == self.options.max_new_tokens:
            return True
        # A score is a sum that only falls over a divisor that grows with length, or, for a
        # penalty below 0, falls: at best the sum stays and the divisor is the larger one.
        divisors = [self._length_divisor(n) for n in (self.step + 1, self.options.max_new_tokens)]
        reachable = self.running.scores[:, 0] / max(divisors)  # [B * G]
        return bool((self.finished.scores[:, -1] >= reachable).all())

    def result(self) -> BeamHypotheses:
        """The best that have ended, of all groups of a row: [B, G * N]."""
        shape = len(self.running.scores) // self.num_groups, self.options.num_beams
        joined = BeamHypotheses(*(x.reshape(*shape, *x.shape[2:]) for x in self.finished))
        return joined.select(joined.scores.sort(dim=1, descending=True, stable=True).indices)

    def _advance_groups(
        self, rows: slice, cumulative_logprobs: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same of the searches `rows`; totals and tokens: [R, N, V or some of them].

        Returns:
            Origins and tokens, int [R, N] both, of what goes on; and the tokens of the N best,
            whether they go on or end there.
        """
        running = BeamHypotheses(*(x[rows] for x in self.running))
        many = cumulative_logprobs.shape[-1]
        # As many may end as there are beams, and as many more must be there to go on.
        top, index = cumulative_logprobs.flatten(1).topk(
            min(2 * self.beams_per_group, cumulative_logprobs[0].numel())
        )
        origin = index // many
        token = index % many if tokens is None else tokens.flatten(1).gather(1, index)
        grown = running.select(origin)
        grown.tokens[..., self.step - 1] = token
        grown.logprobs[..., self.step - 1] = top - grown.scores
        grown = grown._replace(scores=top, lengths=torch.full_like(token, self.step))
        ends = torch.isin(token, self._eos_token_ids) | (self.step == self.options.max_new_tokens)
        if self.stop_fn is not None:
            texts = grown.tokens[..., : self.step].flatten(0, 1).tolist()
            ends |= torch.tensor([self.stop_fn(text) for text in texts]).view_as(ends).to(ends)
        best = torch.arange(token.shape[1], device=token.device) < self.beams_per_group
        self._update_finished(rows, grown, top.masked_fill(~(ends & best), -torch.inf))
        scores, chosen = top.masked_fill(ends, -torch.inf).topk(self.beams_per_group)
        for kept, new in zip(
            self.running, grown.select(chosen)._replace(scores=scores), strict=True
        ):
            kept[rows] = new
        return origin.gather(1, chosen), token.gather(1, chosen), token[:, : self.beams_per_group]

    def _update_finished(
        self, rows: slice, candidates: BeamHypotheses, cumulative_logprobs: Tensor
    ) -> None:
        new = candidates._replace(scores=cumulative_logprobs / self._length_divisor(self.step))
        both = BeamHypotheses(
            *(torch.cat((x[rows], y), 1) for x, y in zip(self.finished, new, strict=True))
        )
        for kept, best in zip(
            self.finished, both.select(both.scores.topk(self.beams_per_group).indices), strict=True
        ):
            kept[rows] = best

    def _length_divisor(self, length: int) -> float:
        """What a hypothesis of some tokens is divided by."""
        base = (5 + length) / 6 if self.options.length_normalization == "gnmt" else length
        return float(base**self.options.length_penalty)


def beam_search(
    state: DecodingState,
    options: GenerationConfig,
    *,
    processors: Sequence[Processor] = (),
    stop_fn: StopFn | None = None,
) -> BeamHypotheses:
    """The best continuations of each row, [B, num_beams].

    Args:
        begun: what each row begins with, `num_beams` times.
        options: see `Search`.
        processors: the user's own; they change log-probabilities.
        until: see `Search`.
    """
    prompts = len(state.tokens) // options.num_beams
    changes = build_processors(options, state.length, processors)
    search = BeamSearch(prompts, options, state.tokens.device, stop_fn)
    enough = min(2 * options.num_beams, state.logits.shape[1])
    while True:
        with state.exclusive_threads():
            if changes or search.num_groups > 1:
                log_p = state.logits.float().log_softmax(-1)
                log_p = apply_processors(
                    changes, state.sequences, log_p, search.step + 1, options.num_beams
                )
                origin, token = search.advance(log_p)
            else:
                log_p, tokens = state.top_logprobs(enough)
                check_finite(log_p[:, 0], search.step + 1)
                origin, token = search.advance(log_p, tokens)
        if search.is_done():
            return search.result()
        state.reorder_rows(origin)
        state.step(token)
