"""Operations on int64 tensors in forms that exported programs have, too.

ONNX has no search in a sorted list and no stable sort, and an exported program has no sizes that
depend on values. In an export these functions use other operations, with equal results.

Letters: K sorted values, B batch, L values of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_exporting() -> bool:
    """True inside of `torch.export`."""
    # torch 2.5 and 2.6 have one function for traces of all kinds.
    test = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(test())


def find_sorted(keys: Tensor, values: Tensor) -> Tensor:
    """Index of the first key that is not below each value, at most K - 1: int64 as `values`.

    Args:
        keys: ascending, int64 [K].
        values: int64, any shape.
    """
    last = keys.shape[0] - 1
    if not is_exporting():
        return torch.searchsorted(keys, values).clamp_max(last)
    # The index, from its highest bit: a bit is set if the key before that index is below the value.
    index = torch.zeros_like(values)
    for bit in reversed(range(last.bit_length())):
        candidate = index + 2**bit
        is_below = keys[(candidate - 1).clamp_max(last)] < values
        index = torch.where(is_below & (candidate <= last), candidate, index)
    return index


def used_columns(lengths: Tensor, columns: int) -> int:
    """Number of columns that rows of these lengths, int [B], use of `columns`; at least 1.

    In an export, whose sizes do not depend on values, all columns.
    """
    if is_exporting():
        return columns
    return max(1, int(lengths.max()))


def move_to_front(is_used: Tensor, *values: Tensor) -> list[Tensor]:
    """Used values of each row without gaps, in their order, then zeros: int64 [B, L] each.

    Args:
        is_used: bool [B, L].
        values: int64 [B, L] each.
    """
    length = is_used.shape[1]
    # All others are written to a column more, which is cut off.
    target = (is_used.long().cumsum(1) - 1).masked_fill(~is_used, length)
    return [
        value.new_zeros(value.shape[0], length + 1).scatter(1, target, value)[:, :length]
        for value in values
    ]
