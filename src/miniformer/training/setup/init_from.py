"""A run that begins with a model there is: its shape, its tokenizer, its weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from miniformer.checkpoint.artifacts import MODEL_CLASSES
from miniformer.checkpoint.directory import SOURCE_TOKENIZER, read_hf_metadata
from miniformer.config import UserError
from miniformer.model.pretrained import read_config
from miniformer.tasks.base import stored_settings
from miniformer.train_config import TrainConfig

# What a head to other outputs has no use for, and what the new task decides.
_VOCAB_HEAD_FIELDS = ("head_bias", "final_softcap", "logit_scale")
_TASK_FIELDS = ("output_dim", "input_dim", "output_bias")
_INPUT_TASKS = ("classification", "regression", "masked_lm")
# What a task reads as its first model read it.
_INHERITED_TASK_OPTIONS = {
    "seq2seq": ("start_id",),
    "regression": ("target_delta_of", "scale_epsilon"),
}
_FEATURE_SCALING_OPTIONS = ("standardize", "feature_means", "feature_stds")


def config_from_pretrained(config: TrainConfig, model_kind: str) -> TrainConfig:
    """The run's settings with what they leave to `init_from` filled in.

    Args:
        config: the run; without `init_from` it stays as it is.
        kind: the kind of model that learns the task: encoder or seq2seq.

    Raises:
        UserError: the directory is none, or holds another kind of model; or it is not clear which
            tokens its ids stand for.
    """
    if config.init_from is None:
        return config
    directory = Path(config.init_from)
    architecture, shape = read_config(directory)
    if architecture != MODEL_CLASSES[model_kind].__name__:
        raise UserError(
            f"init_from: {directory} holds a {architecture}, but task={config.task} with "
            f"model={model_kind} needs a {MODEL_CLASSES[model_kind].__name__}"
        )
    defaults = {name: field.default for name, field in shape.__dataclass_fields__.items()}
    fields = {name: value for name, value in shape.to_dict().items() if value != defaults[name]}
    # Said even where it is the default: a task must not take it for a choice left open.
    fields |= {"vocab_size": shape.vocab_size, "causal": shape.causal}
    fields["token_types"] = shape.token_types
    has_outputs = config.task in ("classification", "regression")
    for name in (*_TASK_FIELDS, *(_VOCAB_HEAD_FIELDS if has_outputs else ())):
        fields.pop(name, None)
    if has_outputs:  # the head that its family has for classes, so that it can go back there
        fields |= read_hf_metadata(directory).get("classifier", {})
    head = config.model_config.get("head", fields.get("head"))
    if head != "masked_lm":
        fields.pop("head_activation", None)
    changes: dict[str, Any] = {"model_config": {**fields, **config.model_config}}
    if (directory / "tokenizer.json").exists():
        if config.tokenizer not in (None, config.init_from):
            raise UserError(
                f"tokenizer has no effect with init_from: {directory} has one; leave it out"
            )
        changes["tokenizer"] = config.init_from
    elif config.tokenizer is None and shape.input_dim is None:
        raise UserError(
            f"init_from: {directory} has no tokenizer.json; set tokenizer to that which its model "
            "learned with (one trained anew would have other ids)"
        )
    if (directory / SOURCE_TOKENIZER).exists():
        if config.source_tokenizer not in (None, str(directory / SOURCE_TOKENIZER)):
            raise UserError(
                f"source_tokenizer has no effect with init_from: {directory} has one; leave it out"
            )
        changes["source_tokenizer"] = str(directory / SOURCE_TOKENIZER)
    kept = _inherited_task_options(
        config.task, stored_settings(_read_json_object(directory / "task.json"))
    )
    if any(
        name in config.task_config for name in _FEATURE_SCALING_OPTIONS
    ):  # the user's own, all of them
        kept = {name: value for name, value in kept.items() if name not in _FEATURE_SCALING_OPTIONS}
    changes["task_config"] = {**kept, **config.task_config}
    return dataclasses.replace(config, **changes)


def load_pretrained_weights(model: Any, directory: Path, model_kind: str) -> list[str]:
    """Copies the weights of a model directory; returns the names of those that are new.

    Only a head may be: what comes before it must fit.

    Raises:
        UserError: a weight does not fit.
    """
    found = MODEL_CLASSES[model_kind].from_pretrained(directory).state_dict()
    wanted = model.state_dict()
    new = [
        name
        for name, tensor in wanted.items()
        if name not in found or found[name].shape != tensor.shape
    ]
    for name in new:
        if not name.startswith("head."):
            there = list(found[name].shape) if name in found else "none"
            raise UserError(
                f"init_from: weight {name} of this run's model is {list(wanted[name].shape)}, that "
                f"of {directory} is {there}; leave out of model_config what makes it so"
            )
    kept = {name: found[name] for name in wanted if name not in new}
    model.load_state_dict({**wanted, **kept})
    return new


def _inherited_task_options(task: str, task_settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a task that follow from the `task.json` of the model that a run begins with."""
    names = [
        name
        for name in _INHERITED_TASK_OPTIONS.get(task, ())
        if task_settings.get(name) is not None
    ]
    kept = {name: task_settings[name] for name in names}
    if task in _INPUT_TASKS and not _marks_shared_tokens(task_settings):
        kept["shared_token_types"] = False
    if task in _INPUT_TASKS and task_settings.get("input_kind") == "features":
        kept |= _feature_scaling_options(task_settings)
    return kept


def _feature_scaling_options(task_settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by which vectors are scaled as those of the model of a `task.json` are."""
    means, stds = (task_settings.get(name) for name in ("feature_means", "feature_stds"))
    if means is None or stds is None:
        return {"standardize": False}
    return {"feature_means": means, "feature_stds": stds}


def _marks_shared_tokens(task_settings: dict[str, Any]) -> bool:
    """Whether the model of a `task.json` knows the marks of tokens that a pair shares."""
    said = task_settings.get("shared_token_types")
    if said is None:  # as `InputTask.marks` has it
        return (
            task_settings.get("input_kind") == "pair" and task_settings.get("task") != "masked_lm"
        )
    return bool(said)


def _read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
