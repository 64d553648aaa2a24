"""Stack of layers with its position encoding; encoder and decoder are stacks.

    x -> token dropout -> + position vectors -> norm, if any -> dropout -> layers -> final norm
                                                                       (none with post-norm)

Letters: B batch, T length, S source length, D model width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import TransformerConfig
from miniformer.model import attention_backends
from miniformer.model.attention import AttentionContext, MultiHeadAttention
from miniformer.model.attention_backends.functions import ScoreOptions
from miniformer.model.cache.protocol import Cache, CacheSpec, PassCache
from miniformer.model.layer_exits import LayerExits
from miniformer.model.layers import DecoderLayer, EncoderLayer
from miniformer.model.masks import (
    Visibility,
    make_cross_mask,
    make_sequence_lengths,
    make_visibility,
)
from miniformer.model.memory import Memory
from miniformer.model.norm import make_norm
from miniformer.model.ops.activation_checkpointing import checkpoint_layer
from miniformer.model.ops.linear import matmul_dtype
from miniformer.model.outputs import Recorder
from miniformer.model.position import check_positions


class Stack(nn.Module):
    """Layers of one kind, one after another: [B, T, D] -> [B, T, D].

    Args:
        config: the model's config.
        n_layers: number of layers.
        causal: True: a position sees no later one.
        cross: True: the layers have cross-attention to a source.
    """

    def __init__(
        self, config: TransformerConfig, *, n_layers: int, causal: bool, cross: bool = False
    ) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.position = registry.get("position", config.position)(config, causal=causal)
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.token_dropout = nn.Dropout1d(config.token_dropout)  # of whole vectors
        self.dropout = nn.Dropout(config.dropout)
        layer = DecoderLayer if cross else EncoderLayer
        self.layers = nn.ModuleList(layer(config, index) for index in range(n_layers))
        self.final_norm = (
            nn.Identity() if config.effective_norm_placement == "post" else make_norm(config)
        )
        self.checkpointing = "none"  # see `set_activation_checkpointing`
        self.exits: LayerExits | None = None  # during a training pass with exits

    def run_layers(
        self,
        x: Tensor,
        *,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: PassCache | None = None,
        memory: Memory | None = None,
        start: int | None = None,
        stop: int | None = None,
        recorder: Recorder | None = None,
    ) -> Tensor:
        """Maps embedded inputs to normalized features: [B, T, D] -> [B, T, D].

        Args:
            x: embedded inputs; with `start`, the result of a call that ended before that layer.
            attention_mask: bool [B, T], True = a real position; None: all are.
            segment_ids, positions: int [B, T], see `Transformer.forward`.
            cache: keys and values of earlier tokens.
            memory: the encoded source, for a decoder.
            start: first layer, for a result of `stop` and its other arguments; None: all run.
            stop: end before this layer, without the final norm; None: run to the end.
            recorder: takes hidden states and attention weights.
        """
        if positions is not None:
            check_positions(positions, x, self.position, cache)
        if start is not None or stop is not None:
            self._check_layers(start, stop)
        if self.exits is not None and (output := self.exits.start_pass()) is not None:
            return cast("Tensor", self.final_norm(output))
        positions, contexts = self._attention_contexts(
            x, attention_mask, segment_ids, positions, cache, start is not None, recorder
        )
        if start is None:
            if self.training and self.config.token_dropout:
                x = self.token_dropout(x)
            vectors = self.position.vectors(positions)
            if vectors is not None:
                x = x + vectors.to(x.dtype)
            if self.embedding_norm is not None:
                x = self.embedding_norm(x)
            x = self.dropout(x)
        sources = [] if memory is None else self._source_contexts(x, memory, recorder)
        for index in range(start or 0, len(self.layers) if stop is None else stop):
            extra: dict[str, Any] = {}
            layer = self.layers[index]
            if recorder is not None:
                recorder.add_hidden(x)
            if memory is not None:
                extra["source"], extra["memory"] = sources[index], memory.features
            if self.checkpointing != "none" and self.training and cache is None:
                out = checkpoint_layer(self.checkpointing, layer, x, contexts[index], **extra)
            else:
                out = layer(x, contexts[index], cache=cache, layer=index, **extra)
            if self.exits is not None:
                out = self.exits.after_layer(index, x, out, training=self.training)
            x = out
        if stop is not None:
            return x
        features: Tensor = self.final_norm(x)
        if recorder is not None:
            recorder.finish(features, self.layers)
        if cache is not None:
            cache.end_pass()
        return features

    def _check_layers(self, *layers: int | None) -> None:
        for index in layers:
            if index is not None and not 0 <= index <= len(self.layers):
                raise ValueError(f"start and stop must be 0 to {len(self.layers)}, not {index}")

    def new_cache(
        self, batch_size: int, capacity: int, kind: str | Mapping[str, Any] = "window"
    ) -> Cache:
        """Makes an empty cache for `batch_size` rows of up to `capacity` tokens; see `Cache`.

        Args:
            batch_size: number of rows.
            capacity: number of columns; see `CacheSpec`.
            kind: name of the kind of cache, or an object with the name as `type` and its options.
                window: layers with a window store its W tokens only; full: all layers store all
                tokens; int8: like full, with a byte for each value and a scale for each vector.

        Raises:
            UserError: the kind or an option of it is unknown.
        """
        weight = next(self.parameters())
        spec = CacheSpec(
            windows=[getattr(layer.attention, "window", None) for layer in self.layers],
            batch_size=batch_size,
            capacity=capacity,
            kv_heads=[
                getattr(layer.attention, "kv_heads", self.config.kv_heads) for layer in self.layers
            ],
            head_dim=self.config.head_width,
            device=weight.device,
            dtype=weight.dtype,
        )
        cache: Cache = registry.build("cache", kind, spec, label="kind of cache")
        return cache

    def backend_report(
        self, *, ragged: bool = False, cached: bool = False, keys: int | None = None
    ) -> list[str]:
        """Lists the backend of each attention on this device and type, and the reason for it.

        Args:
            ragged: for batches with padding or packed segments.
            cached: for cached decoding.
            keys: number S of keys, which the backend may depend on; None: `max_seq_len`.
        """
        weight = next(self.parameters())
        keys = self.config.max_seq_len if keys is None else keys
        grad = self._needs_grad(weight)
        lines = []
        for name, module in self.named_modules():
            if isinstance(module, MultiHeadAttention):
                window = None if module.cross else module.window
                visibility = make_visibility(
                    1, keys, causal=self.causal, window=window, device=weight.device
                )
                backend, reason = self._select_backend(
                    weight,
                    module,
                    keys=keys,
                    ragged=ragged or visibility.window_active,
                    cached=cached,
                    grad=grad,
                )
                lines.append(f"{name}: {backend} ({reason})")
        return lines

    def _attention_contexts(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        given_positions: Tensor | None,
        cache: PassCache | None,
        is_continued: bool,
        recorder: Recorder | None,
    ) -> tuple[Tensor, list[AttentionContext]]:
        """Returns positions, and the context of each layer's attention; equal layers share it."""
        rows: dict[str, Any] = {"attention_mask": attention_mask, "segment_ids": segment_ids}
        if cache is not None:
            positions = _extend_cache(cache, x, attention_mask, is_continued)
            # Cached keys are not rotated again, so all steps use the final length.
            lengths = cache.final_lengths
        else:
            lengths = make_sequence_lengths(
                x.shape[1], **rows, positions=given_positions, device=x.device
            )
        grad, weights = self._needs_grad(x), None if recorder is None else recorder.attentions
        visibilities: dict[int | None, Visibility] = {}
        shared: dict[tuple[Any, ...], AttentionContext] = {}
        contexts = []
        for index, layer in enumerate(self.layers):
            attention: Any = layer.attention
            window = getattr(attention, "window", None)
            if window not in visibilities and cache is not None:
                visibilities[window] = cache.visibility(index, positions, window)
            elif window not in visibilities:
                visibilities[window] = make_visibility(
                    *x.shape[:2], causal=self.causal, window=window, **rows, device=x.device
                )
                positions = visibilities[window].query_positions
            visibility, cached = visibilities[window], cache is not None
            ragged = not visibility.is_dense or visibility.window_active
            backend, _ = self._select_backend(
                x, attention, keys=visibility.num_keys, ragged=ragged, cached=cached, grad=grad
            )
            backend = backend if weights is None else "plain"
            kept_heads = getattr(attention, "kept_heads", None)
            key = (window, backend, getattr(attention, "sinks", None) is None, kept_heads)
            if key not in shared:
                context = self._attention_context(
                    x, attention, visibility, backend, lengths, given_positions
                )
                shared[key] = context if weights is None else context._replace(weights=weights)
            contexts.append(shared[key])
        return positions if given_positions is None else given_positions, contexts

    def _attention_context(
        self,
        x: Tensor,
        attention: nn.Module,
        visibility: Visibility,
        backend: str,
        lengths: Tensor,
        positions: Tensor | None,
    ) -> AttentionContext:
        queries, keys = visibility.query_positions, visibility.key_positions
        if positions is not None:  # the mask follows from the columns all the same
            queries = keys = positions
        bias = self.position.bias(queries, keys)
        kept_heads = getattr(attention, "kept_heads", None)
        if bias is not None and kept_heads is not None:
            bias = bias[:, list(kept_heads)]
        scores = ScoreOptions(sinks=getattr(attention, "sinks", None), bias=bias)
        local = getattr(attention, "window", None) is not None
        rotation = self.position.rotation(queries, length=lengths, local=local)
        mask = attention_backends.prepare(
            backend, visibility, scores, batch_size=x.shape[0], dtype=matmul_dtype(x)
        )
        return AttentionContext(backend, mask, rotation, bias)

    def _needs_grad(self, *inputs: Tensor) -> bool:
        """True if a backward pass may follow, to the inputs or to any weight."""
        tensors = itertools.chain(inputs, self.parameters())
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    def _select_backend(
        self,
        x: Tensor,
        attention: nn.Module,
        *,
        keys: int,
        ragged: bool,
        cached: bool,
        grad: bool,
    ) -> tuple[str, str]:
        """Returns the backend of an attention, and the reason for it."""
        cross = getattr(attention, "cross", False)
        requirements = attention_backends.AttentionRequirements(
            device=x.device.type,
            dtype=matmul_dtype(x),
            needs_grad=grad,
            ragged=ragged,
            cached=cached,
            cross=cross,
            num_keys=keys,
            head_dim=getattr(attention, "head_dim", 64),  # a custom attention may have none
            softcap=getattr(attention, "softcap", None) is not None,
            sinks=getattr(attention, "sinks", None) is not None,
            bias=self.position.adds_bias and not cross,
        )
        requested = getattr(attention, "backend", "auto")
        return attention_backends.select_backend(requested, requirements)

    def _source_contexts(
        self, x: Tensor, memory: Memory, recorder: Recorder | None
    ) -> list[AttentionContext]:
        """Returns the context of each layer's cross-attention."""
        weights = None if recorder is None else recorder.cross_attentions
        mask = make_cross_mask(memory.mask)
        grad = self._needs_grad(x, memory.features)
        keys, ragged = memory.features.shape[1], memory.mask is not None
        contexts = []
        for layer in self.layers:
            attention: Any = layer.cross_attention
            backend, _ = self._select_backend(
                x, attention, keys=keys, ragged=ragged, cached=False, grad=grad
            )
            backend = backend if weights is None else "plain"
            prepared = attention_backends.prepare_mask(backend, mask, matmul_dtype(x))
            contexts.append(AttentionContext(backend, prepared, weights=weights))
        return contexts


def _extend_cache(
    cache: PassCache, x: Tensor, attention_mask: Tensor | None, is_continued: bool
) -> Tensor:
    """Begins a pass, or continues one that ended before a layer; returns its positions."""
    if x.shape[0] != cache.batch_size:  # `len` would fix the batch of an exported model
        raise ValueError(f"{x.shape[0]} rows do not fit a cache of {cache.batch_size} rows")
    if not is_continued:
        return cache.extend(attention_mask, x.shape[1])
    if not getattr(cache, "in_pass", True):
        raise ValueError("with a cache, start continues a call with stop; there is none")
    lengths = cache.lengths[:, None]  # without the tokens of this pass
    if attention_mask is None:
        return lengths + torch.arange(x.shape[1], device=x.device)
    return (lengths + attention_mask.cumsum(1) - 1).clamp_min(0)
