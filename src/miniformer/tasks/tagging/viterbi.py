"""The most probable tag sequences among the valid ones (Viterbi 1967)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from miniformer.tasks.tagging.schemes import is_valid_transition, parse_tag

_FORBIDDEN = -1e6  # log-probability; finite, so that some sequence is always the best


class TagConstraint:
    """Transitions between tags that a scheme allows.

    Args:
        tags: the classes, in the order of the model's outputs.
        scheme: of the tags.
    """

    def __init__(self, tags: Sequence[str], scheme: str) -> None:
        parsed = [parse_tag(tag) for tag in tags]

        def penalty(pairs: list[bool]) -> Tensor:
            return torch.where(torch.tensor(pairs), 0.0, _FORBIDDEN)

        valid = [[is_valid_transition(scheme, a, b) for b in parsed] for a in parsed]
        self.transitions = torch.stack([penalty(row) for row in valid])  # [C from, C to]
        self.start = penalty([is_valid_transition(scheme, None, tag) for tag in parsed])
        self.end = penalty([is_valid_transition(scheme, tag, None) for tag in parsed])


def decode(
    logprobs: Tensor,
    lengths: Tensor,
    constraint: TagConstraint,
    *,
    is_start: Tensor | None = None,
    is_end: Tensor | None = None,
) -> Tensor:
    """The valid tag sequence with the largest sum of log-probabilities, of each row.

    Args:
        logprobs: float [B, W, C], on the CPU.
        lengths: number of tokens of each row, at least 1, int [B].
        constraint: valid transitions of the C tags.
        is_start: true for the rows that begin a sequence, bool [B]; None: all. The first tag of
            another one may follow any tag.
        is_end: true for the rows that end a sequence, bool [B]; None: all.

    Returns:
        Indices of tags, int64 [B, W]; those beyond the length of a row have no meaning.
    """
    count, width, _ = logprobs.shape
    start = constraint.start.expand(count, -1)
    end = constraint.end.expand(count, -1)
    start = start if is_start is None else start * is_start[:, None]
    end = end if is_end is None else end * is_end[:, None]
    score = logprobs[:, 0] + start  # of the best sequence with each last tag, [B, C]
    last = torch.arange(logprobs.shape[2]).expand(count, -1)
    origins = []  # of each position after the first: the tag before, [B, C]
    for position in range(1, width):
        best, origin = (score[:, :, None] + constraint.transitions).max(1)
        active = (position < lengths)[:, None]  # a finished row carries its scores along
        score = torch.where(active, best + logprobs[:, position], score)
        origins.append(torch.where(active, origin, last))
    tag = (score + end).argmax(1)  # [B]
    path = [tag]
    for origin in reversed(origins):
        tag = origin.gather(1, tag[:, None])[:, 0]
        path.append(tag)
    return torch.stack(path[::-1], 1)
