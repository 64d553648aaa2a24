"""A model's weights as the kernels read them, and which models they can do anything with."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from miniformer import registry
from miniformer.model.norm import RMSNorm, ZeroCenteredRMSNorm
from miniformer.runtime.native import ctypes_structs as c
from miniformer.runtime.native.build import NativeKernelsUnavailable, load_library
from miniformer.runtime.native.huge_pages import HugePageArena
from miniformer.runtime.native.weight_layout import (
    PANEL_ROWS,
    interleave_rows,
    pad_rows,
    quantize_int4,
    to_panels,
)

_GROUP_SIZE = 32  # int8 or int4 weights that share a scale
_ACTIVATIONS = {"gelu": 0, "geglu": 0, "gelu_tanh": 1, "geglu_tanh": 1, "relu": 2, "reglu": 2,
                "silu": 3, "swiglu": 3}  # fmt: skip


def unsupported_reason(model: Any) -> str | None:
    """Why the kernels cannot decode with a model; None: they can."""
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return f"its weights are on {weight.device.type}, and the kernels are for CPUs"
    if any(each.dtype != torch.float32 for each in model.parameters()):
        return "its weights are not float32"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    return unsupported_component(model)


def unsupported_component(model: Any) -> str | None:
    """What there is in a model that is none of our own parts as they are; None: nothing."""
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
        if name not in registry.builtin_names(part):
            return f"{part}={name} is none of our own parts"
    if config.activation not in _ACTIVATIONS:
        return f"activation={config.activation} is none of our own parts"
    if config.input_dim is not None or config.output_dim is not None or config.head != "linear":
        return "it does not go from tokens to tokens"
    return None


class NativeWeights:
    """A copy of a model's weights in the order in which a step reads them.

    Args:
        model: a causal Transformer or a Seq2SeqTransformer that is no `why_not`.
        kept: how; see `Engine`.

    Attributes:
        model: what the kernels are told of it all.

    Raises:
        NoKernels: the model has what they do not know.
    """

    def __init__(self, model: Any, weight_dtype: str) -> None:
        self.weight_dtype, self.config = weight_dtype, model.config
        config, stack = model.config, getattr(model, "decoder", model)
        self._tensors: list[Any] = []  # alive as long as the kernels may read it
        self._arena = HugePageArena()
        layers = (c.Layer * len(stack.layers))()
        for made, layer in zip(layers, stack.layers, strict=True):
            self._fill_layer(made, layer)
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
            gated=config.is_gated,
            activation=_ACTIVATIONS[config.activation],
            post=config.effective_norm_placement == "post",
            parallel=config.parallel_residual,
            has_cross=hasattr(model, "decoder"),
            rotated=config.rotary_dim if config.position == "rotary" else 0,
            vocabulary=config.vocab_size,
            embedding_scale=scale,
            logit_scale=1.0 if config.logit_scale is None else config.logit_scale,
            logit_softcap=config.final_softcap or 0.0,
            embedding=self._store_float32(vectors),
            embedding_norm=self._norm(stack.embedding_norm),
            final_norm=self._norm(stack.final_norm),
            head=self._linear(
                model.embedding.weight if model.head.weight is None else model.head.weight,
                model.head.bias,
                is_head=True,
            ),
            layer=ctypes.addressof(layers),
        )
        self._tensors.append(layers)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that a step reads; of the embedding it reads a row for each token."""
        read = sum(each.nbytes for each in self._tensors if isinstance(each, Tensor))
        return int(read - self.config.vocab_size * self.config.d_model * 4)

    def _fill_layer(self, struct: Any, layer: Any) -> None:
        for ours, theirs in (
            ("attention_in", "attention_norm"), ("attention_out", "attention_out_norm"),
            ("cross_in", "cross_attention_norm"), ("cross_out", "cross_attention_out_norm"),
            ("feed_in", "feed_forward_norm"), ("feed_out", "feed_forward_out_norm"),
        ):  # fmt: skip
            setattr(struct, ours, self._norm(getattr(layer, theirs, None)))
        self_attention = layer.attention
        struct.attention = self._attention(
            self_attention, [self_attention.q_proj, self_attention.k_proj, self_attention.v_proj]
        )
        if hasattr(layer, "cross_attention"):
            struct.cross = self._attention(layer.cross_attention, [layer.cross_attention.q_proj])
        feed = layer.feed_forward
        parts = [feed.up_proj] if feed.gate_proj is None else [feed.gate_proj, feed.up_proj]
        bias = None
        if feed.up_proj.bias is not None:
            bias = interleave_rows([part.bias[:, None] for part in parts])[:, 0]
        struct.up = self._linear(interleave_rows([part.weight for part in parts]), bias)
        struct.down = self._linear(feed.down_proj.weight, feed.down_proj.bias)

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
            each_head=attention.qk_norm_per_head,
            window=attention.window or 0,
            rotation=int(local) if turned else -1,
            has_sinks=attention.sinks is not None,
            scale=attention.head_dim**-0.5 if scale is None else scale,
            softcap=attention.softcap or 0.0,
            sinks=None if attention.sinks is None else self._store_float32(attention.sinks),
        )

    def _norm(self, norm: nn.Module | None) -> Any:
        if norm is None or isinstance(norm, nn.Identity):
            return c.Norm()
        if isinstance(norm, nn.LayerNorm):
            bias = None if norm.bias is None else self._store_float32(norm.bias)
            weight = self._store_float32(norm.weight)
            return c.Norm(kind=2, width=norm.weight.numel(), eps=norm.eps, weight=weight, bias=bias)
        if not isinstance(norm, RMSNorm):
            raise NativeKernelsUnavailable(f"{type(norm).__name__} is none of our own norms")
        gain = 1 + norm.weight if isinstance(norm, ZeroCenteredRMSNorm) else norm.weight
        return c.Norm(kind=1, width=gain.numel(), eps=norm.eps, weight=self._store_float32(gain))

    def _linear(self, weight: Tensor, bias: Tensor | None, is_head: bool = False) -> Any:
        weight, kept = weight.detach(), self.weight_dtype
        rows, columns = weight.shape
        made = c.Linear(kind=0, rows=rows, columns=columns)
        weight = pad_rows(weight, PANEL_ROWS)
        if kept in ("int8", "int4") and columns % _GROUP_SIZE:
            kept = "float32"
        if kept == "bf16":
            made.kind, weight = 1, to_panels(weight.bfloat16(), PANEL_ROWS)
        elif kept == "int8" or (kept == "int4" and is_head):
            small, scales = self._quantize_int8(weight)
            made.kind, weight = 2, to_panels(small.view(len(small), -1, 4), PANEL_ROWS)
            made.scales = self._store(to_panels(scales, PANEL_ROWS))
        elif kept == "int4":
            small, scales = quantize_int4(weight, _GROUP_SIZE)
            made.kind, weight = 3, to_panels(small, PANEL_ROWS)
            made.scales = self._store(to_panels(scales, PANEL_ROWS))
        else:
            weight = to_panels(weight, PANEL_ROWS)
        made.weight = self._store(weight)
        made.bias = (
            None if bias is None else self._store_float32(pad_rows(bias.detach(), PANEL_ROWS))
        )
        return made

    def _quantize_int8(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A matrix in int8, and the scales of its groups."""
        weight = weight.contiguous()
        small = torch.empty(weight.shape, dtype=torch.int8)
        scales = torch.empty(len(weight), weight.shape[1] // _GROUP_SIZE)
        load_library().engine_quantise(
            weight.data_ptr(), weight.numel(), small.data_ptr(), scales.data_ptr()
        )
        return small, scales

    def _store_float32(self, tensor: Tensor) -> int:
        return self._store(tensor.detach().float())

    def _store(self, tensor: Tensor) -> int:
        self._tensors.append(self._arena.copy_tensor(tensor))
        return int(self._tensors[-1].data_ptr())
