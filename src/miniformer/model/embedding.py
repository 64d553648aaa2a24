"""Inputs of a model: registered parts that make vectors of them, and their checks.

Letters: B batch, T length, D model width, I feature width.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import ConfigError, TransformerConfig
from miniformer.generation.inputs import INTEGER_DTYPES
from miniformer.model.ops.products import Linear

if TYPE_CHECKING:
    from miniformer.model.cache.protocol import PassCache


class Input(nn.Module):
    """Base class of inputs: modules that turn what a model reads into vectors of its width.

    An input is built as `part(config, **options)` and maps inputs, [B, T, ...], to [B, N, D]. A
    module without the methods below, such as an `nn.Embedding`, makes a vector of each position.
    """

    def output_mask(self, mask: Tensor) -> Tensor:
        """Mask of the vectors, bool [B, N], for that of the inputs, bool [B, T]."""
        return mask

    def max_inputs(self, max_vectors: int) -> int:
        """The largest T for which N is at most `max_vectors`."""
        return max_vectors


def make_embedding(config: TransformerConfig) -> nn.Module:
    """Builds the input of a model; see `Input`."""
    if isinstance(config.input, dict):
        return _build_input(config, config.input)
    part: nn.Module = registry.get("input", config.input_type)(config)
    return part


def _build_input(config: TransformerConfig, setting: dict[str, Any]) -> nn.Module:
    """Raises a UserError if the input has not the options of the setting."""
    part: nn.Module = registry.build("input", setting, config, label="model_config: input")
    return part


def make_token_embedding(config: TransformerConfig) -> nn.Module:
    """Builds the embedding of token ids: int [B, T] -> [B, T, D]."""
    return nn.Embedding(config.vocab_size, config.d_model)


def make_feature_projection(config: TransformerConfig) -> nn.Module:
    """Builds the projection of vectors: float [B, T, I] -> [B, T, D]."""
    if config.input_dim is None:
        raise ConfigError("TransformerConfig", ["input=features needs input_dim"])
    return Linear(config.input_dim, config.d_model, bias=config.bias)


def embed_inputs(
    embedding: Any,
    inputs: Tensor | None,
    mask: Tensor | None,
    inputs_embeds: Tensor | None,
    config: TransformerConfig,
    cache: PassCache | None = None,
    name: str = "inputs",
) -> tuple[Tensor, Tensor | None]:
    """Checks and embeds inputs; returns vectors, [B, T, D], and their mask, bool [B, T] or None.

    The arguments are those of a model's `forward`; `name` is that of the inputs in messages.
    """
    if inputs is None or inputs_embeds is not None:
        x, mask = _given_embeddings(inputs, mask, inputs_embeds, config, name)
    else:
        check_inputs(inputs, config, name)
        x = embedding(inputs)
        if mask is not None:
            check_mask(mask, inputs, name)
            mask = output_mask(embedding, mask)
    if x.shape[1] + (0 if cache is None else cache.length) > config.max_seq_len:
        check_length(x, config, cache)
    return x, mask


def output_mask(embedding: Any, mask: Tensor | None) -> Tensor | None:
    """Mask of the vectors of an input, for that of what it reads; see `Input`."""
    method = None if mask is None else getattr(embedding, "output_mask", None)
    return mask if method is None else method(mask)


def max_inputs(embedding: Any, max_vectors: int) -> int:
    """Largest number of inputs that make at most `max_vectors` vectors; see `Input`."""
    method = getattr(embedding, "max_inputs", None)
    return max_vectors if method is None else method(max_vectors)


def check_inputs(inputs: Tensor, config: TransformerConfig, name: str) -> None:
    """Raises a ValueError for token ids or features of the wrong type or shape.

    A `target` is token ids. Inputs of other types check their own.
    """
    if name == "target" or config.input_type == "tokens":
        valid = inputs.dim() == 2 and inputs.dtype in (torch.int32, torch.int64)
    else:
        is_matrix = inputs.dim() == 3 and inputs.shape[2] == config.input_dim
        valid = (is_matrix and inputs.is_floating_point()) or config.input_type != "features"
    if not valid:
        raise _input_error(inputs, config, name)


def _input_error(inputs: Tensor, config: TransformerConfig, name: str) -> ValueError:
    expected = f"[B, T, {config.input_dim}] floats"
    if name == "target" or config.input_type == "tokens":
        expected = "[B, T] token ids"
    return ValueError(f"{name} must be {expected}, not {inputs.dtype} {list(inputs.shape)}")


def _given_embeddings(
    inputs: Tensor | None,
    mask: Tensor | None,
    inputs_embeds: Tensor | None,
    config: TransformerConfig,
    name: str,
) -> tuple[Tensor, Tensor | None]:
    """Checks vectors that a caller gives in place of inputs, and their mask."""
    embeds_name = f"{name}_embeds"
    if inputs_embeds is None or inputs is not None:
        raise ValueError(f"a model reads either {name} or {embeds_name}; pass one of them")
    shape = list(inputs_embeds.shape)
    if len(shape) != 3 or shape[2] != config.d_model or not inputs_embeds.is_floating_point():
        raise ValueError(
            f"{embeds_name} must be [B, T, {config.d_model}] floats, not {inputs_embeds.dtype} "
            f"{shape}"
        )
    check_mask(mask, inputs_embeds, name)
    return inputs_embeds, mask


def check_length(x: Tensor, config: TransformerConfig, cache: PassCache | None) -> None:
    """Raises a ValueError if the inputs, [B, T, D], are longer than `max_seq_len`."""
    length = x.shape[1] + (0 if cache is None else cache.length)
    if length > config.max_seq_len and cache is not None and x.shape[0]:
        # A row has fewer tokens than columns if it has padding or was trimmed.
        length = x.shape[1] + int(cache.lengths.max())
    if length > config.max_seq_len:
        raise ValueError(
            f"a sequence of {length} tokens is longer than max_seq_len={config.max_seq_len}; "
            "shorten it, or build the model with a larger max_seq_len"
        )


def check_mask(mask: Tensor | None, inputs: Tensor, name: str = "inputs") -> None:
    """Raises a ValueError for a mask of the wrong type or shape; `name` is that of the inputs."""
    if mask is None:
        return
    shape = list(inputs.shape[:2])
    mask_name = "attention_mask" if name == "inputs" else f"{name}_mask"
    if list(mask.shape) != shape:
        raise ValueError(f"{mask_name} must be {shape}, as the inputs are, not {list(mask.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(
            f"{mask_name} must be bool (True = a real position), not {mask.dtype}; use .bool()"
        )


def check_segments(segment_ids: Tensor, x: Tensor, cache: PassCache | None) -> None:
    """Raises a ValueError for segment ids of the wrong type or shape, below 0, or with a cache."""
    valid = segment_ids.shape == x.shape[:2] and segment_ids.dtype in INTEGER_DTYPES
    # Values are checked on a CPU only: on a GPU the check would synchronize.
    if valid and segment_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        with contextlib.suppress(RuntimeError):  # tensors have no values inside torch.func
            valid = not bool((segment_ids < 0).any())
    if not valid:
        raise _segments_error(segment_ids, x)
    if cache is not None:
        raise ValueError("segment_ids and cache exclude each other: a cache row holds one sequence")


def _segments_error(segment_ids: Tensor, x: Tensor) -> ValueError:
    shape, dtype = list(x.shape[:2]), segment_ids.dtype
    if list(segment_ids.shape) != shape:
        problem = f"must be {shape}, as the inputs are, not {list(segment_ids.shape)}"
    elif dtype not in INTEGER_DTYPES:
        problem = (
            f"must be integers (0 is padding), not {dtype}; pass a mask of the real tokens as "
            "attention_mask"
        )
    else:
        problem = f"must be at least 0, not {int(segment_ids.min())}; 0 is padding"
    return ValueError(f"segment_ids {problem}")
