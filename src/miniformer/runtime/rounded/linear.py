"""A linear layer whose weights have fewer bits and whose product rounds its inputs.

Letters: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from miniformer.runtime.native.build import load_library
from miniformer.runtime.native.huge_pages import HugePageArena
from miniformer.runtime.native.threads import parallel_function
from miniformer.runtime.native.weights import pack_linear


def has_instructions(weight_dtype: str) -> bool:
    """True if the processor multiplies a type with rounded inputs faster than float32.

    Args:
        weight_dtype: int8, int4 (AVX-512 VNNI or AVX-VNNI) or bf16 (AVX-512 BF16).

    Raises:
        NativeKernelsUnavailable: the kernels cannot be compiled.
    """
    kind = {"bf16": 1, "int8": 2, "int4": 3}[weight_dtype]
    return bool(load_library().engine_has_instructions(kind))


class RoundedLinear(nn.Linear):
    """Linear layer for inference that computes with a copy of its weight of another type.

    The product rounds its inputs: for int8 and int4 weights to int8 with a scale for each 32 values
    of a row, for bf16 weights to bf16. Sums are float32. A row of the output depends neither on the
    other rows nor on the number of threads. The parameters are those of the linear layer itself.
    With gradients, or inputs of another type or device, they compute the output instead.

    Args:
        linear: float32 layer on a CPU. Changes of its weight after this have no effect.
        weight_dtype: bf16, int8 or int4; the last two for a multiple of 32 inputs.
        arena: memory for the copy.

    Raises:
        NativeKernelsUnavailable: the kernels cannot be compiled.
    """

    def __init__(self, linear: nn.Linear, weight_dtype: str, arena: HugePageArena) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.weight_dtype, self._library = weight_dtype, load_library()
        self._tensors: list[Tensor] = []  # references keep the memory alive

        def store(tensor: Tensor) -> int:
            self._tensors.append(arena.copy_tensor(tensor))
            return self._tensors[-1].data_ptr()

        self._struct = pack_linear(linear.weight, linear.bias, weight_dtype, store)
        self.train(linear.training)

    @property
    def nbytes(self) -> int:
        """Bytes of the copy, with scales and bias."""
        return sum(tensor.nbytes for tensor in self._tensors)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(x)
        x = x.contiguous()  # [..., I]
        out = torch.empty(*x.shape[:-1], self.out_features)
        self._library.engine_multiply_rows(
            ctypes.addressof(self._struct),
            x.data_ptr(),
            out.numel() // self.out_features,
            out.data_ptr(),
            torch.get_num_threads(),
            parallel_function(),
        )
        return out
