"""A limit on the increase of the loss: single matrices get more bits until it holds.

The sensitivity of a matrix is the increase of the loss if it alone is rounded. The most sensitive
matrices of 4 bits get 8 bits first; then, if that is not enough, matrices stay as they were in the
same order. The number of these steps is found by bisection.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.compression.calibration.data import used_records
from miniformer.compression.source import data_loss, relative_change, with_model
from miniformer.compression.weights import Types, named_matrices, rounded_weight
from miniformer.config import UserError
from miniformer.data.reading.files import expand_paths
from miniformer.data.reading.records import Record, Records, as_records
from miniformer.data.selection import RecordSubset

_SAMPLE = 256  # records for a sensitivity; the budget is checked on all


@dataclasses.dataclass(frozen=True)
class MatrixRow:
    """A matrix of the table.

    Args:
        name: its name.
        bits: bits of a weight; None: as it was.
        sensitivity: relative increase of the loss if it alone is rounded.
    """

    name: str
    bits: int | None
    sensitivity: float


def parse_budget(budget: str | float) -> float:
    """A relative increase of the loss: "0.5%", or as a number 0.005.

    Raises:
        UserError: it is none between 0 and 100 %.
    """
    share = -1.0
    try:
        if isinstance(budget, str) and budget.strip().endswith("%"):
            share = float(budget.strip()[:-1]) / 100
        elif isinstance(budget, int | float):
            share = float(budget)
    except ValueError:
        pass
    if not 0 < share < 1:
        raise UserError(f"budget={budget!r} must be above 0 and below 100 %, such as 0.5%")
    return share


def check_other_data(pipeline: Pipeline, data: Any, calibrate: Any) -> None:
    """Checks that a budget holds on records that calibration does not use.

    Warns if some records are the same; their names and extra fields do not matter.

    Args:
        pipeline: the model with its task.
        data: the records of the budget.
        calibrate: those of calibration.

    Raises:
        UserError: both have a file or a list, or half of the records of one are also in the other.
    """
    if shared := _sources(data) & _sources(calibrate):
        name = next(iter(shared))
        name = name if isinstance(name, str) else "the same list"
        raise UserError(f"budget needs data that calibrate does not use; both have {name}")
    hashes = []
    for source, select in ((data, None), (calibrate, used_records)):
        records = as_records(source, pipeline.task.schema, mapping=pipeline.data_settings.mapping())
        hashes.append([_hash(record, records) for record in (select or iter)(records)])
    used = set(hashes[1])
    count, total = sum(value in used for value in hashes[0]), len(hashes[0])
    if 2 * count >= total or 2 * len(used & set(hashes[0])) >= len(used):
        raise UserError(
            f"budget needs data that calibrate does not use; {count:,} of {total:,} records of "
            "data are also in calibrate"
        )
    if count:
        warnings.warn(
            f"{count:,} of {total:,} records of data are also in calibrate, so the loss on data "
            "may be too low",
            stacklevel=3,
        )


def hold_budget(
    pipeline: Pipeline, low: Any, types: Types, data: Any, budget: float
) -> tuple[Any, Types, list[MatrixRow]]:
    """Gives single matrices more bits until the loss on the data increases by `budget` at most.

    Args:
        pipeline: the model.
        low: a model with the weights of fewest bits, such as by calibration; None: each weight is
            rounded to the nearest one.
        types: the types of fewest bits.
        data: labeled records.
        budget: relative increase of the loss.

    Returns:
        A float32 model, the types of its matrices, and the table.

    Raises:
        UserError: no matrix can have fewer bits.
    """
    records = as_records(data, pipeline.task.schema, mapping=pipeline.data_settings.mapping())
    sample = records
    if len(records) > _SAMPLE:
        spread = np.linspace(0, len(records) - 1, _SAMPLE).round().astype(np.int64)
        sample = RecordSubset(records, spread)
    plain = copy.deepcopy(pipeline.model).float()
    original = {name: x.weight.detach().clone() for name, x in named_matrices(plain).items()}
    source = original
    if low is not None:
        source = {name: x.weight.detach() for name, x in named_matrices(low).items()}
    least = {name: rounded_weight(source[name], item) for name, item in types.items()}

    def loss_of(weights: Mapping[str, Tensor], part: Any) -> float:
        return data_loss(with_model(pipeline, _with_weights(plain, original, weights)), part)

    base, sample_base = loss_of({}, records), loss_of({}, sample)
    sensitivities = {
        name: relative_change(sample_base, loss_of({name: weight}, sample))
        for name, weight in least.items()
    }
    steps = ladder(types, sensitivities)

    def after(count: int) -> tuple[dict[str, Tensor], Types]:
        """Weights and types after so many steps."""
        chosen: dict[str, Any] = {**types, **dict(steps[:count])}
        left = {name: item for name, item in chosen.items() if item is not None}
        weights = {
            name: least[name] if item == types[name] else rounded_weight(original[name], item)
            for name, item in left.items()
        }
        return weights, left

    limit = base + budget * abs(base)
    count = fewest_steps(len(steps), lambda n: loss_of(after(n)[0], records) <= limit)
    weights, left = after(count)
    rows = [
        MatrixRow(name, _bits(left.get(name)), sensitivities[name])
        for name in sorted(types, key=lambda name: -sensitivities[name])
    ]
    if not left:
        raise UserError(
            f"no matrix can have fewer bits with a loss of {100 * budget:g} % more at most; raise "
            f"budget\n{render_table(rows)}"
        )
    return _with_weights(plain, original, weights), left, rows


def ladder(types: Types, sensitivities: Mapping[str, float]) -> list[tuple[str, Any]]:
    """Steps to more bits: a matrix and its next type, None: as it was."""
    order = sorted(types, key=lambda name: -sensitivities[name])
    eight = [(name, {**types[name], "bits": 8}) for name in order if types[name].get("bits") == 4]
    return [*eight, *((name, None) for name in order)]


def fewest_steps(most: int, holds: Callable[[int], bool]) -> int:
    """The number of steps with which a limit holds and with one less does not; `most` holds."""
    if holds(0):
        return 0
    fails, works = 0, most
    while works - fails > 1:
        middle = (fails + works) // 2
        if holds(middle):
            works = middle
        else:
            fails = middle
    return works


def render_table(rows: list[MatrixRow] | tuple[MatrixRow, ...]) -> str:
    """The table as text, the most sensitive matrix first."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'matrix':{width}}  bits       loss if it alone is rounded"]
    for row in rows:
        bits = "as it was" if row.bits is None else str(row.bits)
        lines.append(f"{row.name:{width}}  {bits:9}  {100 * row.sensitivity:+.4f} %")
    return "\n".join(lines)


def _with_weights(model: Any, original: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Any:
    """The model itself, with these weights and the original ones of all other matrices."""
    with torch.no_grad():
        for name, matrix in named_matrices(model).items():
            matrix.weight.copy_(weights.get(name, original[name]))
    return model


def _bits(item: Mapping[str, Any] | None) -> int | None:
    return None if item is None else int(item.get("bits", 16))


def _hash(record: Record, records: Records) -> bytes:
    """A hash of the fields of the task."""
    content = {name: record[name] for name in records.schema if name in record}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _sources(data: Any) -> set[str | int]:
    """Resolved paths of files, or the identity of records in memory."""
    items = data if isinstance(data, list | tuple) else [data]
    if all(isinstance(item, str | Path) for item in items):
        return {str(path.resolve()) for path in expand_paths(data)}
    return {id(data)}
