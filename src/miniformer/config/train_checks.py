"""Checks of a `TrainConfig`: paths, conflicting settings and settings without effect."""

from __future__ import annotations

from typing import Any

from miniformer.config.size_presets import SHAPE_FIELDS, SIZE_PRESETS
from miniformer.utils.names import name_problem

DEFAULT_NUM_VALIDATIONS = 5  # per run, if val_check_interval is null
_REQUIRES_VALIDATION = {
    "early_stopping_patience": "the data of the metric",
    "val_check_interval": "the data to validate on",
    "checkpoint_metric": "the data of the metric",
    "average_checkpoints": "the data to evaluate averaged weights on",
    "sample_prompt": "since it is continued at validations",
}
_PATH_FIELDS = (
    "val_path", "test_path", "init_from", "tokenizer", "source_tokenizer", "work_dir", "resume",
)  # fmt: skip


def path_problems(config: Any) -> list[str]:
    """Empty paths, and an experiment_name that is not a folder name."""
    problems = [
        f"{name} is empty; leave it out or give a path"
        for name in _PATH_FIELDS
        if getattr(config, name) == ""
    ]
    name = config.experiment_name
    if name is not None and (reason := name_problem(name)) is not None:
        problems.append(
            f"experiment_name must be the name of a folder in work_dir, not {name!r}: {reason}"
        )
    return problems


def unused_setting_problems(config: Any) -> list[str]:
    """Settings that other settings make ineffective."""
    problems = [
        f"{name} needs val_path, {why}"
        for name, why in _REQUIRES_VALIDATION.items()
        if getattr(config, name) is not None and config.val_path is None and config.resume is None
    ]
    return [
        *problems,
        *_optimization_problems(config),
        *_initialization_problems(config),
        *_hardware_problems(config),
    ]


def _optimization_problems(config: Any) -> list[str]:
    """Learning rate, schedule and optimizer."""
    problems = [
        f"{name} has no effect with scheduler=onecycle, which has its own warmup; leave it out"
        for name in ("warmup_steps", "warmup_ratio")
        if config.scheduler == "onecycle" and getattr(config, name) is not None
    ]
    if (
        None not in (config.warmup_steps, config.max_steps)
        and config.warmup_steps > config.max_steps
    ):
        problems.append(
            f"warmup_steps={config.warmup_steps} is longer than the run of "
            f"max_steps={config.max_steps}, so the learning rate never reaches lr; set at most "
            f"{config.max_steps}"
        )
    if config.optimizer == "schedulefree" and config.scheduler != "none":
        problems.append("optimizer=schedulefree has no schedule; set scheduler=none")
    if config.optimizer == "schedulefree" and config.ema_decay is not None:
        problems.append(
            "ema_decay has no effect with schedulefree, which averages weights itself; leave it out"
        )
    problems += [
        f"optimizer_config: {name} is a separate setting; set {name} instead"
        for name in ("lr", "weight_decay", "layer_lr_decay")
        if name in config.optimizer_config
    ]
    return problems


def _initialization_problems(config: Any) -> list[str]:
    """Initialization: init_from, pretraining."""
    problems = []
    if config.model_size is not None and config.init_from is not None:
        problems.append(
            "model_size has no effect with init_from, which sets the shape; leave it out"
        )
    if config.pretrain is not None and config.init_from is not None:
        problems.append("pretrain and init_from both set initial weights; leave one of them out")
    if config.pretrain is not None and config.find_lr:
        problems.append("find_lr would run before pretraining; set lr, or leave one out")
    if config.pretrain is not None and config.streaming:
        problems.append("pretrain reads the data again, and streaming reads it once; leave one out")
    return problems


def _hardware_problems(config: Any) -> list[str]:
    """Devices, memory and streaming."""
    problems = []
    if config.strategy is not None and config.world_size == 1:
        problems.append(
            f"strategy={config.strategy} is for several devices; set devices or num_nodes, "
            "or leave it out"
        )
    if config.memory_limit is not None and config.find_batch_size:
        problems.append("memory_limit and find_batch_size both set the batch size; leave one out")
    if config.world_size > 1:
        problems += [
            f"{name} supports one device only; leave it out, or set devices=1"
            for name in ("memory_limit", "find_batch_size", "find_lr", "streaming")
            if getattr(config, name)
        ]
    if config.streaming:
        problems += [
            f"{name} has no effect with streaming: {why}; leave it out"
            for name, why, value in (
                ("num_workers", "the process reads the stream itself", config.num_workers),
                ("max_epochs", "a stream is read once", config.max_epochs),
            )
            if value
        ]
    return problems


def overridden_setting_problems(config: Any) -> list[str]:
    """Settings of a new run that the run itself would override.

    The config of a running run has both: the option and its result.
    """
    problems = []
    if config.find_lr and config.lr is not None:
        problems.append(f"find_lr would override lr={config.lr}; leave one of them out")
    if config.find_batch_size and config.batch_size is not None:
        problems.append(
            f"find_batch_size would override batch_size={config.batch_size}; leave one of them out"
        )
    if config.memory_limit is not None and config.activation_checkpointing != "none":
        problems.append(
            "memory_limit would override activation_checkpointing="
            f"{config.activation_checkpointing}; leave one of them out"
        )
    if config.model_size is not None and SIZE_PRESETS[
        config.model_size
    ].keys() <= config.model_config.keys() & set(SHAPE_FIELDS):
        problems.append(
            f"model_size={config.model_size} has no effect: model_config sets the whole shape; "
            "leave it out"
        )
    return problems


def unreachable_limit_warnings(config: Any, max_steps: int | None) -> list[str]:
    """Warnings about settings that take effect only after the end of the run.

    Args:
        config: the `TrainConfig`.
        max_steps: maximum optimizer steps; None: unknown.
    """
    messages = []
    if None not in (config.warmup_steps, max_steps) and config.warmup_steps > max_steps:
        messages.append(
            f"warmup_steps={config.warmup_steps} is longer than the run of {max_steps} steps, so "
            "the learning rate never reaches lr"
        )
    validations = count_validations(config, max_steps)
    if config.val_path is None or validations is None:
        return messages
    patience = config.early_stopping_patience
    if (
        patience is not None and patience + 1 >= validations
    ):  # the first one counts as an improvement
        messages.append(
            f"early_stopping_patience={patience} cannot end a run of {validations} validations "
            "early; lower it or val_check_interval"
        )
    if config.average_checkpoints is not None and config.average_checkpoints > validations:
        messages.append(
            f"average_checkpoints={config.average_checkpoints} averages {validations} only: "
            "the run has no more validations; lower it or val_check_interval"
        )
    return messages


def count_validations(config: Any, max_steps: int | None) -> int | None:
    """Number of validations in a run of at most `max_steps` optimizer steps; None: unknown."""
    if config.val_check_interval is None:
        return (
            DEFAULT_NUM_VALIDATIONS
            if max_steps is None
            else min(DEFAULT_NUM_VALIDATIONS, max_steps)
        )
    return None if max_steps is None else -(-max_steps // config.val_check_interval)
