"""Memory for weights, in huge pages where Linux provides them.

A step reads each weight once. With pages of 4 KB, address translation takes a large
part of the time.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_CHUNK_BYTES = 32 << 20  # bytes per allocation; untouched pages cost nothing
_ALIGNMENT = 64  # bytes: one cache line


class HugePageArena:
    """Arena of tensors; a chunk is freed with its last tensor."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def copy_tensor(self, tensor: Tensor) -> Tensor:
        """Contiguous copy of a tensor in the arena."""
        if not tensor.numel():
            return tensor.clone()
        end = self._used + tensor.nbytes
        if end > len(self._chunk):
            self._chunk, self._used = _allocate(max(_CHUNK_BYTES, tensor.nbytes)), 0
            end = tensor.nbytes
        copy = self._chunk[self._used : end].view(tensor.dtype).view(tensor.shape)
        self._used = -(-end // _ALIGNMENT) * _ALIGNMENT
        return copy.copy_(tensor)


def _allocate(size: int) -> Tensor:
    """Allocates memory, uint8 [size]."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
