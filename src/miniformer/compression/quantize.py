"""`miniformer.quantize`: a model directory whose matrices are stored in fewer bits.

`weights.py` has the rules for the types of its matrices.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch

from miniformer.checkpoint.directory import require_empty
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.checkpoint.stored_types import GROUP
from miniformer.compression.budget import (
    MatrixRow,
    check_other_data,
    hold_budget,
    parse_budget,
    render_table,
)
from miniformer.compression.source import (
    check_without_transforms,
    data_loss,
    read_source,
    relative_change,
    stored_kinds,
    with_fields,
    with_model,
    write_directory,
)
from miniformer.compression.weights import (
    Types,
    check_group,
    check_type,
    named_matrices,
    storage_types,
    table_types,
)
from miniformer.config import UserError
from miniformer.model.transforms import merge_transforms

METHODS = ("gptq", "none")
_AWARE = "quantize_aware"  # the transform of `aware.py`


@dataclasses.dataclass(frozen=True)
class Quantized:
    """Result of `quantize`.

    Args:
        directory: the written directory.
        num_matrices: matrices and embeddings that have fewer bits.
        num_weights: their weights, and all of the model.
        unchanged: names of matrices and embeddings that stay as they are.
        num_bytes: of the weights before and after, in `model.safetensors`.
        losses: on the data before and after; None: without data.
        table: with a budget, the matrices with their bits and sensitivities.
        narrow: matrices with groups of 32, since the group that was asked for does not divide.
    """

    directory: Path
    num_matrices: int
    num_weights: tuple[int, int]
    unchanged: tuple[str, ...]
    num_bytes: tuple[int, int]
    losses: tuple[float, float] | None = None
    table: tuple[MatrixRow, ...] = ()
    narrow: tuple[str, ...] = ()

    def __str__(self) -> str:
        before, after = self.num_bytes
        share = 100 * self.num_weights[0] / self.num_weights[1]
        lines = [
            f"written to {self.directory}: {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB "
            f"after ({after / before:.3f} of it)",
            f"{self.num_matrices} matrices with {share:.1f} % of the weights have fewer bits",
        ]
        if self.unchanged:
            lines.append(f"as they were: {_first_names(self.unchanged)}")
        if self.narrow:
            lines.append(
                f"in groups of {GROUP}, since group does not divide: {_first_names(self.narrow)}"
            )
        if self.losses is not None:
            first, second = self.losses
            change = 100 * relative_change(first, second)
            lines.append(f"loss: {first:.5f} before, {second:.5f} after ({change:+.3f} %)")
        if self.table:
            lines.append(render_table(self.table))
        return "\n".join(lines)


def quantize(
    model: Any,
    out: str | Path,
    *,
    to: str,
    group: int | str = GROUP,
    calibrate: Any = None,
    method: str | None = None,
    data: Any = None,
    budget: str | float | None = None,
    **fields: Any,
) -> Quantized:
    """Writes a model directory whose matrices have fewer bits; `load` reads it as any other.

    Args:
        model: a `Pipeline`, a model, a model directory, or the folder of a run. It is not changed.
        out: the directory to write; it must not exist, or be empty.
        to: int8, int4, bf16 or fp16.
        group: weights of a row with one scale, for int8 and int4: 32, 64, 128 or channel, a whole
            row. Matrices whose number of inputs is no multiple of it have groups of 32.
        calibrate: labeled records, such as those of training, by which int8 and int4 are rounded:
            files or a list of dicts, at least 32; None: each weight is rounded to the nearest one.
        method: gptq, the default with `calibrate`, or none, the default without.
        data: labeled records; their loss is computed before and after.
        budget: the largest relative increase of the loss on `data`, "0.5%" or 0.005: matrices get
            more bits until it holds; None: all have those of `to`.
        **fields: fields of `FieldSettings` for `calibrate` and `data`, such as input_field="text".

    Raises:
        UserError: the type is unknown, the model is quantized already, has transforms or weights
            that are not finite or too large, or no matrix fits; calibration records are too few or
            of another task; no matrix can have fewer bits within the budget; or `out` is not empty.
    """
    check_type(to)
    group, out = check_group(group, to), Path(out)
    require_empty(out)
    source = read_source(model, "quantize")
    pipeline = source if isinstance(source, Pipeline) else None
    original = source.model if isinstance(source, Pipeline) else source
    for name, value in (("data", data), ("calibrate", calibrate), *fields.items()):
        if value is not None and pipeline is None:
            raise UserError(f"{name} needs a model with its task: a Pipeline or its directory")
    _check_calibration(to, calibrate, method)
    limit = None if budget is None else parse_budget(budget)
    if limit is not None and data is None:
        raise UserError("budget needs data: labeled records on which it has to hold")
    aware = _check_model(original, to)
    if aware and calibrate is not None:
        raise UserError(
            "calibrate would change weights that were trained as integers; leave it out"
        )
    if aware and group != GROUP:
        raise UserError(f"the weights were trained in groups of {GROUP}; leave group out")
    types, unchanged = _stored_types(original, to, group, aware)
    reader = None
    if pipeline is not None:
        reader = with_fields(pipeline, fields, data=data, calibrate=calibrate)
    if reader is not None and limit is not None and calibrate is not None:
        check_other_data(reader, data, calibrate)
    first_loss = None if reader is None or data is None else data_loss(reader, data)
    if aware:
        original = merge_transforms(original)
    calibrated, table = None, list[MatrixRow]()
    if reader is not None and calibrate is not None:
        from miniformer.compression.calibration.data import CalibrationData
        from miniformer.compression.calibration.model import calibrated_model

        calibrated = calibrated_model(original, types, CalibrationData(reader, calibrate))
    if reader is not None and limit is not None:
        lowest, reader = types, with_model(reader, original)
        stored, types, table = hold_budget(reader, calibrated, types, data, limit)
        unchanged += [name for name in lowest if name not in types]
        stored.weight_storage = types
    else:
        stored = _with_types(original if calibrated is None else calibrated, types, to)
    stored.weight_storage = {**stored.weight_storage, **table_types(stored, to)}
    write_directory(stored, pipeline, out)
    losses = None
    if reader is not None and first_loss is not None:
        losses = first_loss, data_loss(with_model(reader, load(out).model), data)
    sizes = {name: matrix.weight.numel() for name, matrix in named_matrices(original).items()}
    return Quantized(
        directory=out,
        num_matrices=len(types),
        num_weights=(
            sum(sizes[name] for name in types), sum(x.numel() for x in original.parameters())
        ),
        unchanged=tuple(unchanged),
        num_bytes=(
            sum(x.nbytes for x in original.state_dict().values()),
            (out / "model.safetensors").stat().st_size,
        ),
        losses=losses,
        table=tuple(table),
        narrow=_narrow_groups(types, group),
    )  # fmt: skip


def _first_names(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _narrow_groups(types: Types, group: int | str) -> tuple[str, ...]:
    """Matrices of integers with groups of 32 in place of `group`."""
    if group in (GROUP, "channel"):
        return ()
    return tuple(name for name, item in types.items() if "group" not in item)


def _check_calibration(to: str, calibrate: Any, method: str | None) -> None:
    if method not in (None, *METHODS):
        raise UserError(f"method={method!r} is none of {', '.join(METHODS)}")
    if method == "gptq" and calibrate is None:
        raise UserError("method=gptq needs calibrate: records, such as those of training")
    if calibrate is not None and method == "none":
        raise UserError("calibrate has no effect with method=none; leave one of them out")
    if calibrate is not None and to not in ("int8", "int4"):
        raise UserError(
            f"calibrate is for int8 and int4, and {to} rounds each weight; leave it out"
        )


def _with_types(model: Any, types: Types, to: str) -> Any:
    """A model with the same weights whose file has these types."""
    stored = copy.copy(model)  # shares all weights
    if to in ("int8", "int4") and next(model.parameters()).dtype != torch.float32:
        stored = copy.deepcopy(model).float()  # decoded weights are exact in float32 only
    stored.weight_storage = types
    return stored


def _check_model(model: Any, to: str) -> bool:
    """Checks a model; returns True if it was trained with the rounding of `to`.

    Raises:
        UserError: the model is quantized already, has transforms, or was trained for another type.
    """
    if model.weight_storage:
        raise UserError(
            f"the model is quantized already ({stored_kinds(model)}); weights are not rounded "
            "twice: quantize the model that it was made of"
        )
    if trained := [item.get("to") for item in model.transforms if item["type"] == _AWARE]:
        if trained[0] != to:
            raise UserError(
                f"the model was trained as {trained[0]} (quantize_aware); use to={trained[0]}"
            )
        if len(trained) == len(model.transforms):
            return True
    check_without_transforms(model)
    return False


def _stored_types(model: Any, to: str, group: int | str, aware: bool) -> tuple[Types, list[str]]:
    """See `storage_types`; of a model that was trained as integers, those of its training."""
    types, unchanged = storage_types(model, to, group)
    if not aware:
        return types, unchanged
    from miniformer.compression.aware import trained_types

    trained = trained_types(model)
    return trained, [*unchanged, *(name for name in types if name not in trained)]
