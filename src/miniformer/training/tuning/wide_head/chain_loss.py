"""Loss of a linear-chain conditional random field with its gradient, for many sequences.

The forward-backward algorithm on probabilities, scaled at each word (Rabiner 1989): a product of
matrices for each position, of all sequences that are so long.

Letters: N words of all sequences, S sequences, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_MIN_SCALE = 1e-30


class Chain:
    """Labels of sequences, one after the other.

    Args:
        labels: int64 [N].
        lengths: of the sequences, at least 1, int64 [S].

    Attributes:
        steps: for each position the words there, those of the longest sequences first, int64.
        first: first word of each sequence, int64 [S].
    """

    def __init__(self, labels: Tensor, lengths: np.ndarray) -> None:
        self.labels, self.lengths = labels, lengths
        starts = np.cumsum(lengths) - lengths
        order = np.argsort(-lengths, kind="stable")
        longest = int(lengths.max(initial=0))
        counts = [int((lengths > position).sum()) for position in range(longest)]
        self.steps = [
            torch.from_numpy(starts[order[:count]] + position)
            for position, count in enumerate(counts)
        ]
        self.first = torch.from_numpy(starts)
        inner = torch.ones(len(labels), dtype=torch.bool)
        inner[self.first] = False
        self._second = inner.nonzero()[:, 0]  # of each pair of adjacent words

    def transition_counts(self, outputs: int) -> Tensor:
        """Pairs of adjacent labels, [C, C]."""
        pairs = self.labels[self._second - 1] * outputs + self.labels[self._second]
        return torch.bincount(pairs, minlength=outputs * outputs).view(outputs, outputs)


def chain_loss(
    scores: Tensor, transitions: Tensor, start: Tensor, chain: Chain
) -> tuple[float, Tensor, Tensor, Tensor]:
    """Summed negative log-probability of the sequences of labels, and its gradients.

    Args:
        scores: of each word's tags, [N, C].
        transitions: score of each tag (columns) after another one (rows), [C, C].
        start: score of the first tag of a sequence, [C].
        chain: labels and sequences.

    Returns:
        Loss in nats, and gradients of `scores`, `transitions` and `start`.
    """
    steps, labels, outputs = chain.steps, chain.labels, scores.shape[1]
    top = scores.max(1, keepdim=True).values
    likelihood, moves = (scores - top).exp(), transitions.exp()  # [N, C] and [C, C]
    forward, scale = torch.zeros_like(scores), torch.ones_like(top)
    current = start.exp() * likelihood[steps[0]]
    for position, rows in enumerate(steps):
        if position:
            current = (current[: len(rows)] @ moves) * likelihood[rows]
        size = current.sum(1, keepdim=True).clamp_min(_MIN_SCALE)
        current = current / size
        forward[rows], scale[rows] = current, size
    backward, expected = torch.ones_like(scores), torch.zeros_like(transitions)
    for position in range(len(steps) - 1, 0, -1):
        rows = steps[position]
        before = steps[position - 1][: len(rows)]
        following = likelihood[rows] * backward[rows] / scale[rows]
        expected += forward[before].T @ following
        backward[before] = following @ moves.T
    marginals = forward * backward
    observed = torch.nn.functional.one_hot(labels, outputs).to(scores)
    counts = chain.transition_counts(outputs).to(scores)
    log_partition = (top + scale.log()).sum(dtype=torch.float64)
    first = observed[chain.first].sum(0)
    score = (
        scores.gather(1, labels[:, None]).sum(dtype=torch.float64)
        + (counts * transitions).sum()
        + (first * start).sum()
    )
    return (
        float(log_partition - score),
        marginals - observed,
        expected * moves - counts,
        marginals[chain.first].sum(0) - first,
    )
