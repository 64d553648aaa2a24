"""Conversion of model weights for the kernels, and the check of supported models."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from miniformer import registry
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.matrices import named_components
from miniformer.model.norm import RMSNorm, ZeroCenteredRMSNorm
from miniformer.model.ops.linear import effective_weight
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

GROUP_SIZE = 32  # int8 or int4 weights per scale
_ACTIVATIONS = {"gelu": 0, "geglu": 0, "gelu_tanh": 1, "geglu_tanh": 1, "relu": 2, "reglu": 2,
                "silu": 3, "swiglu": 3}  # fmt: skip


def smallest_exact_dtype(weight: Tensor) -> str:
    """The type with the fewest bytes in which the kernels hold a matrix without an error.

    Matrices that `quantize` stored have one; trained or merged ones do not. A few rows are checked
    first, since most matrices fail there.

    Args:
        weight: float32 [rows, columns].
    """
    dtypes = ["bf16"] if weight.shape[1] % GROUP_SIZE else ["int4", "int8", "bf16"]
    for dtype in dtypes:
        if all(torch.equal(_round_trip(part, dtype), part) for part in (weight[:8], weight)):
            return dtype
    return "float32"


def _round_trip(weight: Tensor, dtype: str) -> Tensor:
    """The weights that the kernels compute with."""
    if dtype == "bf16":
        return weight.bfloat16().float()
    if dtype == "int8":
        values, scales = quantize_int8(weight)
    else:
        packed, scales = quantize_int4(weight, GROUP_SIZE)
        pairs = torch.stack((packed & 15, packed >> 4), 2)  # [rows, columns / 8, 2, 4]
        values = pairs.flatten(1).to(torch.int8) - 8
    groups = values.view(*scales.shape, GROUP_SIZE) * scales[..., None]
    return groups.flatten(1)


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes a matrix; returns int8 values and the scales of the groups."""
    weight, columns = weight.contiguous(), weight.shape[1]
    # The kernel writes beyond the scales of other widths.
    assert columns % GROUP_SIZE == 0, f"{columns} columns are no groups of {GROUP_SIZE}"
    quantized = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight), columns // GROUP_SIZE)
    load_library().engine_quantize(
        weight.data_ptr(), weight.numel(), quantized.data_ptr(), scales.data_ptr()
    )
    return quantized, scales


def unsupported_reason(model: Any) -> str | None:
    """Reason why the kernels do not support a model; None if they do."""
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return f"its weights are on {weight.device.type}, and the kernels are for CPUs"
    for _, module in named_components(model):
        weights = () if hasattr(module, "effective_weight") else module.parameters(recurse=False)
        if any(weight.dtype != torch.float32 for weight in weights):
            return "its weights are not float32"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    return unsupported_component(model)


def unsupported_component(model: Any) -> str | None:
    """Custom component or setting of a model; None if it has only unmodified built-in ones.

    Linear-like modules with a method `effective_weight` are supported.
    """
    if "features" in vars(model) or "logits" in vars(model):
        return "its methods have been replaced"
    for _, module in named_components(model):
        kind = type(module)
        is_built_in = kind.__module__.startswith(("miniformer.model.", "torch.nn.modules."))
        if not (is_built_in or hasattr(module, "effective_weight")):
            return f"{kind.__name__} is not a built-in component"
        if module._forward_hooks or module._forward_pre_hooks:
            return "it has hooks"
        if isinstance(module, MultiHeadAttention):
            heads = (module.n_heads, module.kv_heads)
            if heads != (model.config.n_heads, model.config.kv_heads):
                return "some of its heads are pruned"
    config = model.config
    for category, name in (("norm", config.norm), ("position", config.position)):
        if name not in registry.builtin_names(category):
            return f"{category}={name} is not a built-in component"
    if config.activation not in _ACTIVATIONS:
        return f"activation={config.activation} is not a built-in component"
    # The encoder of a seq2seq model reads its source without the kernels.
    reads_tokens = config.input_type == "tokens" or hasattr(model, "decoder")
    if not reads_tokens or config.output_dim is not None or config.head != "linear":
        return "its inputs or outputs are not tokens"
    return None


def pack_linear(
    weight: Tensor, bias: Tensor | None, dtype: str, store: Callable[[Tensor], int]
) -> Any:
    """Copies a matrix and its bias to the layout of the kernels.

    Args:
        weight: float32 [rows, columns].
        bias: [rows].
        dtype: see `Engine`. Instead of int8 or int4, a matrix whose columns are no multiple of 32
            has float32.
        store: copies a tensor to memory that lives as long as the struct; returns its address.
    """
    weight = weight.detach()
    rows, columns = weight.shape
    struct = c.Linear(kind=0, rows=rows, columns=columns)
    weight = pad_rows(weight, PANEL_ROWS)
    if dtype == "stored":
        dtype = smallest_exact_dtype(weight)
    if dtype in ("int8", "int4") and columns % GROUP_SIZE:
        dtype = "float32"
    if dtype == "bf16":
        struct.kind, weight = 1, to_panels(weight.bfloat16(), PANEL_ROWS)
    elif dtype == "int8":
        quantized, scales = quantize_int8(weight)
        quantized = quantized.view(len(quantized), -1, 4)
        struct.kind, weight = 2, to_panels(quantized, PANEL_ROWS)
        struct.scales = store(to_panels(scales, PANEL_ROWS))
    elif dtype == "int4":
        quantized, scales = quantize_int4(weight, GROUP_SIZE)
        struct.kind, weight = 3, to_panels(quantized, PANEL_ROWS)
        struct.scales = store(to_panels(scales, PANEL_ROWS))
    else:
        weight = to_panels(weight, PANEL_ROWS)
    struct.weight = store(weight)
    if bias is not None:
        struct.bias = store(pad_rows(bias.detach().float(), PANEL_ROWS))
    return struct


