"""Initializes a run from a model directory (`init_from`): config, tokenizer, weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from miniformer.checkpoint.artifacts import MODEL_CLASSES, stored_settings
from miniformer.checkpoint.directory import read_hf_metadata
from miniformer.config import UserError
from miniformer.data.chat import read_template
from miniformer.data.tokenizers.tokenizer import SOURCE_TOKENIZER
from miniformer.model.config_file import read_description
from miniformer.registry import named_options
from miniformer.train_config import TrainConfig
from miniformer.utils.jsonl import read_json

# Fields without use in a head with other outputs, and fields that the new task sets.
_VOCAB_HEAD_FIELDS = ("head_bias", "final_softcap", "logit_scale")
_TASK_FIELDS = ("output_dim", "input_dim", "output_bias", "ordered_outputs")
_INPUT_TASKS = (
    "classification", "multilabel_classification", "ordinal_regression", "regression", "masked_lm",
)  # fmt: skip
_OUTPUT_TASKS = (*_INPUT_TASKS[:-1], "token_classification")
# Task options that the run takes from the model directory.
_INHERITED_TASK_OPTIONS = {
    "seq2seq": ("start_id",),
    "token_classification": ("word_pooling",),
    "regression": ("target_delta_of", "scale_epsilon"),
}
_FEATURE_SCALING_OPTIONS = ("standardize", "feature_means", "feature_stds")


def config_from_pretrained(config: TrainConfig, model_kind: str) -> TrainConfig:
    """Fills the settings that `init_from` determines.

    Args:
        config: the run, with `init_from`.
        model_kind: kind of model of the run: encoder or seq2seq.

    Raises:
        UserError: the directory is missing or has another kind of model; or the tokenizer of its
            token ids is unknown.
    """
    directory = Path(config.init_from or "")
    architecture, shape, transforms, *_ = read_description(directory)
    if architecture != MODEL_CLASSES[model_kind].__name__:
        raise UserError(
            f"init_from: {directory} holds a {architecture}, but task={config.task} with "
            f"model={model_kind} needs a {MODEL_CLASSES[model_kind].__name__}"
        )
    defaults = {name: field.default for name, field in shape.__dataclass_fields__.items()}
    fields = {name: value for name, value in shape.to_dict().items() if value != defaults[name]}
    # Set even to its default: a task chooses a value for a missing field.
    fields |= {"vocab_size": shape.vocab_size, "causal": shape.causal}
    fields["token_types"] = shape.token_types
    has_outputs = config.task in _OUTPUT_TASKS
    for name in (*_TASK_FIELDS, *(_VOCAB_HEAD_FIELDS if has_outputs else ())):
        fields.pop(name, None)
    if has_outputs:  # the classification head of its architecture, for export
        key = "token_classifier" if config.task == "token_classification" else "classifier"
        fields |= read_hf_metadata(directory).get(key, {})
    head = config.model_config.get("head", fields.get("head"))
    if head != "masked_lm":
        fields.pop("head_activation", None)
    changes: dict[str, Any] = {"model_config": {**fields, **config.model_config}}
    if transforms:  # those of the run are in addition, or begin with the same
        own = [named_options(item) for item in config.transforms]
        is_complete = own[: len(transforms)] == [*transforms]
        changes["transforms"] = own if is_complete else [*transforms, *own]
    if (directory / "tokenizer.json").exists():
        if config.tokenizer not in (None, config.init_from):
            raise UserError(
                f"tokenizer has no effect with init_from: {directory} has one; leave it out"
            )
        changes["tokenizer"] = config.init_from
    elif config.tokenizer is None and shape.input_dim is None:
        raise UserError(
            f"init_from: {directory} has no tokenizer.json; set tokenizer to the one that its "
            "model was trained with (a new one would have other ids)"
        )
    if (directory / SOURCE_TOKENIZER).exists():
        if config.source_tokenizer not in (None, str(directory / SOURCE_TOKENIZER)):
            raise UserError(
                f"source_tokenizer has no effect with init_from: {directory} has one; leave it out"
            )
        changes["source_tokenizer"] = str(directory / SOURCE_TOKENIZER)
    options = _inherited_task_options(
        config.task, stored_settings(_read_json_object(directory / "task.json"))
    )
    is_causal = config.task == "language_modeling" and model_kind == "encoder"
    if is_causal and (template := read_template(directory)) is not None:
        options["chat_template"] = template
    if any(name in config.task_config for name in _FEATURE_SCALING_OPTIONS):  # all by the user
        options = {k: v for k, v in options.items() if k not in _FEATURE_SCALING_OPTIONS}
    changes["task_config"] = {**options, **config.task_config}
    return dataclasses.replace(config, **changes)


def load_pretrained_weights(model: Any, directory: Path, model_kind: str) -> tuple[Any, list[str]]:
    """Loads weights of a model directory into a model, to which its transforms are applied first.

    Returns:
        The model, and the names of newly initialized weights, which are weights of the head.

    Raises:
        UserError: another weight is missing or has another shape.
    """
    source = MODEL_CLASSES[model_kind].from_pretrained(directory)
    if source.transforms:
        from miniformer.model.transforms import apply_transforms

        model = apply_transforms(model, source.transforms)
    weights, pretrained = model.state_dict(), source.state_dict()
    new = [
        name
        for name, tensor in weights.items()
        if name not in pretrained or pretrained[name].shape != tensor.shape
    ]
    for name in new:
        if not name.startswith("head."):
            shape = list(pretrained[name].shape) if name in pretrained else "none"
            raise UserError(
                f"init_from: weight {name} of this run's model is {list(weights[name].shape)}, "
                f"that of {directory} is {shape}; leave out of model_config what causes this"
            )
    loaded = {name: pretrained[name] for name in weights if name not in new}
    model.load_state_dict({**weights, **loaded})
    return model, new


def transform_model(model: Any, transforms: list[Any], console: Console) -> Any:
    """Applies the transforms of a run that its model does not have yet, and prints a summary."""
    from miniformer.model.transforms import apply_transforms, describe_transforms
    from miniformer.training.optim.roles import freeze_parameters

    model = apply_transforms(model, transforms[len(model.transforms) :])
    freeze_parameters(model)
    console.print(describe_transforms(model))
    return model


def check_new_weights(model: Any, new: list[str]) -> None:
    """Checks that the weights which the base of an adapter does not have are trained.

    Raises:
        UserError: one is not.
    """
    parameters = dict(model.named_parameters())
    for name in new:
        if name in parameters and not parameters[name].requires_grad:
            module = name.rpartition(".")[0]
            raise UserError(
                f"adapter: {name} is new, and the adapter does not train it; add {module!r} to "
                "modules_to_save in adapter_config"
            )


def _inherited_task_options(task: str, task_settings: dict[str, Any]) -> dict[str, Any]:
    """Task options that follow from the `task.json` of the pretrained model."""
    names = [
        name
        for name in _INHERITED_TASK_OPTIONS.get(task, ())
        if task_settings.get(name) is not None
    ]
    options = {name: task_settings[name] for name in names}
    if task in _INPUT_TASKS and not task_settings.get("shared_token_types"):
        options["shared_token_types"] = False
    if task in _INPUT_TASKS and task_settings.get("input_kind") == "features":
        options |= _feature_scaling_options(task_settings)
    return options


def _feature_scaling_options(task_settings: dict[str, Any]) -> dict[str, Any]:
    """Task options that scale features like the pretrained model does."""
    means, stds = (task_settings.get(name) for name in ("feature_means", "feature_stds"))
    if means is None or stds is None:
        return {"standardize": False}
    return {"feature_means": means, "feature_stds": stds}


def _read_json_object(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file; {} without one."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
