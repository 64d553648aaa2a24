"""Random inputs of a model, whatever it reads.

Letters: B rows, T length, S source length, V outputs of a position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from miniformer.model.seq2seq import Seq2SeqTransformer

MAX_LENGTH, MAX_SOURCE_LENGTH = 8, 6


class ModelInputs:
    """Random inputs of a model, and calls with them.

    Args:
        model: model with the interface of `Transformer` or `Seq2SeqTransformer`, compiled or not.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        # torch.compile wraps the model in another class.
        self.seq2seq = isinstance(getattr(model, "_orig_mod", model), Seq2SeqTransformer)
        self.length = min(MAX_LENGTH, self.config.max_seq_len)
        self.source_length = min(MAX_SOURCE_LENGTH, self.config.max_seq_len)
        # Inputs of plug-ins may shorten a sequence, so vectors replace what they make.
        self.reads_vectors = self.config.input_type not in ("tokens", "features")

    @property
    def width(self) -> int | None:
        """Width of the vectors that the model reads; None: it reads token ids."""
        width: int | None = self.config.d_model if self.reads_vectors else self.config.input_dim
        return width

    def inputs(self, rows: int, length: int) -> Tensor:
        """Token ids, int [B, T], or vectors, [B, T, width]; the source of a seq2seq model."""
        if self.width is None:
            return self.ids(rows, length, self.config.source_vocab_size or self.config.vocab_size)
        return torch.randn(rows, length, self.width, device=self.device).to(self.dtype)

    def ids(self, rows: int, length: int, vocab_size: int | None = None) -> Tensor:
        """Token ids, int [B, T], of the target vocabulary by default."""
        size = (rows, length)
        return torch.randint(0, vocab_size or self.config.vocab_size, size, device=self.device)

    def call(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        target: Tensor | None = None,
        target_mask: Tensor | None = None,
        forward: Callable[..., Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """Outputs of the model, [B, T, V].

        Args:
            x: inputs, or the source of a seq2seq model.
            mask: real positions of `x`, bool [B, T]; None: all.
            target, target_mask: target tokens of a seq2seq model, and the real ones.
            forward: a method of the model to call; None: the model.
            **options: further arguments, such as `segment_ids`.
        """
        forward = forward or self.model
        if self.seq2seq:
            if self.reads_vectors:
                return forward(None, target, mask, target_mask, source_embeds=x, **options)
            return forward(x, target, mask, target_mask, **options)
        if self.reads_vectors:
            return forward(None, mask, inputs_embeds=x, **options)
        return forward(x, mask, **options) if mask is not None else forward(x, **options)


def max_difference(outputs: Tensor, reference: Tensor) -> float:
    """Largest difference, relative to the largest finite value of the reference; NaN counts."""
    finite = reference.masked_fill(~reference.isfinite(), 0.0).abs().max().clamp_min(1e-12)
    difference = (outputs - reference).abs().masked_fill(outputs == reference, 0.0)
    worst = float((difference / finite).max())
    return float("inf") if worst != worst else worst
