"""A stack of layers with its positions: what encoder and decoder have in common.

    x -> token dropout -> + position vectors -> norm, if any -> dropout -> layers -> final norm
                                                                  (but for post-norm)

Letters: B batch, T length, S source length, D model width.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import TransformerConfig, UserError
from miniformer.model import attention_backends
from miniformer.model.attention import AttentionContext, MultiHeadAttention
from miniformer.model.attention_backends.functions import ScoreOptions
from miniformer.model.cache.kv_cache import KVCache
from miniformer.model.layers import DecoderLayer, EncoderLayer
from miniformer.model.masks import (
    Visibility,
    make_cross_mask,
    make_sequence_lengths,
    make_visibility,
)
from miniformer.model.norm import make_norm
from miniformer.model.ops.activation_checkpointing import check_mode, checkpoint_layer
from miniformer.model.ops.precision import matmul_dtype


class Memory(NamedTuple):
    """An encoded source, which a decoder reads."""

    features: Tensor  # [B, S, D]
    mask: Tensor | None = None  # bool [B, S], True = a real token


class Stack(nn.Module):
    """Layers of one kind, one after another: [B, T, D] -> [B, T, D].

    Args:
        config: its parts.
        n_layers: number of layers.
        causal: whether a position sees no later one.
        cross: whether the layers read a source, too.
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

    def run_layers(
        self,
        x: Tensor,
        *,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: KVCache | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Embedded inputs to features, normalised: [B, T, D] -> [B, T, D].

        Args:
            x: embedded inputs.
            attention_mask: bool [B, T], True = a real position; None: all are.
            segment_ids: int [B, T], see `Transformer.forward`.
            cache: keys and values of earlier tokens.
            memory: the source that a decoder reads.
        """
        positions, contexts = self._attention_contexts(x, attention_mask, segment_ids, cache)
        if self.training and self.config.token_dropout:
            x = self.token_dropout(x)
        vectors = self.position.vectors(positions)
        if vectors is not None:
            x = x + vectors.to(x.dtype)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = self.dropout(x)
        sources = [] if memory is None else self._source_contexts(x, memory)
        for index, layer in enumerate(self.layers):
            extra: dict[str, Any] = {}
            if memory is not None:
                extra["source"], extra["memory"] = sources[index], memory.features
            if self.checkpointing != "none" and self.training and cache is None:
                x = checkpoint_layer(self.checkpointing, layer, x, contexts[index], **extra)
            else:
                x = layer(x, contexts[index], cache=cache, layer=index, **extra)
        out: Tensor = self.final_norm(x)
        if cache is not None:
            cache.end_pass()
        return out

    def new_cache(self, batch_size: int, capacity: int, kind: str = "window") -> KVCache:
        """An empty cache for `batch_size` rows of at most `capacity` tokens; see `KVCache`."""
        weight = next(self.parameters())
        return KVCache(
            windows=[getattr(layer.attention, "window", None) for layer in self.layers],
            batch_size=batch_size,
            capacity=capacity,
            kv_heads=self.config.kv_heads,
            head_dim=self.config.head_width,
            device=weight.device,
            dtype=weight.dtype,
            kind=kind,
        )

    def backend_report(
        self, *, ragged: bool = False, cached: bool = False, keys: int | None = None
    ) -> list[str]:
        """For each attention, which backend computes it on this device and type, and why.

        Args:
            ragged: where there is padding, or several texts in a row. What layers with a window
                need is known without.
            cached: in cached decoding.
            keys: number S of keys, as the choice may depend on it; None: `max_seq_len`.
        """
        weight = next(self.parameters())
        keys = self.config.max_seq_len if keys is None else keys
        grad = self._needs_grad(weight)
        lines = []
        for name, module in self.named_modules():
            if isinstance(module, MultiHeadAttention):
                window = None if module.cross else module.window
                seen = make_visibility(
                    1, keys, causal=self.causal, window=window, device=weight.device
                )
                uneven = ragged or seen.window_active
                call = self._attention_requirements(
                    weight, module, keys=keys, ragged=uneven, cached=cached, grad=grad
                )
                lines.append(
                    "{}: {} ({})".format(
                        name, *attention_backends.select_backend(module.backend, call)
                    )
                )
        return lines

    def _attention_contexts(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        cache: KVCache | None,
    ) -> tuple[Tensor, list[AttentionContext]]:
        """Positions, and what each layer's attention needs; layers that are alike share it."""
        if cache is not None:
            if len(x) != cache.batch_size:
                raise ValueError(f"{len(x)} rows do not fit a cache of {cache.batch_size} rows")
            positions = cache.extend(attention_mask, x.shape[1])
            lengths = (
                cache.final_lengths
            )  # rotated keys stay as they are, so one must do for all steps
        else:
            lengths = make_sequence_lengths(
                x.shape[1], attention_mask=attention_mask, segment_ids=segment_ids, device=x.device
            )
        grad = self._needs_grad(x)
        seen: dict[int | None, Visibility] = {}
        shared: dict[tuple[Any, ...], AttentionContext] = {}
        contexts = []
        for index, layer in enumerate(self.layers):
            attention: Any = layer.attention
            window = getattr(attention, "window", None)
            if window not in seen and cache is not None:
                seen[window] = cache.visibility(index, positions, window)
            elif window not in seen:
                seen[window] = make_visibility(
                    *x.shape[:2],
                    causal=self.causal,
                    window=window,
                    attention_mask=attention_mask,
                    segment_ids=segment_ids,
                    device=x.device,
                )
                positions = seen[window].query_positions
            some = seen[window]
            ragged, cached = not some.is_dense or some.window_active, cache is not None
            call = self._attention_requirements(
                x, attention, keys=some.num_keys, ragged=ragged, cached=cached, grad=grad
            )
            backend, _ = attention_backends.select_backend(
                getattr(attention, "backend", "auto"), call
            )
            alike = (window, backend, call.sinks)
            if alike not in shared:
                shared[alike] = self._attention_context(x, attention, some, backend, lengths)
            contexts.append(shared[alike])
        return positions, contexts

    def _attention_context(
        self,
        x: Tensor,
        attention: nn.Module,
        visibility: Visibility,
        backend: str,
        lengths: Tensor,
    ) -> AttentionContext:
        bias = self.position.bias(visibility.query_positions, visibility.key_positions)
        scores = ScoreOptions(sinks=getattr(attention, "sinks", None), bias=bias)
        local = getattr(attention, "window", None) is not None
        rotation = self.position.rotation(visibility.query_positions, length=lengths, local=local)
        mask = attention_backends.prepare(
            backend, visibility, scores, batch_size=len(x), dtype=matmul_dtype(x)
        )
        return AttentionContext(backend, mask, rotation, bias)

    def _needs_grad(self, *inputs: Tensor) -> bool:
        """Whether there will be a backward pass, to the inputs or to any weight."""
        tensors = itertools.chain(inputs, self.parameters())
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    def _attention_requirements(
        self,
        x: Tensor,
        attention: nn.Module,
        *,
        keys: int,
        ragged: bool,
        cached: bool,
        grad: bool,
    ) -> attention_backends.AttentionRequirements:
        cross = getattr(attention, "cross", False)
        return attention_backends.AttentionRequirements(
            device=x.device.type,
            dtype=matmul_dtype(x),
            needs_grad=grad,
            ragged=ragged,
            cached=cached,
            cross=cross,
            num_keys=keys,
            head_dim=getattr(attention, "head_dim", 64),  # a user's own part may not say: as most
            softcap=getattr(attention, "softcap", None) is not None,
            sinks=getattr(attention, "sinks", None) is not None,
            bias=self.position.adds_bias and not cross,
        )

    def _source_contexts(self, x: Tensor, memory: Memory) -> list[AttentionContext]:
        """For each layer, the mask of the source."""
        mask = make_cross_mask(memory.mask)
        grad = self._needs_grad(x, memory.features)
        contexts = []
        attentions: list[Any] = [layer.cross_attention for layer in self.layers]
        for attention in attentions:
            keys, ragged = memory.features.shape[1], memory.mask is not None
            call = self._attention_requirements(
                x, attention, keys=keys, ragged=ragged, cached=False, grad=grad
            )
            backend, _ = attention_backends.select_backend(attention.backend, call)
            contexts.append(
                AttentionContext(
                    backend, attention_backends.prepare_mask(backend, mask, matmul_dtype(x))
                )
            )
        return contexts


def set_attention_backend(model: nn.Module, backend: str, layers: list[int] | None = None) -> None:
    """Chooses how attention is computed: auto, or the name of a backend; see `backends`.

    Args:
        model: a model, or a part of one.
        backend: its name.
        layers: indices of the layers to change; None: all.

    Raises:
        UserError: there is no such backend, or no such layer. A backend that cannot compute a
            model's attention says so when the model is called.
    """
    attention_backends.check_backend_name(backend)
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    count = max((len(stack.layers) for stack in stacks), default=0)
    missing = [index for index in layers or [] if not 0 <= index < count]
    if missing:
        there = f"its layers are 0 to {count - 1}" if count else "it has no stack of layers"
        raise UserError(f"the model has no layer {missing[0]}; {there}")
    for stack in stacks:
        for index, layer in enumerate(stack.layers):
            for module in layer.modules():
                if isinstance(module, MultiHeadAttention) and (layers is None or index in layers):
                    module.backend = backend


def set_activation_checkpointing(model: nn.Module, mode: str) -> None:
    """Chooses what a training pass keeps for the backward pass; see `checkpointing`.

    Args:
        model: a model, or a part of one.
        how: none, selective or full.

    Raises:
        UserError: there is no such way.
    """
    check_mode(mode)
    for stack in (module for module in model.modules() if isinstance(module, Stack)):
        stack.checkpointing = mode
