"""Linear head over the n-grams of an input, in addition to the Transformer (Cheng et al. 2016).

A Transformer needs many examples to learn what single words and phrases mean. A linear model of
n-grams needs few (Wang & Manning 2012), and errs on other inputs. In evaluation the model's outputs
are a weighted sum of both; in training, those of the Transformer alone. The head is fitted before
training (`miniformer.training.tuning.wide_head`): its values are buffers, not parameters.

An n-gram is the sequence of up to `wide_length` token ids, with their token types, that ends at a
position; with `wide_positions` a token together with its position is a feature, too. An example is
the vector of the inverse document frequencies of its known n-grams, each occurrence counted,
divided by its norm.

Letters: B batch, T length, L n-grams of an example, K known n-grams, C outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniformer.config import TransformerConfig

_MULTIPLIER = -7046029254386353131  # 2**64 / golden ratio, odd
_MASK = 2**31 - 1  # clears the sign that a shift to the right extends
UNKNOWN = -1


class WideHead(nn.Module):
    """Linear head over n-grams, and the weights of the sum of both outputs.

    Args:
        config: `wide_size`, `wide_length`, `wide_positions` and `output_dim`.

    Attributes:
        keys: hashes of the known n-grams, ascending, int64 [K].
        idf: their inverse document frequencies, [K].
        weight, bias: of the linear head, [K, C] and [C].
        mix: weights of the Transformer's and of this head's outputs, [2].
        next_mix: those that take effect at the next validation, [2].
        recorded: outputs of the Transformer and of the linear head of each call; None: not kept.
    """

    keys: Tensor
    idf: Tensor
    weight: Tensor
    bias: Tensor
    mix: Tensor
    next_mix: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size, outputs = config.wide_size or 0, config.output_dim or 1
        self.length, self.positions = config.wide_length, config.wide_positions
        self.recorded: list[tuple[Tensor, Tensor]] | None = None
        self.register_buffer("keys", torch.arange(size))
        self.register_buffer("idf", torch.zeros(size))
        self.register_buffer("weight", torch.zeros(size, outputs))
        self.register_buffer("bias", torch.zeros(outputs))
        self.register_buffer("mix", torch.tensor([1.0, 0.0]))
        self.register_buffer("next_mix", torch.tensor([1.0, 0.0]))

    def forward(
        self,
        outputs: Tensor,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Weighted sum of the Transformer's outputs and those of the linear head, [B, C].

        Args:
            outputs: of the Transformer, [B, C].
            inputs: token ids, int [B, T].
            attention_mask: bool [B, T], True = a real position; None: all are.
            token_types: int [B, T]; None: all are 0.
        """
        deep, wide = outputs.float(), self.linear(inputs, attention_mask, token_types)
        if self.recorded is not None:
            self.recorded.append((deep, wide))
        return self.mix[0] * deep + self.mix[1] * wide

    def linear(
        self, inputs: Tensor, attention_mask: Tensor | None, token_types: Tensor | None
    ) -> Tensor:
        """Outputs of the linear head, float32 [B, C]; see `forward`."""
        features, values = self.features(inputs, attention_mask, token_types)
        rows = self.weight[features].float()  # [B, L, C]
        return (values[..., None] * rows).sum(1) + self.bias.float()

    def features(
        self, inputs: Tensor, attention_mask: Tensor | None, token_types: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Known n-grams of each example and their values: int [B, L], float [B, L].

        An unknown n-gram has the value 0. The squares of a row's values add up to 1, or to 0.
        """
        keys = ngram_keys(
            inputs, attention_mask, token_types, length=self.length, positions=self.positions
        )
        index = torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)
        known = (self.keys[index] == keys) & (keys != UNKNOWN)
        values = self.idf[index].float() * known
        norm = values.square().sum(-1, keepdim=True).sqrt()
        return index, values / norm.clamp_min(1e-12)


def ngram_keys(
    inputs: Tensor,
    attention_mask: Tensor | None,
    token_types: Tensor | None,
    *,
    length: int,
    positions: bool,
) -> Tensor:
    """Hashes of the n-grams that end at each position: int64 [B, L].

    -1: padding, or fewer tokens before the position than the n-gram has.

    Args:
        inputs, attention_mask, token_types: see `WideHead.forward`.
        length: tokens of the longest n-gram.
        positions: adds each token together with its position.
    """
    real = torch.ones_like(inputs, dtype=torch.bool) if attention_mask is None else attention_mask
    tokens = inputs.long() + 1
    if token_types is not None:
        tokens = _scramble(tokens) + token_types.long()
    tokens = _scramble(tokens)
    column = torch.arange(inputs.shape[1], device=inputs.device)
    ngram, is_complete, result = torch.zeros_like(tokens), real, []
    for n in range(length):
        # The hash of the n tokens that end one position earlier, continued by this token.
        previous = torch.nn.functional.pad(ngram, (1, 0))[:, : ngram.shape[1]]
        ngram = _scramble(previous + tokens + n)
        if n:
            before = torch.nn.functional.pad(is_complete, (1, 0))[:, : ngram.shape[1]]
            is_complete = before & real
        result.append(_positive(ngram).masked_fill(~is_complete, UNKNOWN))
    if positions:
        start = real.int().argmax(-1, keepdim=True)  # padding may be on the left
        placed = _scramble(_scramble(column - start + 1) + tokens + length)
        result.append(_positive(placed).masked_fill(~real, UNKNOWN))
    return torch.cat(result, dim=-1)


def _scramble(values: Tensor) -> Tensor:
    """Permutation of int64 values that spreads close values far apart."""
    values = values * _MULTIPLIER  # wraps around
    values = values ^ ((values >> 32) & _MASK)
    return values * _MULTIPLIER


def _positive(values: Tensor) -> Tensor:
    """Values without their sign, int64 of 63 bits."""
    return values & torch.iinfo(torch.int64).max
