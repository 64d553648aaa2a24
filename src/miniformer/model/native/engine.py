"""A model's weights as the kernels read them, and steps with them.

Letters: B rows, D model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import UserError
from miniformer.model.cache import KVCache
from miniformer.model.native import structures as c
from miniformer.model.native.build import NoKernels, library
from miniformer.model.native.threads import one_thread
from miniformer.model.norm import RMSNorm, ZeroCenteredRMSNorm

WEIGHTS = ("float32", "bf16", "int8")
_ENGINES: weakref.WeakKeyDictionary[Any, tuple[Any, Engine]] = weakref.WeakKeyDictionary()
_GROUP = 32  # int8 weights that share a scale
_ACTIVATIONS = {"gelu": 0, "geglu": 0, "gelu_tanh": 1, "geglu_tanh": 1, "relu": 2, "reglu": 2,
                "silu": 3, "swiglu": 3}  # fmt: skip


def why_not(model: Any) -> str | None:
    """Why the kernels cannot decode with a model; None: they can."""
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return f"its weights are on {weight.device.type}, and the kernels are for CPUs"
    if any(each.dtype != torch.float32 for each in model.parameters()):
        return "its weights are not float32"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    if "features" in vars(model) or "logits" in vars(model):
        return "its methods have been replaced"
    for module in model.modules():
        kind = type(module)
        if not kind.__module__.startswith(("miniformer.model.", "torch.nn.modules.")):
            return f"{kind.__name__} is none of our own parts"
        if module._forward_hooks or module._forward_pre_hooks:
            return "it has hooks"
    config = model.config
    for part, name in (("norm", config.norm), ("position", config.position)):
        if name not in registry.built_in(part):
            return f"{part}={name} is none of our own parts"
    if config.activation not in _ACTIVATIONS:
        return f"activation={config.activation} is none of our own parts"
    if config.input_dim is not None or config.output_dim is not None or config.head != "linear":
        return "it does not go from tokens to tokens"
    return None


class NoKernelsWarning(UserWarning):
    """Decoding is slower than it could be on this machine."""


class Engine:
    """A model ready for the kernels.

    Args:
        model: a causal Transformer or a Seq2SeqTransformer; its weights are copied.
        weights: how they are kept: float32, bf16, or int8 with a scale for each 32 along a row
            (inputs of products then are, too).
        threads: that share a step.

    Raises:
        NoKernels: they cannot be compiled, or the model has what they do not know.
    """

    def __init__(self, model: Any, weights: str = "float32", threads: int = 1) -> None:
        reason = why_not(model)
        if reason is not None:
            raise NoKernels(reason)
        self.library, self.weights = library(), weights
        self.config = config = model.config
        stack = getattr(model, "decoder", model)
        self._stack = weakref.ref(stack)  # an engine is kept for a model, and must not keep it
        self._kept: list[Any] = []  # alive as long as the kernels may read it
        layers = (c.Layer * len(stack.layers))()
        for made, layer in zip(layers, stack.layers, strict=True):
            self._layer(made, layer)
        scale = 1.0 if config.embedding_scale is None else config.embedding_scale
        vectors, kinds = model.embedding.weight, getattr(model, "type_embedding", None)
        if kinds is not None:  # text that is written is of type 0
            vectors, scale = vectors * scale + kinds.weight[0], 1.0
        self.model = c.Model(
            width=config.d_model,
            heads=config.n_heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_width,
            inner=config.ff_width,
            layers=len(layers),
            gated=config.gated,
            activation=_ACTIVATIONS[config.activation],
            post=config.placement == "post",
            parallel=config.parallel_residual,
            has_cross=hasattr(model, "decoder"),
            rotated=config.rotary_dim if config.position == "rotary" else 0,
            vocabulary=config.vocab_size,
            embedding_scale=scale,
            logit_scale=1.0 if config.logit_scale is None else config.logit_scale,
            logit_softcap=config.final_softcap or 0.0,
            embedding=self._floats(vectors),
            embedding_norm=self._norm(stack.embedding_norm),
            final_norm=self._norm(stack.final_norm),
            head=self._linear(
                model.embedding.weight if model.head.weight is None else model.head.weight,
                model.head.bias,
            ),
            layer=ctypes.addressof(layers),
        )
        self._kept.append(layers)
        self.handle = self.library.engine_new(threads)
        weakref.finalize(self, _free, self.library, self.handle, os.getpid())

    @property
    def stack(self) -> Any:
        """The layers that it was made of."""
        return self._stack()

    @property
    def nbytes(self) -> int:
        """Bytes of weights that a step reads; of the embedding it reads a row for each token."""
        read = sum(each.nbytes for each in self._kept if isinstance(each, Tensor))
        return int(read - self.config.vocab_size * self.config.d_model * 4)

    def begin(self, cache: KVCache, mask: Tensor | None = None) -> Steps:
        """Steps that go on from what is in a cache.

        Args:
            cache: of kind full, with the source's keys and values where the model is a decoder.
            mask: which of the source is real, bool [B, S]; None: all.
        """
        return Steps(self, cache, mask)

    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        """What is done between steps is done so that it leaves the cores to them."""
        return one_thread()

    def _layer(self, made: Any, layer: Any) -> None:
        for ours, theirs in (
            ("attention_in", "attention_norm"), ("attention_out", "attention_out_norm"),
            ("cross_in", "cross_attention_norm"), ("cross_out", "cross_attention_out_norm"),
            ("feed_in", "feed_forward_norm"), ("feed_out", "feed_forward_out_norm"),
        ):  # fmt: skip
            setattr(made, ours, self._norm(getattr(layer, theirs, None)))
        self_attention = layer.attention
        made.attention = self._attention(
            self_attention, [self_attention.q_proj, self_attention.k_proj, self_attention.v_proj]
        )
        if hasattr(layer, "cross_attention"):
            made.cross = self._attention(layer.cross_attention, [layer.cross_attention.q_proj])
        feed = layer.feed_forward
        parts = [feed.up_proj] if feed.gate_proj is None else [feed.gate_proj, feed.up_proj]
        bias = None
        if feed.up_proj.bias is not None:
            bias = torch.stack([part.bias for part in parts], 1).flatten()
        rows = torch.stack([part.weight for part in parts], 1).flatten(0, 1)
        made.up = self._linear(rows, bias)  # gate and up in turns of rows
        made.down = self._linear(feed.down_proj.weight, feed.down_proj.bias)

    def _attention(self, attention: Any, parts: Sequence[nn.Linear]) -> Any:
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        local = bool(attention.window) and self.config.rotary_base_local is not None
        turned = self.config.position == "rotary" and not attention.cross
        scale = attention.scale
        return c.Attention(
            qkv=self._linear(torch.cat([part.weight for part in parts]), bias),
            out=self._linear(attention.o_proj.weight, attention.o_proj.bias),
            q_norm=self._norm(attention.q_norm),
            k_norm=self._norm(attention.k_norm),
            each_head=attention.each_head,
            window=attention.window or 0,
            rotation=int(local) if turned else -1,
            has_sinks=attention.sinks is not None,
            scale=attention.head_dim**-0.5 if scale is None else scale,
            softcap=attention.softcap or 0.0,
            sinks=None if attention.sinks is None else self._floats(attention.sinks),
        )

    def _norm(self, norm: nn.Module | None) -> Any:
        if norm is None or isinstance(norm, nn.Identity):
            return c.Norm()
        if isinstance(norm, nn.LayerNorm):
            bias = None if norm.bias is None else self._floats(norm.bias)
            weight = self._floats(norm.weight)
            return c.Norm(kind=2, width=norm.weight.numel(), eps=norm.eps, weight=weight, bias=bias)
        if not isinstance(norm, RMSNorm):
            raise NoKernels(f"{type(norm).__name__} is none of our own norms")
        gain = 1 + norm.weight if isinstance(norm, ZeroCenteredRMSNorm) else norm.weight
        return c.Norm(kind=1, width=gain.numel(), eps=norm.eps, weight=self._floats(gain))

    def _linear(self, weight: Tensor, bias: Tensor | None) -> Any:
        weight = weight.detach().contiguous()
        rows, columns = weight.shape
        made = c.Linear(kind=0, rows=rows, columns=columns)
        if self.weights == "bf16":
            made.kind, weight = 1, weight.bfloat16()
        elif self.weights == "int8" and columns % _GROUP == 0:  # else it stays as it is
            small = torch.empty(rows, columns, dtype=torch.int8)
            scales = torch.empty(rows, columns // _GROUP)
            self.library.engine_quantise(
                weight.data_ptr(), weight.numel(), small.data_ptr(), scales.data_ptr()
            )
            made.kind, weight = 2, small
            made.scales = self._keep(scales)
        made.weight = self._keep(weight)
        made.bias = None if bias is None else self._floats(bias)
        return made

    def _floats(self, tensor: Tensor) -> int:
        return self._keep(tensor.detach().float().contiguous())

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


class Steps:
    """Steps from one cache on; see `Engine.begin`. With other rows than before new ones are due."""

    def __init__(self, engine: Engine, cache: KVCache, mask: Tensor | None) -> None:
        config = engine.config
        self.engine, self.cache = engine, cache
        self._kept: list[Any] = []
        self.step = step = c.Step(rows=cache.batch_size, capacity=cache.capacity)
        width = 3 * config.d_model + config.ff_width
        width += 2 * (config.n_heads + config.kv_heads) * config.head_width
        step.work = self._keep(torch.empty(cache.batch_size * width))
        step.keys = self._pointers([layer.keys for layer in cache.layers])
        step.values = self._pointers([layer.values for layer in cache.layers])
        if config.position == "rotary":
            self._tables()
        if cache.cross is not None:
            step.source_columns = cache.cross[0][0].shape[2]
            step.source_keys = self._pointers([keys.contiguous() for keys, _ in cache.cross])
            step.source_values = self._pointers([values.contiguous() for _, values in cache.cross])
            if mask is not None:
                step.source_mask = self._keep(mask.to(torch.uint8).contiguous())

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits after each row's next token: int [B] -> float32 [B, V]."""
        cache, step, engine = self.cache, self.step, self.engine
        config, position = engine.config, engine.stack.position
        rows = cache.batch_size
        if rows != step.rows:  # else memory would be read that is somebody else's
            raise ValueError(f"steps begun with {step.rows} rows are asked for {rows}; begin anew")
        placed = cache.extend(None, 1)  # [B or 1, 1]
        positions, tokens = placed.expand(rows, 1).contiguous(), tokens.contiguous()
        step.columns = cache.stop
        step.tokens, step.positions = tokens.data_ptr(), positions.data_ptr()
        step.key_positions = None if cache.positions is None else cache.positions.data_ptr()
        vectors = position.vectors(placed)
        if vectors is not None:
            vectors = vectors.expand(rows, 1, config.d_model).float().contiguous()
            step.vectors = vectors.data_ptr()
        if position.adds_bias:
            columns = cache.layers[0].key_positions(cache)
            bias = position.bias(placed, columns).float().contiguous()  # [B or 1, H, 1, S]
            step.bias, step.bias_per_row = bias.data_ptr(), len(bias) > 1
        logits = torch.empty(rows, config.vocab_size)
        step.logits = logits.data_ptr()
        engine.library.engine_step(
            engine.handle, ctypes.addressof(engine.model), ctypes.addressof(step)
        )
        cache.end_pass()
        return logits

    def _tables(self) -> None:
        """cos and sin of every position that may come, for layers without and with a window."""
        cache, step = self.cache, self.step
        places = torch.arange(cache.capacity)[None]
        turn = self.engine.stack.position.rotation
        tables = [turn(places, length=cache.spans, local=local) for local in (False, True)]
        rows = max(len(table.cos) for table in tables)
        cosines, sines = (
            [getattr(table, name).float().expand(rows, -1, -1, -1).contiguous() for table in tables]
            for name in ("cos", "sin")
        )
        step.table_length, step.tables_per_row = cache.capacity, rows > 1
        step.cosines, step.sines = self._pointers(cosines), self._pointers(sines)

    def _pointers(self, tensors: Sequence[Tensor]) -> int:
        pointers = (ctypes.c_void_p * len(tensors))(*map(self._keep, tensors))
        self._kept.append(pointers)
        return ctypes.addressof(pointers)

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def engine_for(model: Any, weights: str = "float32") -> Engine | None:
    """The model's engine, made anew where its weights have changed; None: decode without.

    Args:
        model: a causal Transformer or a Seq2SeqTransformer.
        weights: see `Engine`.

    Raises:
        UserError: other weights than float32 are asked for, and the kernels cannot be had.
    """
    # A process that was forked has none of its parent's threads.
    now = (weights, torch.get_num_threads(), os.getpid(), *map(_state, model.parameters()))
    known = _ENGINES.get(model)
    if known is not None and known[0] == now and why_not(model) is None:
        return known[1]
    try:
        made = Engine(model, weights, torch.get_num_threads())
    except NoKernels as error:
        if weights != "float32":
            raise UserError(f"weights={weights} needs the decoding kernels: {error}") from None
        _tell_once(str(error))
        return None
    _ENGINES[model] = (now, made)
    return made


def _free(library: ctypes.CDLL, handle: int, process: int) -> None:
    if os.getpid() == process:
        library.engine_free(handle)


def _state(parameter: Tensor) -> tuple[int, int]:
    """What changes with a weight."""
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


@functools.cache
def _tell_once(reason: str) -> None:
    if "compile" in reason:
        warnings.warn(
            f"decoding goes without its kernels, several times slower: {reason}",
            NoKernelsWarning,
            stacklevel=2,
        )
