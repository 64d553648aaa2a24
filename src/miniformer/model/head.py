"""Output head and pooling.

Letters: B batch, T length, D model width, N labelled positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import TransformerConfig
from miniformer.model.norm import make_norm
from miniformer.model.ops.cross_entropy import linear_cross_entropy
from miniformer.model.ops.linear import effective_weight
from miniformer.model.ops.products import Linear, linear

_MIN_THRESHOLD_STEP = 1e-6  # between thresholds, so that no class has probability 0


def _head_activation(config: TransformerConfig) -> Callable[[Tensor], Tensor] | None:
    """Returns the activation of the head's dense layer; None: the head has no dense layer."""
    activations: dict[str, Callable[[Tensor], Tensor]] = {
        "dense_tanh": torch.tanh,
        "dense_relu": F.relu,
    }
    if config.head == "masked_lm":
        activations["masked_lm"] = registry.get("activation", config.head_activation or "gelu")
    return activations.get(config.head)


class Head(nn.Module):
    """Logits over the vocabulary, or `output_dim` numbers.

    A tied head has no weight: the embedding's weight is an argument of its methods.

    Args:
        config: the model's config.
        tied: the head is tied; None: as the config says of a Transformer.
    """

    matrix_names = ("weight",)  # see `miniformer.model.matrices`

    def __init__(self, config: TransformerConfig, tied: bool | None = None) -> None:
        super().__init__()
        width = config.output_dim or config.vocab_size
        self.ordered = config.ordered_outputs
        self.scale, self.softcap = config.logit_scale, config.final_softcap
        self.dense = self.norm = None
        self.activation = None if config.head == "linear" else _head_activation(config)
        if self.activation is not None:
            self.dense = Linear(config.d_model, config.d_model, bias=config.bias)
        if config.head == "masked_lm":
            self.norm = make_norm(config)
        self.tied = config.is_head_tied if tied is None else tied
        rows = 1 if self.ordered else width
        self.weight = None if self.tied else nn.Parameter(torch.empty(rows, config.d_model))
        self.bias = nn.Parameter(torch.zeros(width)) if config.has_head_bias else None

    def forward(self, features: Tensor, embedding: Tensor | None) -> Tensor:
        """Maps features [..., D] to [..., V or output_dim]; `embedding`: its weight, [V, D]."""
        weight = effective_weight(self) if embedding is None or not self.tied else embedding
        if self.ordered:
            return linear(self.transform(features), weight) - self.thresholds()
        out = linear(self.transform(features), weight, self.bias)
        return out if self.softcap is None else self.softcap * torch.tanh(out / self.softcap)

    def thresholds(self) -> Tensor:
        """Ascending thresholds of `ordered_outputs`, [output_dim].

        The first bias is the lowest threshold; softplus of the others are the differences.
        """
        assert self.bias is not None
        bias = self.bias.to(torch.promote_types(self.bias.dtype, torch.float32))
        steps = F.softplus(bias[1:]).clamp_min(_MIN_THRESHOLD_STEP)
        return torch.cat([bias[:1], steps]).cumsum(0)

    def reset_thresholds(self) -> None:
        """Sets the thresholds to those of equally frequent classes."""
        assert self.bias is not None
        count = len(self.bias)
        levels = torch.logit(torch.arange(1, count + 1) / (count + 1))
        with torch.no_grad():
            self.bias.copy_(torch.cat([levels[:1], torch.expm1(levels.diff()).log()]))

    def transform(self, features: Tensor) -> Tensor:
        """Applies the optional dense layer, norm and scale: [..., D] -> [..., D]."""
        if self.dense is not None and self.activation is not None:
            features = self.activation(self.dense(features))
        if self.norm is not None:
            features = self.norm(features)
        return features if self.scale is None else features * self.scale

    def cross_entropy(
        self,
        features: Tensor,
        embedding: Tensor | None,
        labels: Tensor,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """See `Transformer.cross_entropy`; `embedding`: the embedding's weight, [V, D]."""
        return linear_cross_entropy(
            self.transform(features),
            effective_weight(self) if embedding is None or not self.tied else embedding,
            labels,
            bias=self.bias,
            softcap=self.softcap,
            label_smoothing=label_smoothing,
        )


def pool_sequences(features: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    """Pools each sequence to a vector: [B, T, D] -> [B, D].

    Args:
        features: [B, T, D].
        attention_mask: bool [B, T], True = a real position; None: all are. A row of padding gives
            zeros (mean, max) or the vector of a padded position.
        pooling: mean, max (of each element), first or last of the real positions; or the mean of
            several of these, such as mean+max.

    Raises:
        ValueError: the sequences have length 0.
    """
    if not features.shape[1]:
        raise ValueError("sequences of length 0 have no vector; leave them out")
    vectors = [_pool_single(features, attention_mask, name) for name in pooling.split("+")]
    return vectors[0] if len(vectors) == 1 else torch.stack(vectors).mean(0)


def pool_segments(
    features: Tensor, attention_mask: Tensor | None, segment_ids: Tensor, pooling: str
) -> Tensor:
    """Pools each packed sequence to a vector: [B, T, D] -> [B, largest id, D].

    Args:
        features, attention_mask, pooling: see `pool_sequences`.
        segment_ids: int [B, T], numbered from 1; 0 is padding.
    """
    if attention_mask is not None:
        segment_ids = segment_ids * attention_mask
    count = int(segment_ids.max()) if segment_ids.numel() else 0
    vectors = [pool_sequences(features, segment_ids == n, pooling) for n in range(1, count + 1)]
    return torch.stack(vectors, 1) if vectors else features[:, :0]


def _pool_single(features: Tensor, attention_mask: Tensor | None, pooling: str) -> Tensor:
    if attention_mask is None:
        if pooling == "mean":
            return features.mean(1, dtype=_accumulation_dtype(features)).to(features.dtype)
        return (
            features.amax(1) if pooling == "max" else features[:, 0 if pooling == "first" else -1]
        )
    real = attention_mask[..., None]
    if pooling == "mean":
        total = (features * real).sum(1, dtype=_accumulation_dtype(features))
        return (total / real.sum(1).clamp_min(1)).to(features.dtype)
    if pooling == "max":
        maxima = features.masked_fill(~real, -torch.inf).amax(1)
        return maxima.masked_fill(~attention_mask.any(1)[:, None], 0.0)
    mask = attention_mask.int()
    column = mask.argmax(1) if pooling == "first" else mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return features[torch.arange(features.shape[0], device=features.device), column]


def _accumulation_dtype(features: Tensor) -> torch.dtype:
    """Returns the type of sums: half precision could overflow, and rounds counts."""
    return torch.promote_types(features.dtype, torch.float32)
