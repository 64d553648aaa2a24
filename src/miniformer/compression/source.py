"""The model that a command of compression reads, and the directory that it writes."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniformer.checkpoint.artifacts import MODEL_CLASSES, get_model_kind
from miniformer.checkpoint.directory import atomic_model_directory
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.config import UserError
from miniformer.config.command_line import resolve_model
from miniformer.model.config_file import read_config
from miniformer.model.transforms import effective_state_dict


def read_source(model: Any, action: str) -> Any:
    """A `Pipeline`, or a model without a task, which computes with all layers.

    Early exits hide later layers from records, and their threshold holds for one model only.

    Args:
        model: one of them, a model directory, or the folder of a run.
        action: name of the function, for the message.

    Raises:
        UserError: it is something else, or the directory is none of a model.
    """
    if not isinstance(model, str | Path):
        if isinstance(model, Pipeline):
            plain = _without_exits(model.model)
            return model if plain is model.model else with_model(model, plain)
        if hasattr(model, "save_pretrained"):
            return _without_exits(model)
        raise UserError(
            f"{action} takes a Pipeline, a model or a model directory, not a {type(model).__name__}"
        )
    directory = Path(resolve_model(str(model)))
    if (directory / "task.json").exists():
        return read_source(load(directory), action)
    architecture, _ = read_config(directory)
    return MODEL_CLASSES[get_model_kind(directory, architecture)].from_pretrained(directory)


def _without_exits(model: Any) -> Any:
    """The model, or one with the same weights if it has early exits."""
    if getattr(model, "exit_policy", None) is None:
        return model
    plain = copy.copy(model)
    plain.exit_policy = None
    return plain


def check_without_transforms(model: Any) -> None:
    """Checks that a model has no transforms.

    Raises:
        UserError: it has some; the message says how to merge them, if they can be merged.
    """
    if not model.transforms:
        return
    names = ", ".join(item["type"] for item in model.transforms)
    try:
        effective_state_dict(model)
    except UserError:
        raise UserError(
            f"the model has transforms ({names}) that cannot be merged into its weights; take a "
            "model that was trained without them"
        ) from None
    raise UserError(
        f"the model has transforms ({names}); merge them first, in Python: m = "
        "miniformer.load(DIR); m.model = miniformer.merge_transforms(m.model); m.save(OUT)"
    )


def stored_kinds(model: Any) -> str:
    """Names of the stored types of a quantized model; empty for another one."""
    return ", ".join(sorted({str(item["type"]) for item in model.weight_storage.values()}))


def write_directory(model: Any, pipeline: Pipeline | None, out: Path) -> None:
    """Writes a model directory.

    Args:
        model: the model to write.
        pipeline: whose tokenizer, task and settings it gets; None: the model has no task.
        out: the directory, which is replaced as a whole.
    """
    if pipeline is None:
        with atomic_model_directory(out) as folder:
            model.save_pretrained(folder)
        return
    with_model(pipeline, model).save(out)


def with_model(pipeline: Pipeline, model: Any) -> Pipeline:
    """A pipeline with the same tokenizer, task and settings, and another model."""
    result = Pipeline(model, pipeline.tokenizer, pipeline.task, pipeline.generation)
    result.directory, result.hf_metadata = pipeline.directory, pipeline.hf_metadata
    result.data_settings = pipeline.data_settings
    return result


def with_fields(pipeline: Pipeline, fields: Mapping[str, Any], **data: Any) -> Pipeline:
    """A pipeline that reads records from other columns; the given one is not changed.

    Args:
        pipeline: the pipeline.
        fields: fields of `FieldSettings`, such as input_field="text"; empty: as in training.
        **data: the records by the name of their argument; None: there are none.

    Raises:
        UserError: a field is unknown or invalid, or for no records; or the model has no tokenizer.
    """
    settings = pipeline.data_settings
    given = [name for name, records in data.items() if records is not None]
    if given and pipeline.tokenizer is None and pipeline.task.reads_text():
        raise UserError(
            f"{given[0]}: the model was imported without a tokenizer.json, so it reads no records: "
            "import it from a directory that has one"
        )
    result = with_model(pipeline, pipeline.model)
    if fields:
        mapping = settings.override(dict(fields)).to_dict()
        result.data_settings = dataclasses.replace(settings, fields=mapping)
        if not given:
            raise UserError(f"{next(iter(fields))} is for {' and '.join(data)}; leave it out")
    return result


def data_loss(pipeline: Pipeline, data: Any) -> float:
    """The loss on labeled records."""
    return float(pipeline.evaluate(data, num_resamples=0).metrics["loss"])


def relative_change(before: float, after: float) -> float:
    """(after - before) / |before|; of 0 to another number infinity."""
    if before == after:
        return 0.0
    return (after - before) / abs(before) if before else math.copysign(math.inf, after)
