"""`miniformer.prune`: a smaller model directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniformer.checkpoint.directory import require_empty
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.compression.pruning.removal import remove_parts
from miniformer.compression.pruning.request import parse_removal
from miniformer.compression.source import (
    check_without_transforms,
    data_loss,
    read_source,
    relative_change,
    stored_kinds,
    write_directory,
)
from miniformer.compression.weights import check_finite
from miniformer.config import UserError


@dataclasses.dataclass(frozen=True)
class Pruned:
    """Result of `prune`.

    Args:
        directory: the written directory.
        lines: what is removed.
        num_weights: parameters before and after.
        num_bytes: of the weights before and after, in `model.safetensors`.
        losses: on the data before and after; None: without data.
    """

    directory: Path
    lines: tuple[str, ...]
    num_weights: tuple[int, int]
    num_bytes: tuple[int, int]
    losses: tuple[float, float] | None = None

    def __str__(self) -> str:
        before, after = self.num_bytes
        lines = [
            f"written to {self.directory}: {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB "
            f"after ({after / before:.3f} of it)",
            f"{self.num_weights[0]:,} parameters before, {self.num_weights[1]:,} after",
            *(f"removed {line}" for line in self.lines),
        ]
        if self.losses is not None:
            first, second = self.losses
            change = 100 * relative_change(first, second)
            lines.append(f"loss: {first:.5f} before, {second:.5f} after ({change:+.2f} %)")
        return "\n".join(lines)


def prune(
    model: Any, out: str | Path, *, remove: str | Mapping[str, Any], data: Any = None
) -> Pruned:
    """Writes a model directory without the least important parts of a model.

    Args:
        model: a `Pipeline`, a model, a model directory, or the folder of a run. It is not changed.
        out: the directory to write; it must not exist, or be empty.
        remove: shares of heads and of feed-forward columns, and numbers of layers, such as
            `heads=0.5,ffn=0.5,layers=2` or {"ffn": 0.5}; for seq2seq also `encoder_layers` and
            `decoder_layers`.
        data: labeled records, by which importance is computed, and their loss before and after;
            None: heads and columns are chosen by their weights, and layers not at all.

    Raises:
        UserError: a share or a number is invalid, a part cannot be removed, the model is quantized
            or has transforms or weights that are not finite, a record is of another task; or `out`
            is not empty.
    """
    parts = parse_removal(remove)
    out = Path(out)
    require_empty(out)
    source = read_source(model, "prune")
    pipeline = source if isinstance(source, Pipeline) else None
    original = source.model if isinstance(source, Pipeline) else source
    if data is not None and pipeline is None:
        raise UserError("data needs a model with its task: a Pipeline or its directory")
    _check_model(original)
    first_loss = None if pipeline is None or data is None else data_loss(pipeline, data)
    result, lines = remove_parts(original, pipeline, parts, data)
    write_directory(result, pipeline, out)
    losses = None
    if first_loss is not None:
        losses = first_loss, data_loss(load(out), data)
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
    )


def _check_model(model: Any) -> None:
    if model.weight_storage:
        raise UserError(
            f"the model is quantized already ({stored_kinds(model)}), and would be rounded again: "
            "prune the model that it was made of"
        )
    check_without_transforms(model)
    check_finite(model.named_parameters())
