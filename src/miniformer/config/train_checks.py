"""Checks between the settings of a training run: names, and settings that would do nothing.

`run` is a `TrainConfig` throughout.
"""

from __future__ import annotations

from typing import Any

from miniformer.config.presets import SHAPE, SIZES
from miniformer.utils.names import name_problem

VALIDATIONS = 5  # over a run whose val_interval is null
_OF_VALIDATION = {
    "early_stopping_patience": "the data on which the loss is watched",
    "val_interval": "the data to validate on",
    "checkpoint_metric": "the data on which it is measured",
    "average_checkpoints": "the data on which the mean is tried",
    "sample_prompt": "at whose validations it is continued",
}
_PATHS = (
    "val_path", "test_path", "init_from", "tokenizer", "source_tokenizer", "work_dir", "resume",
)  # fmt: skip


def name_problems(run: Any) -> list[str]:
    """Paths that are empty, and a run's name that would leave work_dir."""
    problems = [
        f"{name} is empty; leave it out or name one" for name in _PATHS if getattr(run, name) == ""
    ]
    name = run.experiment_name
    if name is not None and (reason := name_problem(name)) is not None:
        problems.append(
            f"experiment_name must be the name of one folder within work_dir, not {name!r}: "
            f"{reason}"
        )
    return problems


def settings_without_effect(run: Any) -> list[str]:
    """Settings that would be ignored because of others."""
    problems = [
        f"{name} needs val_path, {why}"
        for name, why in _OF_VALIDATION.items()
        if getattr(run, name) is not None and run.val_path is None and run.resume is None
    ]
    return [*problems, *_of_learning(run), *_of_beginning(run), *_of_machine(run)]


def _of_learning(run: Any) -> list[str]:
    """Learning rate, schedule and optimizer."""
    problems = [
        f"{name} has no effect with scheduler=onecycle, which warms up itself; leave it out"
        for name in ("warmup_steps", "warmup_share")
        if run.scheduler == "onecycle" and getattr(run, name) is not None
    ]
    if None not in (run.warmup_steps, run.max_steps) and run.warmup_steps > run.max_steps:
        problems.append(
            f"warmup_steps={run.warmup_steps} is longer than the run of max_steps={run.max_steps}, "
            f"whose learning rate would never be lr; set at most {run.max_steps}"
        )
    if run.optimizer == "schedulefree" and run.scheduler != "none":
        problems.append("optimizer=schedulefree needs no schedule; set scheduler=none")
    if run.optimizer == "schedulefree" and run.ema_decay is not None:
        problems.append("ema_decay has no use with schedulefree, which averages; leave it out")
    problems += [
        f"optimizer_config: {name} is a setting of its own; set {name} instead"
        for name in ("lr", "weight_decay", "layer_lr_decay")
        if name in run.optimizer_config
    ]
    return problems


def _of_beginning(run: Any) -> list[str]:
    """What the run begins with."""
    problems = []
    if run.size is not None and run.init_from is not None:
        problems.append("size has no effect with init_from, whose shape is taken; leave it out")
    if run.warm_start is not None and run.init_from is not None:
        problems.append(
            "warm_start and init_from both say what to begin with; leave one of them out"
        )
    if run.warm_start is not None and run.find_lr:
        problems.append("find_lr tries rates before the warm start; set lr, or leave one out")
    if run.warm_start is not None and run.streaming:
        problems.append(
            "warm_start reads the data once more, and streaming only once; leave one out"
        )
    return problems


def _of_machine(run: Any) -> list[str]:
    """Devices, memory and reading."""
    problems = []
    if run.strategy is not None and run.world_size == 1:
        problems.append(
            f"strategy={run.strategy} is for several devices; set devices or num_nodes, "
            "or leave it out"
        )
    if run.memory is not None and run.find_batch_size:
        problems.append("memory and find_batch_size both choose the batch; leave one out")
    if run.world_size > 1:
        problems += [
            f"{name} is for one device; leave it out, or set devices=1"
            for name in ("memory", "find_batch_size", "find_lr", "streaming")
            if getattr(run, name)
        ]
    if run.streaming:
        problems += [
            f"{name} has no effect with streaming: {why}; leave it out"
            for name, why, given in (
                ("num_workers", "a stream is read by the process itself", run.num_workers),
                ("max_epochs", "a stream is read once", run.max_epochs),
            )
            if given
        ]
    return problems


def replaced_settings(run: Any) -> list[str]:
    """Settings as a user gave them that the run would replace by what it finds out itself.

    A running or saved config has both: the result beside the wish.
    """
    problems = []
    if run.find_lr and run.lr is not None:
        problems.append(f"find_lr would replace lr={run.lr}; leave one of them out")
    if run.find_batch_size and run.batch_size is not None:
        problems.append(
            f"find_batch_size would replace batch_size={run.batch_size}; leave one of them out"
        )
    if run.memory is not None and run.activation_checkpointing != "none":
        problems.append(
            "memory would replace activation_checkpointing="
            f"{run.activation_checkpointing}; leave one of them out"
        )
    if run.size is not None and SIZES[run.size].keys() <= run.model_config.keys() & set(SHAPE):
        problems.append(f"size={run.size} has no effect: model_config has all of it; leave it out")
    return problems


def limits_without_effect(run: Any, steps: int | None) -> list[str]:
    """Limits that lie beyond the end of the run.

    Args:
        run: the run.
        steps: its optimizer steps at most; None: not known before its end.
    """
    found = []
    if None not in (run.warmup_steps, steps) and run.warmup_steps > steps:
        found.append(
            f"warmup_steps={run.warmup_steps} is longer than the run of {steps} steps, whose "
            "learning rate will never be lr"
        )
    validations = validations_of(run, steps)
    if run.val_path is None or validations is None:
        return found
    patience = run.early_stopping_patience
    if patience is not None and patience + 1 >= validations:  # the first is the best so far
        found.append(
            f"early_stopping_patience={patience} cannot end a run of {validations} validations "
            "early; lower it or val_interval"
        )
    if run.average_checkpoints is not None and run.average_checkpoints > validations:
        found.append(
            f"average_checkpoints={run.average_checkpoints} is the mean of {validations} only: "
            "there are no more validations; lower it or val_interval"
        )
    return found


def validations_of(run: Any, steps: int | None) -> int | None:
    """Validations in a run of so many optimizer steps at most; None: not known."""
    if run.val_interval is None:
        return VALIDATIONS if steps is None else min(VALIDATIONS, steps)
    return None if steps is None else -(-steps // run.val_interval)
