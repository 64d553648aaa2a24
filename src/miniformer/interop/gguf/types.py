"""Types of tensors in a GGUF file: their sizes, rounding to them and its inverse.

Numbers and block layouts: https://github.com/ggml-org/ggml/blob/master/include/ggml.h
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from miniformer.config import UserError


class TensorType(NamedTuple):
    """A type of elements.

    Args:
        number: number in a file.
        block: elements of a block.
        n_bytes: bytes of a block.
        file_type: number of a file whose matrices have this type.
    """

    number: int
    block: int
    n_bytes: int
    file_type: int


TYPES = {
    "f32": TensorType(0, 1, 4, 0),
    "f16": TensorType(1, 1, 2, 1),
    "bf16": TensorType(30, 1, 2, 32),
    "q8_0": TensorType(8, 32, 34, 7),
    "q5_1": TensorType(7, 32, 24, 9),
    "q5_0": TensorType(6, 32, 22, 8),
    "q4_1": TensorType(3, 32, 20, 3),
    "q4_0": TensorType(2, 32, 18, 2),
}
READABLE = ("f32", "f16", "bf16", "q8_0")  # types that an import takes
_NAMES = {item.number: name for name, item in TYPES.items()}
_TORCH_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def type_name(number: int) -> str | None:
    """Name of a type; None: unknown."""
    return _NAMES.get(number)


def num_bytes(kind: str, count: int) -> int:
    """Bytes of `count` elements, which are whole blocks."""
    item = TYPES[kind]
    return count // item.block * item.n_bytes


def encode(tensor: Tensor, kind: str) -> Any:
    """Bytes of a tensor as a numpy array; the last axis is whole blocks."""
    tensor = tensor.detach().cpu().contiguous()
    if kind in _TORCH_TYPES:
        return tensor.to(_TORCH_TYPES[kind]).view(torch.uint8).numpy()
    import gguf

    quantized = gguf.quants.quantize(
        tensor.float().numpy(), gguf.GGMLQuantizationType[kind.upper()]
    )
    return np.ascontiguousarray(quantized)


def decode(data: Any, kind: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of float32.

    Args:
        data: its bytes.
        kind: a type of `READABLE`.
        shape: its shape.

    Raises:
        UserError: the type is another one.
    """
    if kind in _TORCH_TYPES:
        return torch.frombuffer(bytearray(data), dtype=_TORCH_TYPES[kind]).reshape(shape).float()
    if kind != "q8_0":
        raise UserError(f"tensors of type {kind} are not read, only {', '.join(READABLE)}")
    blocks = np.frombuffer(data, dtype=[("scale", "<f2"), ("values", "i1", 32)])
    values = blocks["values"].astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]
    return torch.from_numpy(values.reshape(shape))
