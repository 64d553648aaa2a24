"""Beam search and diverse beam search.

Each step retains the N best running hypotheses of a row and the N best finished ones. The search of
a row ends when no running hypothesis can still enter the finished ones. Log-probabilities only
decrease, which bounds future scores, so early stopping does not change the result.

In diverse beam search (Vijayakumar et al. 2016) the beams of a row form groups with separate
searches. Tokens that earlier groups select at the same step are penalized in later groups.

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
    """Hypotheses of each row, best first; unused entries have the score -inf."""

    tokens: Tensor  # int [B, N, L], without the prompt
    logprobs: Tensor  # float32 [B, N, L], per token
    lengths: Tensor  # int [B, N], including EOS
    scores: Tensor  # float32 [B, N], normalized by length

    def select(self, indices: Tensor) -> BeamHypotheses:
        """Selects hypotheses by index, int [B, any]."""
        wide = indices[..., None].expand(-1, -1, self.tokens.shape[-1])
        return BeamHypotheses(
            self.tokens.gather(1, wide),
            self.logprobs.gather(1, wide),
            self.lengths.gather(1, indices),
            self.scores.gather(1, indices),
        )


class BeamSearch:
    """State of a beam search, independent of the model.

    Args:
        batch_size: number B of rows.
        options: `num_beams`, `length_penalty`, `max_new_tokens` and so on.
        device: device of the logits.
        stop_fn: stop condition on the new tokens, in addition to EOS.
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
        self.beams_per_group = options.num_beams // self.num_groups
        self.step = 0
        num_searches = batch_size * self.num_groups
        shape = num_searches, self.beams_per_group
        max_length = options.max_new_tokens
        self.running = BeamHypotheses(
            torch.zeros(*shape, max_length, dtype=torch.long, device=device),
            torch.zeros(*shape, max_length, device=device),
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.full(shape, -torch.inf, device=device),  # sums, not normalized by length
        )
        self.running.scores[:, 0] = 0.0  # all beams start equal
        self.finished = BeamHypotheses(*(x.clone() for x in self.running))
        self.finished.scores.fill_(-torch.inf)
        self._eos_token_ids = torch.tensor(options.eos_token_ids, device=device)
        self._offsets = torch.arange(num_searches, device=device)[:, None] * self.beams_per_group

    def advance(self, logprobs: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Extends every hypothesis by one token.

        Args:
            logprobs: log-probabilities, [B * G * N, V].
            tokens: token ids of `logprobs`, int [B * G * N, any], at least the 2 N most likely;
                requires one group. None: the full vocabulary.

        Returns:
            Origin row and new token of each row of the cache, both int [B * G * N].
        """
        self.step += 1
        cumulative = self.running.scores[..., None] + logprobs.view(*self.running.scores.shape, -1)
        if self.num_groups == 1:
            tokens = None if tokens is None else tokens.view(cumulative.shape)
            origin, token, _ = self._advance_groups(slice(None), cumulative, tokens)
        else:
            batch_size = len(cumulative) // self.num_groups
            counts = cumulative.new_zeros(batch_size, cumulative.shape[-1])  # [B, V]
            origin = cumulative.new_zeros(cumulative.shape[:2], dtype=torch.long)
            token = torch.zeros_like(origin)
            for group in range(self.num_groups):
                rows = slice(group, None, self.num_groups)
                penalty = self.options.diversity_penalty * counts[:, None]
                origin[rows], token[rows], best = self._advance_groups(
                    rows, cumulative[rows] - penalty
                )
                counts.scatter_add_(1, best, torch.ones_like(best, dtype=counts.dtype))
        return (origin + self._offsets).flatten(), token.flatten()

    def is_done(self) -> bool:
        """Returns True if no further step can change the result."""
        if self.step == self.options.max_new_tokens:
            return True
        # The sum only decreases. The divisor is monotonic in length: it increases, or decreases for
        # a negative penalty. The best case is the current sum with the larger divisor.
        divisors = [self._length_divisor(n) for n in (self.step + 1, self.options.max_new_tokens)]
        best_possible = self.running.scores[:, 0] / max(divisors)  # [B * G]
        return bool((self.finished.scores[:, -1] >= best_possible).all())

    def result(self) -> BeamHypotheses:
        """Finished hypotheses of all groups of a row, [B, G * N]."""
        shape = len(self.running.scores) // self.num_groups, self.options.num_beams
        joined = BeamHypotheses(*(x.reshape(*shape, *x.shape[2:]) for x in self.finished))
        return joined.select(joined.scores.sort(dim=1, descending=True, stable=True).indices)

    def _advance_groups(
        self, rows: slice, cumulative_logprobs: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Implements `advance` for the searches `rows`; inputs: [R, N, number of candidates].

        Returns:
            Origins and tokens of the running hypotheses, both int [R, N], and the tokens of the N
            best candidates, running or finished.
        """
        running = BeamHypotheses(*(x[rows] for x in self.running))
        num_tokens = cumulative_logprobs.shape[-1]
        # N candidates may finish, so 2 N leave N to continue.
        num_candidates = min(2 * self.beams_per_group, cumulative_logprobs[0].numel())
        top, index = cumulative_logprobs.flatten(1).topk(num_candidates)
        origin = index // num_tokens
        token = index % num_tokens if tokens is None else tokens.flatten(1).gather(1, index)
        candidates = running.select(origin)
        candidates.tokens[..., self.step - 1] = token
        candidates.logprobs[..., self.step - 1] = top - candidates.scores
        candidates = candidates._replace(scores=top, lengths=torch.full_like(token, self.step))
        is_last = self.step == self.options.max_new_tokens
        finished = torch.isin(token, self._eos_token_ids) | is_last
        if self.stop_fn is not None:
            sequences = candidates.tokens[..., : self.step].flatten(0, 1).tolist()
            stopped = torch.tensor([self.stop_fn(sequence) for sequence in sequences])
            finished |= stopped.view_as(finished).to(finished)
        best = torch.arange(token.shape[1], device=token.device) < self.beams_per_group
        self._update_finished(rows, candidates, top.masked_fill(~(finished & best), -torch.inf))
        scores, selected = top.masked_fill(finished, -torch.inf).topk(self.beams_per_group)
        selection = candidates.select(selected)._replace(scores=scores)
        for field, new in zip(self.running, selection, strict=True):
            field[rows] = new
        new_tokens = token.gather(1, selected)
        return origin.gather(1, selected), new_tokens, token[:, : self.beams_per_group]

    def _update_finished(
        self, rows: slice, candidates: BeamHypotheses, cumulative_logprobs: Tensor
    ) -> None:
        new = candidates._replace(scores=cumulative_logprobs / self._length_divisor(self.step))
        merged = BeamHypotheses(
            *(torch.cat((x[rows], y), 1) for x, y in zip(self.finished, new, strict=True))
        )
        best = merged.select(merged.scores.topk(self.beams_per_group).indices)
        for field, values in zip(self.finished, best, strict=True):
            field[rows] = values

    def _length_divisor(self, length: int) -> float:
        """Divisor of the score of a hypothesis with `length` tokens."""
        base = (5 + length) / 6 if self.options.length_normalization == "gnmt" else length
        return float(base**self.options.length_penalty)


def beam_search(
    state: DecodingState,
    options: GenerationConfig,
    *,
    processors: Sequence[Processor] = (),
    stop_fn: StopFn | None = None,
) -> BeamHypotheses:
    """Runs beam search; returns the best hypotheses of each row, [B, num_beams].

    Args:
        state: state after prefill, with `num_beams` copies of each prompt.
        options: see `BeamSearch`.
        processors: custom processors, applied to log-probabilities.
        stop_fn: see `BeamSearch`.
    """
    batch_size = len(state.tokens) // options.num_beams
    all_processors = build_processors(options, state.length, processors)
    search = BeamSearch(batch_size, options, state.tokens.device, stop_fn)
    num_candidates = min(2 * options.num_beams, state.logits.shape[1])
    while True:
        with state.runtime.exclusive_threads():
            if all_processors or search.num_groups > 1:
                logprobs = state.logits.float().log_softmax(-1)
                logprobs = apply_processors(
                    all_processors, state.sequences, logprobs, search.step + 1, options.num_beams
                )
                origin, token = search.advance(logprobs)
            else:
                logprobs, tokens = state.runtime.top_logprobs(state.logits, num_candidates)
                check_finite(logprobs[:, 0], search.step + 1)
                origin, token = search.advance(logprobs, tokens)
        if search.is_done():
            return search.result()
        state.reorder_rows(origin)
        state.step(token)
