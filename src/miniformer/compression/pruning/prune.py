"""`miniformer.prune`: a smaller model directory, or one with zeros."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniformer.checkpoint.directory import require_empty
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.compression.calibration.data import CalibrationData
from miniformer.compression.pruning.healing import healed_model, healing_records
from miniformer.compression.pruning.removal import check_labels, remove_parts
from miniformer.compression.pruning.request import choose_method, parse_removal, parse_sparsity
from miniformer.compression.pruning.sparsity import Zeros, count_zeros, sparse_model
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
from miniformer.compression.weights import check_finite
from miniformer.config import UserError

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Pruned:
    """Result of `prune`.

    Args:
        directory: the written directory.
        lines: what is removed.
        num_weights: parameters before and after.
        num_bytes: of the weights before and after, in `model.safetensors`.
        losses: on the data before and after; None: without data.
        zeros: with `sparsity`, the zeros that were counted.
        unhealed_loss: with `heal`, the loss on the data before it.
    """

    directory: Path
    lines: tuple[str, ...]
    num_weights: tuple[int, int]
    num_bytes: tuple[int, int]
    losses: tuple[float, float] | None = None
    zeros: Zeros | None = None
    unhealed_loss: float | None = None

    def __str__(self) -> str:
        before, after = self.num_bytes
        lines = [
            f"written to {self.directory}: {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB "
            f"after ({after / before:.3f} of it)",
            f"{self.num_weights[0]:,} parameters before, {self.num_weights[1]:,} after",
            *(f"removed {line}" for line in self.lines),
        ]
        if self.zeros is not None:
            lines.append(str(self.zeros))
        if self.losses is not None:
            first, second = self.losses
            change = 100 * relative_change(first, second)
            healed = "" if self.unhealed_loss is None else f"{self.unhealed_loss:.5f} pruned, "
            name = "healed" if healed else "after"
            lines.append(f"loss: {first:.5f} before, {healed}{second:.5f} {name} ({change:+.2f} %)")
        return "\n".join(lines)


def prune(
    model: Any,
    out: str | Path,
    *,
    remove: str | Mapping[str, Any] | None = None,
    sparsity: str | float | None = None,
    method: str | None = None,
    calibrate: Any = None,
    data: Any = None,
    heal: Any = None,
    steps: int | None = None,
    console: Console | None = None,
    **fields: Any,
) -> Pruned:
    """Writes a model directory without the least important parts or weights of a model.

    Args:
        model: a `Pipeline`, a model, a model directory, or the folder of a run. It is not changed.
        out: the directory to write; it must not exist, or be empty.
        remove: shares of heads and of feed-forward columns, and numbers of layers, such as
            `heads=0.5,ffn=0.5,layers=2` or {"ffn": 0.5}; for seq2seq also `encoder_layers` and
            `decoder_layers`.
        sparsity: weights of the linear layers within the layers that become zero: the share of each
            matrix, such as 0.5, or `2:4`, two of each four consecutive inputs of a row. With
            `remove`, of the smaller model.
        method: of `sparsity`: magnitude, wanda (Sun et al. 2024) or sparsegpt (Frantar & Alistarh
            2023); None: sparsegpt with records, else magnitude.
        calibrate: labeled records, such as those of training, by which parts and weights are
            chosen; wanda and sparsegpt need at least 32. None: those of `data`. Without both, heads
            and columns are chosen by their weights, and layers not at all.
        data: labeled records; their loss is computed before and after.
        heal: labeled records, such as those of training, on which the pruned model is trained by
            distillation from the model; zeros stay zero. None: it is not trained.
        steps: optimizer steps of `heal`; None: one pass over its records.
        console: output for the messages and progress of `heal`; None: it prints nothing.
        **fields: fields of `FieldSettings` for all records, such as input_field="text".

    Raises:
        UserError: a share, a number or a method is invalid, a part cannot be removed, the model is
            quantized or has transforms or weights that are not finite, records are too few or of
            another task; or `out` is not empty.
    """
    parts = {} if remove is None else parse_removal(remove)
    zeros = None if sparsity is None else parse_sparsity(sparsity)
    records = data if calibrate is None else calibrate
    if not parts and zeros is None:
        raise UserError(
            "prune needs remove or sparsity: remove=ffn=0.5 makes a smaller model, sparsity=0.5 "
            "one with zeros"
        )
    if zeros is None and method is not None:
        raise UserError("method is for sparsity; leave it out")
    if zeros is not None:
        method = choose_method(method, has_records=records is not None)
    if method == "magnitude" and calibrate is not None and not parts:
        raise UserError("calibrate has no effect with method=magnitude; leave one of them out")
    if steps is not None and (heal is None or type(steps) is not int or steps < 1):
        problem = "needs heal" if heal is None else "must be at least 1"
        raise UserError(f"steps={steps} {problem}: the number of optimizer steps of heal")
    out = Path(out)
    require_empty(out)
    source = read_source(model, "prune")
    pipeline = source if isinstance(source, Pipeline) else None
    original = source.model if isinstance(source, Pipeline) else source
    for name, value in (
        ("data", data), ("calibrate", calibrate), ("heal", heal), *fields.items()
    ):  # fmt: skip
        if value is not None and pipeline is None:
            raise UserError(f"{name} needs a model with its task: a Pipeline or its directory")
    _check_model(original)
    check_labels(getattr(pipeline, "task", None), parts)
    reader = None
    if pipeline is not None:
        reader = with_fields(pipeline, fields, data=data, calibrate=calibrate, heal=heal)
    if reader is not None and heal is not None:
        heal = healing_records(reader, heal)
    calibration = None
    if reader is not None and zeros is not None and method != "magnitude":
        calibration = CalibrationData(reader, records)
    first_loss = None if reader is None or data is None else data_loss(reader, data)
    result, lines = original, list[str]()
    if parts:
        result, lines = remove_parts(original, reader, parts, records)
    if zeros is not None and method is not None:
        result = sparse_model(result, zeros, method, calibration)
    unhealed_loss = None
    if reader is not None and heal is not None:
        pruned = with_model(reader, result)
        unhealed_loss = None if data is None else data_loss(pruned, data)
        result = healed_model(
            pruned, reader, heal, steps, has_zeros=zeros is not None, console=console
        )
    write_directory(result, pipeline, out)
    losses = None
    if reader is not None and first_loss is not None:
        losses = first_loss, data_loss(with_model(reader, load(out).model), data)
    return Pruned(
        directory=out,
        lines=tuple(lines),
        num_weights=(
            sum(x.numel() for x in original.parameters()),
            sum(x.numel() for x in result.parameters()),
        ),
        num_bytes=(
            sum(x.nbytes for x in original.state_dict().values()),
            (out / "model.safetensors").stat().st_size,
        ),
        losses=losses,
        zeros=None if zeros is None or method is None else count_zeros(result, zeros, method),
        unhealed_loss=unhealed_loss,
    )


def _check_model(model: Any) -> None:
    if model.weight_storage:
        raise UserError(
            f"the model is quantized already ({stored_kinds(model)}), and would be rounded again: "
            "prune the model that it was made of"
        )
    check_without_transforms(model)
    check_finite(model.named_parameters())
