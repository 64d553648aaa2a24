"""GPTQ (Frantar et al. 2022): rounding of a matrix whose errors correct each other.

The columns are rounded from the first to the last. The error of each one is carried over to the
columns that are not rounded yet, so that the outputs of the calibration inputs change least:

    H = X^T X + damping        U = upper Cholesky factor of H^-1
    error_j = (w_j - q_j) / U_jj        w_k -= error_j U_jk   for k > j

A group of columns gets the scale of the least sum of error_j^2, of the candidates of `integers`.
Each group has a weight at the end of the range of integers, since storing finds the scale by it.

Letters: O outputs, I inputs, C candidates, G columns of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miniformer.checkpoint.stored_types import GROUP, candidate_scales, integer_range

DAMPING = 0.01  # share of the mean of the diagonal of H that is added to it
_MOST_WEIGHTS = 2**18  # of a group of columns, whose rows are rounded at once


def round_matrix(weight: Tensor, hessian: Tensor, bits: int, group: int = GROUP) -> Tensor:
    """Rounds a matrix to integers with a scale for each group of weights of a row.

    Args:
        weight: [O, I]; I is a multiple of G.
        hessian: X^T X of its inputs X, float64 [I, I].
        bits: 8 or 4.
        group: G.

    Returns:
        The rounded weights, float32 [O, I], which `Integers` stores without an error.
    """
    factor = inverse_factor(hessian)
    rows = max(1, _MOST_WEIGHTS // group)  # at once: each has a copy for each candidate
    parts = [_round_rows(part, factor, bits, group) for part in torch.split(weight.detach(), rows)]
    return torch.cat(parts)


def _round_rows(weight: Tensor, factor: Tensor, bits: int, group: int) -> Tensor:
    """`round_matrix` of some rows, float32 [O, I]."""
    remaining, rounded = weight.double(), torch.empty_like(weight, dtype=torch.float64)
    remaining = remaining.clone()
    for first in range(0, weight.shape[1], group):
        stop = first + group
        part = factor[first:stop, first:stop]
        values, errors = _round_group(remaining[:, first:stop], part, bits)
        rounded[:, first:stop] = values
        remaining[:, stop:] -= errors @ factor[first:stop, stop:]
    return rounded.float()


def inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of H with damping, float64 [I, I]."""
    mean = hessian.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    unit = torch.eye(len(hessian), dtype=torch.float64, device=hessian.device)
    damped = hessian / mean + DAMPING * unit  # a factor on H changes no result
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _round_group(weight: Tensor, factor: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Rounds a group of columns, [O, G], with the candidate of the least loss for each row.

    Returns:
        Rounded weights and errors, float64 [O, G].
    """
    low, high, end = integer_range(bits)
    scales, ends = candidate_scales(weight.float(), bits)  # [C, O, 1] and [C]
    scales = scales.double()
    extreme = weight.abs().argmax(1)
    columns = torch.arange(weight.shape[1], device=weight.device)
    at_extreme = columns == extreme[:, None]  # [O, G]
    # Twice: with the extreme rounded as the others, and at the end of the range.
    is_fixed = torch.tensor([False, True], device=weight.device)[:, None, None]  # [2, 1, 1]
    remaining = weight.expand(2, len(scales), *weight.shape).clone()  # [2, C, O, G]
    values, errors = torch.empty_like(remaining), torch.empty_like(remaining)
    divisor = torch.where(scales == 0, torch.inf, scales)[..., 0]
    signs = torch.sign(weight.gather(1, extreme[:, None]))[:, 0] if bits == 8 else 1.0
    fixed_value = ends[:, None] * signs  # [C, O] or [C, 1]
    for column in range(weight.shape[1]):
        current = remaining[..., column]
        value = (current / divisor).round().clamp(low, high)
        value = torch.where(is_fixed & at_extreme[:, column], fixed_value, value)
        values[..., column] = value
        error = (current - value * scales[..., 0]) / factor[column, column]
        errors[..., column] = error
        remaining[..., column + 1 :] -= error[..., None] * factor[column, column + 1 :]
    loss = errors.square().sum(-1)  # [2, C, O]
    has_end = (values.abs() >= end).any(-1) | (scales[..., 0] == 0)
    best = torch.where(has_end, loss, torch.inf).flatten(0, 1).argmin(0)  # [O]
    rows = torch.arange(len(weight), device=weight.device)
    rounded = (values * scales).flatten(0, 1)[best, rows]
    return rounded, errors.flatten(0, 1)[best, rows]