class NativeWeights:
    """Copy of the weights in the layout of the kernels.

    Args:
        model: causal Transformer or Seq2SeqTransformer without `unsupported_reason`.
        weight_dtype: see `Engine`.

    Attributes:
        model: the model struct of the kernels.

    Raises:
        NativeKernelsUnavailable: the model has an unsupported norm, or an effective weight of
            another type.
    """

    def __init__(self, model: Any, weight_dtype: str) -> None:
        self.weight_dtype, self.config = weight_dtype, model.config
        config, stack = model.config, getattr(model, "decoder", model)
        self._tensors: list[Any] = []  # references keep the memory alive
        self._arena = HugePageArena()
        layers = (c.Layer * len(stack.layers))()
        for struct, layer in zip(layers, stack.layers, strict=True):
            self._fill_layer(struct, layer)
        scale = 1.0 if config.embedding_scale is None else config.embedding_scale
        embedding = table = _weight_of(model.embedding)
        type_embedding = getattr(model, "type_embedding", None)
        if type_embedding is not None:  # generated tokens have type 0
            table, scale = embedding * scale + _weight_of(type_embedding)[0], 1.0
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
            rotary_dim=config.rotary_dim if config.position == "rotary" else 0,
            vocabulary=config.vocab_size,
            embedding_scale=scale,
            logit_scale=1.0 if config.logit_scale is None else config.logit_scale,
            logit_softcap=config.final_softcap or 0.0,
            embedding=self._store_float32(table),
            embedding_norm=self._norm(stack.embedding_norm),
            final_norm=self._norm(stack.final_norm),
            head=self._linear(
                embedding if model.head.tied else _weight_of(model.head),
                model.head.bias,
                is_head=True,
            ),
            layer=ctypes.addressof(layers),
        )
        self._tensors.append(layers)

    @property
    def nbytes(self) -> int:
        """Bytes of weights that a step reads, without the embedding."""
        nbytes = sum(tensor.nbytes for tensor in self._tensors if isinstance(tensor, Tensor))
        return int(nbytes - self.config.vocab_size * self.config.d_model * 4)

    def _fill_layer(self, struct: Any, layer: Any) -> None:
        for field, name in (
            ("attention_in", "attention_norm"), ("attention_out", "attention_out_norm"),
            ("cross_in", "cross_attention_norm"), ("cross_out", "cross_attention_out_norm"),
            ("ffn_in", "feed_forward_norm"), ("ffn_out", "feed_forward_out_norm"),
        ):  # fmt: skip
            setattr(struct, field, self._norm(getattr(layer, name, None)))
        self_attention = layer.attention
        struct.attention = self._attention(
            self_attention, [self_attention.q_proj, self_attention.k_proj, self_attention.v_proj]
        )
        if hasattr(layer, "cross_attention"):
            struct.cross = self._attention(layer.cross_attention, [layer.cross_attention.q_proj])
        ffn = layer.feed_forward
        projections = [ffn.up_proj] if ffn.gate_proj is None else [ffn.gate_proj, ffn.up_proj]
        bias = None
        if ffn.up_proj.bias is not None:
            bias = interleave_rows([linear.bias[:, None] for linear in projections])[:, 0]
        struct.up = self._linear(interleave_rows([*map(_weight_of, projections)]), bias)
        struct.down = self._linear(_weight_of(ffn.down_proj), ffn.down_proj.bias)

    def _attention(self, attention: Any, projections: Sequence[nn.Linear]) -> Any:
        bias = None
        if projections[0].bias is not None:
            bias = torch.cat([linear.bias for linear in projections])
        local = bool(attention.window) and self.config.rotary_base_local is not None
        is_rotary = self.config.position == "rotary" and not attention.cross
        scale = attention.scale
        return c.Attention(
            qkv=self._linear(torch.cat([*map(_weight_of, projections)]), bias),
            out=self._linear(_weight_of(attention.o_proj), attention.o_proj.bias),
            q_norm=self._norm(attention.q_norm),
            k_norm=self._norm(attention.k_norm),
            norm_per_head=attention.qk_norm_per_head,
            window=attention.window or 0,
            rotation=int(local) if is_rotary else -1,
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
            raise NativeKernelsUnavailable(f"{type(norm).__name__} is not a built-in norm")
        gain = 1 + norm.weight if isinstance(norm, ZeroCenteredRMSNorm) else norm.weight
        return c.Norm(kind=1, width=gain.numel(), eps=norm.eps, weight=self._store_float32(gain))

    def _linear(self, weight: Tensor, bias: Tensor | None, is_head: bool = False) -> Any:
        dtype = "int8" if is_head and self.weight_dtype == "int4" else self.weight_dtype
        return pack_linear(weight, bias, dtype, self._store)

    def _store_float32(self, tensor: Tensor) -> int:
        return self._store(tensor.detach().float())

    def _store(self, tensor: Tensor) -> int:
        self._tensors.append(self._arena.copy_tensor(tensor))
        return int(self._tensors[-1].data_ptr())


def _weight_of(module: nn.Module) -> Tensor:
    """The weight that a module applies, float32."""
    weight = effective_weight(module).detach()
    if weight.dtype != torch.float32:
        raise NativeKernelsUnavailable("its weights are not float32")
    return weight
