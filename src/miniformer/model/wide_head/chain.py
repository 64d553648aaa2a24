"""Wide head of tags: a linear-chain conditional random field (Lafferty et al. 2001).

The score of a sequence of tags is the sum of the linear outputs of its words and of a score for
each pair of adjacent tags. The outputs of the head for a word are the logarithms of its tags'
marginal probabilities, which depend on all words of the row. Each word has a distribution of its
own, as that of the Transformer, so that both can be mixed.

Letters: B batch, V words of a row with its context, W predicted words, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.config import TransformerConfig
from miniformer.model.wide_head.head import WideHead
from miniformer.model.wide_head.sparse import Inputs


class ChainHead(WideHead):
    """Conditional random field over features of words.

    Args:
        config: `wide_head`, a group of type words, and `output_dim`.

    Attributes:
        transitions: score of each tag (columns) after another one (rows), [C, C].
        start: score of the first tag of a row, [C].
    """

    transitions: Tensor
    start: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        outputs = config.output_dim or 1
        self.register_buffer("transitions", torch.zeros(outputs, outputs))
        self.register_buffer("start", torch.zeros(outputs))

    def forward(self, outputs: Tensor, inputs: Inputs) -> Tensor:
        """Weighted sum of the Transformer's outputs and the log-marginals, [B, W, C].

        Args:
            outputs: of the Transformer, [B, W, C].
            inputs: `word_hashes` of the words of a row with their context, int64 [B, V, H];
                `context_before`, words before the first predicted one, int [B]; `word_lengths`,
                0 beyond the predicted words of a row, int [B, W].
        """
        deep, wide = outputs.float(), self.predicted(self.linear(inputs), inputs)
        if self.recorded is not None:
            lengths = inputs["word_lengths"]
            assert lengths is not None
            self.recorded.append((deep[lengths > 0], wide[lengths > 0]))
        return self.mix[0] * deep + self.mix[1] * wide

    def linear(self, inputs: Inputs) -> Tensor:
        """Log-marginals of all words of a row with its context, float32 [B, V, C]."""
        hashes = inputs["word_hashes"]
        assert hashes is not None
        return log_marginals(
            super().linear(inputs), (hashes != 0).any(-1), self.transitions, self.start
        )

    @staticmethod
    def predicted(values: Tensor, inputs: Inputs) -> Tensor:
        """Values of the predicted words, [B, W, C], of those of all words, [B, V, C]."""
        before, lengths = inputs["context_before"], inputs["word_lengths"]
        assert before is not None
        assert lengths is not None
        index = before[:, None] + torch.arange(lengths.shape[1], device=values.device)
        index = index.clamp_max(values.shape[1] - 1)[..., None]
        return values.gather(1, index.expand(-1, -1, values.shape[2]))


def log_marginals(scores: Tensor, mask: Tensor, transitions: Tensor, start: Tensor) -> Tensor:
    """Logarithms of the probabilities of each word's tags (forward-backward algorithm).

    Args:
        scores: of each word's tags, float [B, V, C].
        mask: True = a word, bool [B, V]; padding is on the right.
        transitions: score of each tag (columns) after another one (rows), [C, C].
        start: score of the first tag, [C].

    Returns:
        float [B, V, C]; at padding without meaning.
    """
    transitions = transitions.to(scores)
    forward = [scores[:, 0] + start.to(scores)]
    for word in range(1, scores.shape[1]):
        previous = forward[-1][:, :, None] + transitions  # [B, C from, C to]
        forward.append(previous.logsumexp(1) + scores[:, word])
    backward = [torch.zeros_like(scores[:, 0])]
    for word in range(scores.shape[1] - 1, 0, -1):
        following = (scores[:, word] + backward[-1])[:, None] + transitions
        # The last word of a row has no following one.
        backward.append(following.logsumexp(2).where(mask[:, word, None], 0.0))
    return (torch.stack(forward, 1) + torch.stack(backward[::-1], 1)).log_softmax(-1)


def make_wide_head(config: TransformerConfig) -> WideHead | None:
    """The wide head of a model; None: it has none. That of tags is a `ChainHead`."""
    if config.wide_head is None:
        return None
    if config.wide_head[0]["type"] != "words":
        return WideHead(config)
    return ChainHead(config)
