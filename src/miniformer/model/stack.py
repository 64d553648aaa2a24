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
from miniformer.model import backends
from miniformer.model.attention import Context, MultiHeadAttention
from miniformer.model.cache import KVCache
from miniformer.model.checkpointing import check_how, checkpointed
from miniformer.model.kernels import Scores
from miniformer.model.layers import DecoderLayer, EncoderLayer
from miniformer.model.masks import Visibility, make_cross_mask, make_lengths, make_visibility
from miniformer.model.norm import make_norm
from miniformer.model.precision import product_dtype


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
        self.final_norm = nn.Identity() if config.placement == "post" else make_norm(config)
        self.checkpointing = "none"  # see `set_activation_checkpointing`

    def run(
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
        positions, contexts = self._contexts(x, attention_mask, segment_ids, cache)
        if self.training and self.config.token_dropout:
            x = self.token_dropout(x)
        vectors = self.position.vectors(positions)
        if vectors is not None:
            x = x + vectors.to(x.dtype)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = self.dropout(x)
        sources = [] if memory is None else self._sources(x, memory)
        for index, layer in enumerate(self.layers):
            extra: dict[str, Any] = {}
            if memory is not None:
                extra["source"], extra["memory"] = sources[index], memory.features
            if self.checkpointing != "none" and self.training and cache is None:
                x = checkpointed(self.checkpointing, layer, x, contexts[index], **extra)
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
        grad = self._wants_gradients(weight)
        lines = []
        for name, module in self.named_modules():
            if isinstance(module, MultiHeadAttention):
                window = None if module.cross else module.window
                seen = make_visibility(
                    1, keys, causal=self.causal, window=window, device=weight.device
                )
                uneven = ragged or seen.narrow
                call = self._call(
                    weight, module, keys=keys, ragged=uneven, cached=cached, grad=grad
                )
                lines.append("{}: {} ({})".format(name, *backends.choose(module.backend, call)))
        return lines

    def _contexts(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        cache: KVCache | None,
    ) -> tuple[Tensor, list[Context]]:
        """Positions, and what each layer's attention needs; layers that are alike share it."""
        if cache is not None:
            if len(x) != cache.batch_size:
                raise ValueError(f"{len(x)} rows do not fit a cache of {cache.batch_size} rows")
            positions = cache.extend(attention_mask, x.shape[1])
            lengths = cache.spans  # rotated keys stay as they are, so one must do for all steps
        else:
            lengths = make_lengths(
                x.shape[1], attention_mask=attention_mask, segment_ids=segment_ids, device=x.device
            )
        grad = self._wants_gradients(x)
        seen: dict[int | None, Visibility] = {}
        shared: dict[tuple[Any, ...], Context] = {}
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
            ragged, cached = not some.in_order or some.narrow, cache is not None
            call = self._call(x, attention, keys=some.keys, ragged=ragged, cached=cached, grad=grad)
            backend, _ = backends.choose(getattr(attention, "backend", "auto"), call)
            alike = (window, backend, call.sinks)
            if alike not in shared:
                shared[alike] = self._context(x, attention, some, backend, lengths)
            contexts.append(shared[alike])
        return positions, contexts

    def _context(
        self,
        x: Tensor,
        attention: nn.Module,
        seen: Visibility,
        backend: str,
        lengths: Tensor,
    ) -> Context:
        bias = self.position.bias(seen.query_positions, seen.key_positions)
        scores = Scores(sinks=getattr(attention, "sinks", None), bias=bias)
        local = getattr(attention, "window", None) is not None
        rotation = self.position.rotation(seen.query_positions, length=lengths, local=local)
        mask = backends.prepare(backend, seen, scores, rows=len(x), dtype=product_dtype(x))
        return Context(backend, mask, rotation, bias)

    def _wants_gradients(self, *inputs: Tensor) -> bool:
        """Whether there will be a backward pass, to the inputs or to any weight."""
        tensors = itertools.chain(inputs, self.parameters())
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    def _call(
        self,
        x: Tensor,
        attention: nn.Module,
        *,
        keys: int,
        ragged: bool,
        cached: bool,
        grad: bool,
    ) -> backends.Call:
        cross = getattr(attention, "cross", False)
        return backends.Call(
            device=x.device.type,
            dtype=product_dtype(x),
            grad=grad,
            ragged=ragged,
            cached=cached,
            cross=cross,
            keys=keys,
            width=getattr(attention, "head_dim", 64),  # a user's own part may not say: as most
            softcap=getattr(attention, "softcap", None) is not None,
            sinks=getattr(attention, "sinks", None) is not None,
            bias=self.position.adds_bias and not cross,
        )

    def _sources(self, x: Tensor, memory: Memory) -> list[Context]:
        """For each layer, the mask of the source."""
        mask = make_cross_mask(memory.mask)
        grad = self._wants_gradients(x, memory.features)
        contexts = []
        attentions: list[Any] = [layer.cross_attention for layer in self.layers]
        for attention in attentions:
            keys, ragged = memory.features.shape[1], memory.mask is not None
            call = self._call(x, attention, keys=keys, ragged=ragged, cached=False, grad=grad)
            backend, _ = backends.choose(attention.backend, call)
            contexts.append(
                Context(backend, backends.prepare_mask(backend, mask, product_dtype(x)))
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
    backends.check_name(backend)
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


def set_activation_checkpointing(model: nn.Module, how: str) -> None:
    """Chooses what a training pass keeps for the backward pass; see `checkpointing`.

    Args:
        model: a model, or a part of one.
        how: none, selective or full.

    Raises:
        UserError: there is no such way.
    """
    check_how(how)
    for stack in (module for module in model.modules() if isinstance(module, Stack)):
        stack.checkpointing = how
