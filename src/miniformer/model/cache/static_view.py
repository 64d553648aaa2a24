"""Models as functions of tensors, for `torch.export`: past keys and values go in and come out.

    decoder-only      ids, mask, past -> `CachedDecoder` -> logits, keys, values
    encoder-decoder   source, source mask -> `SourceEncoder` -> keys and values of the source
                      ids, mask, past, these, source mask -> `CachedDecoder` -> logits, keys, values

One exported program computes prompts and steps. Batch, length, past and source are dynamic:

    view = CachedDecoder(model)
    decode = view.export().module()
    past = view.empty_past(batch_size)
    logits, *past = decode(ids, mask, *past)

An empty past would fix its own length: a past begins with one masked column. Rotary scaling that
depends on the length uses `max_seq_len`, as a cache of that capacity does.

Letters: B batch, T new tokens, P past columns, S source length, N columns of logits, L layers, K
    key-value heads, E head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from miniformer.config import UserError
from miniformer.model.cache.protocol import SourceProjection
from miniformer.model.masks import Visibility, make_cached_positions
from miniformer.model.memory import Memory

Layers = tuple[Tensor, ...]  # keys or values of L layers, each [B, K, columns, E]


class TensorCache:
    """Cache of one pass over given tensors, which it does not change.

    Args:
        mask: real tokens of past and pass, bool [B, P + T].
        keys, values: of the past, L of [B, K, P, E]; `append` replaces them.
        source: keys and values of the source, L of [B, K, S, E]; empty: there is none.
        max_seq_len: length for rotary scaling that depends on it.
    """

    length = 0  # never full

    def __init__(
        self,
        mask: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        source: Sequence[tuple[Tensor, Tensor]],
        max_seq_len: int,
    ) -> None:
        self.keys, self.values, self.source = [*keys], [*values], source
        self.batch_size = mask.shape[0]
        self.positions = make_cached_positions(mask)
        self.final_lengths = torch.full((1, 1), max_seq_len, device=mask.device)

    @property
    def lengths(self) -> Tensor:
        """Implements `PassCache.lengths`."""
        return (self.positions >= 0).sum(1)

    def extend(self, attention_mask: Tensor | None, num_new: int) -> Tensor:
        """Implements `PassCache.extend`; the mask is that of the cache."""
        return self.positions.narrow(1, self.keys[0].shape[2], num_new).clamp_min(0)

    def visibility(self, layer: int, positions: Tensor, window: int | None) -> Visibility:
        """Implements `PassCache.visibility`."""
        return Visibility(True, window, positions, self.positions)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Implements `PassCache.append`."""
        self.keys[layer] = torch.cat((self.keys[layer], keys.to(self.keys[layer].dtype)), 2)
        self.values[layer] = torch.cat((self.values[layer], values.to(self.values[layer].dtype)), 2)
        return self.keys[layer], self.values[layer]

    def source_kv(
        self, layer: int, memory: Tensor, project: SourceProjection
    ) -> tuple[Tensor, Tensor]:
        """Implements `PassCache.source_kv`."""
        return self.source[layer]

    def end_pass(self) -> None:
        """Does nothing: there is no state between passes."""


class Past(NamedTuple):
    """Keys and values of earlier columns, L of [B, K, P, E] each."""

    keys: Layers
    values: Layers


