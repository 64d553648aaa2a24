"""Checks between the settings of a training run: names, and settings that would do nothing.

`run` is a `TrainConfig` throughout.
"""

from __future__ import annotations

from typing import Any

from miniformer.config.size_presets import SHAPE_FIELDS, SIZE_PRESETS
from miniformer.utils.names import name_problem

DEFAULT_NUM_VALIDATIONS = 5  # over a run whose val_check_interval is null
_REQUIRES_VALIDATION = {
    "early_stopping_patience": "the data on which the loss is watched",
    "val_check_interval": "the data to validate on",
    "checkpoint_metric": "the data on which it is measured",
    "average_checkpoints": "the data on which the mean is tried",
    "sample_prompt": "at whose validations it is continued",
}
_PATH_FIELDS = (
    "val_path", "test_path", "init_from", "tokenizer", "source_tokenizer", "work_dir", "resume",
)  # fmt: skip


def path_problems(config: Any) -> list[str]:
    """Paths that are empty, and a run's name that would leave work_dir."""
    problems = [
        f"{name} is empty; leave it out or name one"
        for name in _PATH_FIELDS
        if getattr(config, name) == ""
    ]
    name = config.experiment_name
    if name is not None and (reason := name_problem(name)) is not None:
        problems.append(
            f"experiment_name must be the name of one folder within work_dir, not {name!r}: "
            f"{reason}"
        )
    return problems


def unused_setting_problems(config: Any) -> list[str]:
    """Settings that would be ignored because of others."""
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
        f"{name} has no effect with scheduler=onecycle, which warms up itself; leave it out"
        for name in ("warmup_steps", "warmup_ratio")
        if config.scheduler == "onecycle" and getattr(config, name) is not None
    ]
    if (
        None not in (config.warmup_steps, config.max_steps)
        and config.warmup_steps > config.max_steps
    ):
        problems.append(
            f"warmup_steps={config.warmup_steps} is longer than the run of max_steps={config.max_steps}, "
            f"whose learning rate would never be lr; set at most {config.max_steps}"
        )
    if config.optimizer == "schedulefree" and config.scheduler != "none":
        problems.append("optimizer=schedulefree needs no schedule; set scheduler=none")
    if config.optimizer == "schedulefree" and config.ema_decay is not None:
        problems.append("ema_decay has no use with schedulefree, which averages; leave it out")
    problems += [
        f"optimizer_config: {name} is a setting of its own; set {name} instead"
        for name in ("lr", "weight_decay", "layer_lr_decay")
        if name in config.optimizer_config
    ]
    return problems


def _initialization_problems(config: Any) -> list[str]:
    """What the run begins with."""
    problems = []
    if config.model_size is not None and config.init_from is not None:
        problems.append(
            "model_size has no effect with init_from, whose shape is taken; leave it out"
        )
    if config.pretrain is not None and config.init_from is not None:
        problems.append("pretrain and init_from both say what to begin with; leave one of them out")
    if config.pretrain is not None and config.find_lr:
        problems.append("find_lr tries rates before the warm start; set lr, or leave one out")
    if config.pretrain is not None and config.streaming:
        problems.append("pretrain reads the data once more, and streaming only once; leave one out")
    return problems


def _hardware_problems(config: Any) -> list[str]:
    """Devices, memory and reading."""
    problems = []
    if config.strategy is not None and config.world_size == 1:
        problems.append(
            f"strategy={config.strategy} is for several devices; set devices or num_nodes, "
            "or leave it out"
        )
    if config.memory_limit is not None and config.find_batch_size:
        problems.append("memory_limit and find_batch_size both choose the batch; leave one out")
    if config.world_size > 1:
        problems += [
            f"{name} is for one device; leave it out, or set devices=1"
            for name in ("memory_limit", "find_batch_size", "find_lr", "streaming")
            if getattr(config, name)
        ]
    if config.streaming:
        problems += [
            f"{name} has no effect with streaming: {why}; leave it out"
            for name, why, given in (
                ("num_workers", "a stream is read by the process itself", config.num_workers),
                ("max_epochs", "a stream is read once", config.max_epochs),
            )
            if given
        ]
    return problems


def overridden_setting_problems(config: Any) -> list[str]:
    """Settings as a user gave them that the run would replace by what it finds out itself.

    A running or saved config has both: the result beside the wish.
    """
    problems = []
    if config.find_lr and config.lr is not None:
        problems.append(f"find_lr would replace lr={config.lr}; leave one of them out")
    if config.find_batch_size and config.batch_size is not None:
        problems.append(
            f"find_batch_size would replace batch_size={config.batch_size}; leave one of them out"
        )
    if config.memory_limit is not None and config.activation_checkpointing != "none":
        problems.append(
            "memory_limit would replace activation_checkpointing="
            f"{config.activation_checkpointing}; leave one of them out"
        )
    if config.model_size is not None and SIZE_PRESETS[
        config.model_size
    ].keys() <= config.model_config.keys() & set(SHAPE_FIELDS):
        problems.append(
            f"model_size={config.model_size} has no effect: model_config has all of it; leave it out"
        )
    return problems


def unreachable_limit_warnings(config: Any, max_steps: int | None) -> list[str]:
    """Limits that lie beyond the end of the run.

    Args:
        run: the run.
        steps: its optimizer steps at most; None: not known before its end.
    """
    found = []
    if None not in (config.warmup_steps, max_steps) and config.warmup_steps > max_steps:
        found.append(
            f"warmup_steps={config.warmup_steps} is longer than the run of {max_steps} steps, whose "
            "learning rate will never be lr"
        )
    validations = count_validations(config, max_steps)
    if config.val_path is None or validations is None:
        return found
    patience = config.early_stopping_patience
    if patience is not None and patience + 1 >= validations:  # the first is the best so far
        found.append(
            f"early_stopping_patience={patience} cannot end a run of {validations} validations "
            "early; lower it or val_check_interval"
        )
    if config.average_checkpoints is not None and config.average_checkpoints > validations:
        found.append(
            f"average_checkpoints={config.average_checkpoints} is the mean of {validations} only: "
            "there are no more validations; lower it or val_check_interval"
        )
    return found


def count_validations(config: Any, max_steps: int | None) -> int | None:
    """Validations in a run of so many optimizer steps at most; None: not known."""
    if config.val_check_interval is None:
        return (
            DEFAULT_NUM_VALIDATIONS
            if max_steps is None
            else min(DEFAULT_NUM_VALIDATIONS, max_steps)
        )
    return None if max_steps is None else -(-max_steps // config.val_check_interval)
