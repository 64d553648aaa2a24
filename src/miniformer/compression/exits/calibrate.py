"""Threshold of a classifier's exits, from labeled records."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miniformer.checkpoint.early_exit import FILE_NAME, StoredExit, has_exits
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.compression.exits.bound import (
    THRESHOLDS,
    choose_threshold,
    count_losses,
    exit_layers,
    min_records,
)
from miniformer.compression.source import with_fields
from miniformer.config import UserError
from miniformer.config.command_line import resolve_model
from miniformer.data.reading.records import as_records
from miniformer.evaluation.run_batches import labeled_batches
from miniformer.generation.inference import eval_mode, inference_model
from miniformer.model.exit_policy import exit_outputs
from miniformer.tasks.common.input_encoding import model_inputs
from miniformer.utils.atomic import write_json


def calibrate_exit(
    directory: str | Path,
    data: Any,
    *,
    max_loss: float = 0.01,
    confidence: float = 0.95,
    **fields: Any,
) -> StoredExit:
    """Chooses the threshold of exits, and writes it to `early_exit.json` of the directory.

    With the probability `confidence` over draws of the records, at most the share `max_loss` of
    further records of the same kind is classified right by all layers and wrong by the exit.

    Args:
        directory: model directory of task classification.
        data: labeled records that training has not seen, as a file or in memory.
        max_loss: largest share, in (0, 1).
        confidence: in (0, 1).
        **fields: fields of `FieldSettings` for the data, such as input_field="text".

    Raises:
        UserError: a value is out of range, the model is no classifier of several layers, there are
            too few records, or no threshold keeps the bound.
    """
    for name, value in (("max_loss", max_loss), ("confidence", confidence)):
        if not 0 < value < 1:
            raise UserError(f"{name} must be above 0% and below 100%, not {100 * value:g}%")
    path = Path(resolve_model(str(directory)))
    pipeline = with_fields(load(path), fields, data=data)
    pipeline.model.exit_policy = None
    confidences, is_right = _all_exits(pipeline, data)
    num_records, needed = confidences.shape[1], min_records(max_loss, confidence)
    if num_records < needed:
        raise UserError(
            f"calibrate-exit has {num_records} records; a loss of at most {max_loss:.3g} with "
            f"confidence {confidence:.3g} needs at least {needed}"
        )
    losses = count_losses(confidences, is_right)
    chosen = choose_threshold(losses, num_records, max_loss, confidence)
    if chosen < 0:
        raise UserError(
            f"calibrate-exit: no threshold has a loss of at most {max_loss:.3g} with confidence "
            f"{confidence:.3g}: {losses[0]} of {num_records} records lose at the strictest one; "
            "raise max_loss, or train with early_exit"
        )
    layers = exit_layers(confidences, THRESHOLDS[chosen])
    stored = StoredExit(
        threshold=THRESHOLDS[chosen],
        max_loss=max_loss,
        confidence=confidence,
        num_records=num_records,
        loss=losses[chosen] / num_records,
        mean_layers=float(layers.mean()),
        n_layers=len(confidences),
    )
    try:
        write_json(path / FILE_NAME, dataclasses.asdict(stored))
    except OSError as error:
        raise UserError(f"{path / FILE_NAME}: cannot be written: {error.strerror}") from None
    return stored


def _all_exits(pipeline: Pipeline, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of all exits, and their predictions compared with the labels, [layers, N]."""
    task: Any = pipeline.task
    model = pipeline.model
    if not has_exits(task):
        raise UserError(f"calibrate-exit is for models of task classification, not of {task.name}")
    if len(model.layers) < 2:  # type: ignore[arg-type]
        raise UserError("calibrate-exit: the model has 1 layer, so it has no earlier exit")
    records = as_records(data, task.schema, mapping=pipeline.data_settings.mapping())
    confidences, is_right = [], []
    batches = labeled_batches(
        model, task, pipeline.tokenizer, records, pipeline.data_settings.batches()
    )
    model = inference_model(model, "stored")  # as `predict` does
    with torch.inference_mode(), eval_mode(model):
        for batch in batches:
            outputs = (
                exit_outputs(model, **model_inputs(model, batch)).float().cpu()
            )  # [layers, B, C]
            confidences.append(outputs.softmax(-1).amax(-1).numpy())
            is_right.append((task.decide(outputs) == batch["labels"].cpu()).numpy())
    return np.concatenate(confidences, 1), np.concatenate(is_right, 1)