class StaticView(nn.Module):
    """Base class of views.

    Args:
        model: model in eval mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def example_inputs(self) -> tuple[Any, ...]:
        """Makes arguments of `forward` for `torch.export`; their dynamic sizes are at least 2."""
        raise NotImplementedError

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """The dynamic dimensions of the arguments, for `torch.export`."""
        raise NotImplementedError

    def export(self) -> ExportedProgram:
        """Exports the view; the program takes any sizes, from 1."""
        with torch.no_grad():
            return torch.export.export(
                self, self.example_inputs(), dynamic_shapes=self.dynamic_shapes(), strict=False
            )


class CachedDecoder(StaticView):
    """Decoder-only model, or decoder of an encoder-decoder model, with its cache in arguments.

    Args:
        model: causal Transformer or Seq2SeqTransformer in eval mode.
        last_only: compute the logits of the last column only.

    Raises:
        UserError: the model does not generate tokens.
    """

    def __init__(self, model: Any, *, last_only: bool = False) -> None:
        super().__init__(model)
        self.last_only = last_only
        self.has_source = hasattr(model, "decoder")
        if not self.has_source and not self.config.causal:
            raise UserError("a model with causal=false has no cached decoder")
        self.kv_heads = [
            getattr(layer.attention, "kv_heads", self.config.kv_heads)
            for layer in (model.decoder if self.has_source else model).layers
        ]

    def forward(
        self,
        ids: Tensor,
        attention_mask: Tensor,
        past_keys: Layers,
        past_values: Layers,
        source_keys: Layers = (),
        source_values: Layers = (),
        source_mask: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> tuple[Tensor, Layers, Layers]:
        """Computes a prompt or a step.

        Args:
            ids: token ids, int [B, T].
            attention_mask: bool [B, P + T], True = a real token of the past or of `ids`; at most
                `max_seq_len` of a row are.
            past_keys, past_values: results of the call before, or `empty_past`.
            source_keys, source_values: of `SourceEncoder`, for an encoder-decoder model.
            source_mask: bool [B, S], True = a real token of the source; None: all are.
            columns: columns of `ids` whose logits are computed, int [N]; None: all.

        Returns:
            Logits of the next token, [B, T, V], with `columns` [B, N, V] or with `last_only`
            [B, 1, V], then keys and values, L of [B, K, P + T, E] each.
        """
        source = [*zip(source_keys, source_values, strict=True)]
        cache = TensorCache(attention_mask, past_keys, past_values, source, self.config.max_seq_len)
        memory = []
        if self.has_source:  # its features have been projected
            rows, length = source_keys[0].shape[0], source_keys[0].shape[2]
            features = source_keys[0].new_zeros(1).expand(rows, length, self.config.d_model)
            memory = [Memory(features, source_mask)]
        features = self.model.features(ids, *memory, cache=cache)
        if columns is not None:
            features = features.index_select(1, columns)
        logits = self.model.logits(features[:, -1:] if self.last_only else features)
        return logits, (*cache.keys,), (*cache.values,)

    def empty_past(self, batch_size: int) -> Past:
        """Makes the past of a prompt, one column; its `attention_mask` is False."""
        return self._zeros(batch_size, 1)

    def example_inputs(self) -> tuple[Any, ...]:
        """Implements `StaticView.example_inputs`."""
        batch_size, length, past, source = 2, 3, 4, 5
        device = next(self.model.parameters()).device
        ids = torch.zeros(batch_size, length, dtype=torch.long, device=device)
        mask = torch.ones(batch_size, past + length, dtype=torch.bool, device=device)
        inputs = (ids, mask, *self._zeros(batch_size, past))
        if not self.has_source:
            return inputs
        source_mask = torch.ones(batch_size, source, dtype=torch.bool, device=device)
        return (*inputs, *self._zeros(batch_size, source), source_mask)

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Implements `StaticView.dynamic_shapes`."""
        batch, source = Dim("batch", min=1), Dim("source", min=1)
        past = ({0: batch, 2: Dim("past", min=1)},) * len(self.kv_heads)
        length = Dim("length", min=1, max=self.config.max_seq_len)
        # A sum of dimensions; without the limit it would be that of two sizes of at least 2.
        columns = {0: batch, 1: Dim("columns", min=2)}
        shapes = ({0: batch, 1: length}, columns, past, past)
        if not self.has_source:
            return shapes
        sources = ({0: batch, 2: source},) * len(self.kv_heads)
        return (*shapes, sources, sources, {0: batch, 1: source})

    def _zeros(self, batch_size: int, columns: int) -> Past:
        weight = next(self.model.parameters())
        keys, values = (
            tuple(
                weight.new_zeros(batch_size, heads, columns, self.config.head_width)
                for heads in self.kv_heads
            )
            for _ in range(2)  # `torch.export` takes a tensor that is given twice for one input
        )
        return Past(keys, values)


class SourceEncoder(StaticView):
    """Encoder of a Seq2SeqTransformer, with the projections of the decoder's cross-attention."""

    def forward(self, source: Tensor, source_mask: Tensor | None = None) -> Past:
        """Maps a source to its keys and values, L of [B, K, S, E] each.

        Args:
            source: input of the encoder, such as token ids, int [B, S].
            source_mask: bool [B, S], True = a real position; None: all are.
        """
        memory = self.model.encode(source, source_mask)
        keys, values = [], []
        for layer in self.model.decoder.layers:
            layer_keys, layer_values = layer.cross_attention.keys_values(memory.features)
            keys.append(layer_keys)
            values.append(layer_values)
        return Past(tuple(keys), tuple(values))

    def example_inputs(self) -> tuple[Any, ...]:
        """Implements `StaticView.example_inputs`, for token ids or `input_dim` features."""
        weight, width = next(self.model.parameters()), self.config.input_dim
        source = (
            torch.zeros(2, 5, dtype=torch.long, device=weight.device)
            if width is None
            else weight.new_zeros(2, 5, width)
        )
        return source, torch.ones(2, 5, dtype=torch.bool, device=weight.device)

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Implements `StaticView.dynamic_shapes`."""
        batch, length = Dim("batch", min=1), Dim("source", min=1, max=self.config.max_seq_len)
        return {0: batch, 1: length}, {0: batch, 1: length}
