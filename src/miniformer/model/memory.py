"""Memory: the encoded sources of a decoder.

Letters: B batch, S source length, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miniformer.model.masks import source_mask


class Memory(NamedTuple):
    """The encoded source of a decoder."""

    features: Tensor  # [B, S, D]
    mask: Tensor | None = None  # bool [B, S], True = a real token

    def select(self, rows: Tensor) -> Memory:
        """Returns these sources, int [any], which may repeat."""
        return Memory(self.features[rows], None if self.mask is None else self.mask[rows])

    def insert(self, rows: Tensor, memory: Memory) -> Memory:
        """Replaces sources by those of another memory, int [n]; the shorter ones are padded."""
        count = self.features.shape[0]
        index = torch.arange(count, device=rows.device)
        index[rows] = torch.arange(count, count + len(rows), device=rows.device)
        return Memory.join([self, memory]).select(index)

    @staticmethod
    def join(memories: Sequence[Memory]) -> Memory:
        """Concatenates the rows of memories; the shorter ones are padded."""
        width = max(memory.features.shape[1] for memory in memories)
        is_full = all(
            memory.mask is None and memory.features.shape[1] == width for memory in memories
        )
        features, masks = [], []
        for memory in memories:
            missing = width - memory.features.shape[1]
            features.append(F.pad(memory.features, (0, 0, 0, missing)))
            masks.append(F.pad(source_mask(*memory), (0, missing)))
        return Memory(torch.cat(features), None if is_full else torch.cat(masks))

    def split(self) -> list[Memory]:
        """Returns a copy of each source, [1, S, D], without padding."""
        masks = source_mask(*self)
        return [Memory(row[mask][None]) for row, mask in zip(self.features, masks, strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes of the features and the mask."""
        return self.features.nbytes + (0 if self.mask is None else self.mask.nbytes)
