"""Memory for weights, in large pages where Linux gives them to who asks.

A step reads each weight once. With pages of 4 KB a good part of the time goes into finding them.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_CHUNK_BYTES = 32 << 20  # bytes taken at a time; what nobody writes to costs nothing
_ALIGNMENT = 64  # bytes: a line of the cache


class HugePageArena:
    """Tensors side by side in memory of their own, which lives as long as one of them."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def copy_tensor(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor, contiguous."""
        if not tensor.numel():
            return tensor.clone()
        end = self._used + tensor.nbytes
        if end > len(self._chunk):
            self._chunk, self._used = _allocate(max(_CHUNK_BYTES, tensor.nbytes)), 0
            end = tensor.nbytes
        placed = self._chunk[self._used : end].view(tensor.dtype).view(tensor.shape)
        self._used = -(-end // _ALIGNMENT) * _ALIGNMENT
        return placed.copy_(tensor)


def _allocate(size: int) -> Tensor:
    """New memory, uint8 [size]."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
