"""Rows of a padded batch against each row alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from miniformer.doctor.inputs import ModelInputs, max_difference
from miniformer.doctor.outcome import Note
from miniformer.generation.inference import eval_mode

_ROWS = 3
_TOLERANCE = 1e-4  # of the largest output


def check_batch(model: Any) -> list[str]:
    """A row has the same outputs in a padded batch as alone."""
    inputs = ModelInputs(model)
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return [*_differences(inputs)]


def _differences(inputs: ModelInputs) -> Iterator[str]:
    length = inputs.source_length if inputs.seq2seq else inputs.length
    x = inputs.inputs(_ROWS, length)
    target = inputs.ids(_ROWS, inputs.length) if inputs.seq2seq else None
    lengths = [max(1, length - 2 * row) for row in range(_ROWS)]
    columns = torch.arange(length, device=inputs.device)
    worst = 0.0
    for side in ("right", "left"):
        rows = [columns < n if side == "right" else columns >= length - n for n in lengths]
        mask = torch.stack(rows)
        batch = inputs.call(x, mask, target=target)
        for row, real in enumerate(mask):
            single_target = None if target is None else target[row : row + 1]
            alone = inputs.call(x[row : row + 1, real], target=single_target)
            outputs = batch[row : row + 1] if inputs.seq2seq else _at(batch[row : row + 1], real)
            difference = max_difference(outputs.float(), alone.float())
            worst = max(worst, difference)
            if difference > _TOLERANCE:
                yield (
                    f"row {row} of {int(real.sum())} positions, padded on the {side}, differs by "
                    f"{difference:.1e} of its largest output; limit {_TOLERANCE}"
                )
    yield Note(f"largest difference {worst:.1e} of the largest output")


def _at(outputs: Tensor, real: Tensor) -> Tensor:
    """Outputs of real positions; an input of a plug-in may have shortened the sequence."""
    return outputs[:, real] if outputs.shape[1] == len(real) else outputs
