"""Settings that the training data determines if they are not given.

| setting                        | value                                                          |
|--------------------------------|----------------------------------------------------------------|
| batch_size                     | a thousandth of the tokens, for losses per token; else 16      |
| model_size                     | a preset for the number of tokens                              |
| lr                             | the optimizer's default; a tenth of it for pretrained weights  |
| task_config.prepend_bos        | false for plain text, which prompts continue                   |
| task_config.shared_token_types | true for pairs of texts, except in masked LM                   |
| task_config.target_delta_of    | a feature whose next number is the value, on held-out records  |

Only `miniformer.training.setup` calls these functions: tasks, data modules and models take the
values as options and have fixed defaults. The options of `task_config` above may be "auto", too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from miniformer.config.resolved import ResolvedSetting, given_task_options
from miniformer.config.size_presets import SHAPE_FIELDS, SIZE_PRESETS
from miniformer.config.train_settings import ModelSettings
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.reading.records import Records
from miniformer.tasks.base import Task
from miniformer.tasks.common.sequence_input import InputTask
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.masked_lm import MaskedLM
from miniformer.tasks.regression import Regression
from miniformer.training.optim.optimizers import default_lr
from miniformer.training.tuning.series import detect_series_feature

DEFAULT_BATCH_SIZE = 16  # windows or examples
# A batch has a thousandth of the tokens of the dataset, within these limits, if the loss is per
# token. Small datasets need small batches, which on a CPU cost little more: see ADR 0019.
_MIN_BATCH_TOKENS, _MAX_BATCH_TOKENS = 2_048, 16_384
_MAX_BATCH_SIZE = 256  # limits the cost of operations per example
_MIN_BATCHES_PER_EPOCH = 100  # for small datasets of short examples
_MAX_TOKENS = {"tiny": 200_000, "small": 800_000, "medium": 5_000_000}  # of a model size


def resolve_lr(optimizer: str, *, from_scratch: bool) -> ResolvedSetting:
    """Learning rate: the optimizer's default, or a tenth of it for pretrained weights.

    Raises:
        UserError: the optimizer has no default.
    """
    lr = default_lr(optimizer)
    if from_scratch:
        return ResolvedSetting("lr", lr, f"default of {optimizer}")
    return ResolvedSetting(
        "lr", lr / 10, f"a tenth of the default of {optimizer}, for pretrained weights"
    )


def resolve_batch_size(
    data: MiniFormerDataModule, batch_tokens: int | None, num_devices: int
) -> list[ResolvedSetting]:
    """Batch size, or `batch_tokens` for data that is not in memory, of losses per token.

    Args:
        data: the datamodule, set up.
        batch_tokens: that of the user.
        num_devices: devices that share a batch.
    """
    if not data.task.per_token_loss or batch_tokens is not None:
        return []
    suffix = "" if num_devices == 1 else " on each device"
    tokens, row_tokens = data.num_tokens("train"), data.row_tokens("train")
    if not tokens or row_tokens is None:
        value = _MAX_BATCH_TOKENS // num_devices
        return [ResolvedSetting("batch_tokens", value, f"for data that is not in memory{suffix}")]
    size = default_batch_size(tokens, row_tokens, num_devices)
    reason = f"{size * row_tokens:,.0f} tokens{suffix}, for {tokens:,} training tokens"
    return [ResolvedSetting("batch_size", size, reason)]


def default_batch_size(total_tokens: int, row_tokens: float, num_devices: int = 1) -> int:
    """Default windows or examples of a batch on each device, for losses per token.

    Args:
        total_tokens: tokens of the training data.
        row_tokens: tokens of a window, or of an average example.
        num_devices: devices that share a batch.
    """
    batch_tokens = min(max(total_tokens / 1_000, _MIN_BATCH_TOKENS), _MAX_BATCH_TOKENS)
    limit = max(DEFAULT_BATCH_SIZE, round(total_tokens / row_tokens / _MIN_BATCHES_PER_EPOCH))
    return max(1, min(_MAX_BATCH_SIZE, limit, round(batch_tokens / row_tokens)) // num_devices)


def resolve_model_size(config: ModelSettings, data: MiniFormerDataModule) -> ResolvedSetting | None:
    """Model size for the number of training tokens; None: the settings determine the shape."""
    has_shape = any(name in config.model_config for name in SHAPE_FIELDS)
    if config.init_from is not None or config.model_size is not None or has_shape:
        return None
    tokens = data.num_tokens("train") or None
    size = size_for_tokens(tokens)
    amount = "data that is not in memory" if tokens is None else f"{tokens:,} training tokens"
    width, layers = (SIZE_PRESETS[size][name] for name in ("d_model", "n_layers"))
    return ResolvedSetting("model_size", size, f"{layers} layers, d_model {width}, for {amount}")


def size_for_tokens(num_tokens: int | None) -> str:
    """Preset for a number of training tokens or vectors; None: not counted, since too many.

    A narrow model learns small data in a tenth of the time and about as well (ADR 0017). Above
    about 5M tokens, the compute budget decides.
    """
    if num_tokens is None:
        return "base"
    return next((size for size, limit in _MAX_TOKENS.items() if num_tokens < limit), "base")


def resolve_task_options(
    task: Task, task_config: Mapping[str, Any], records: Records | None
) -> tuple[Task, list[ResolvedSetting]]:
    """Sets the options of a task that follow from its training data.

    Args:
        task: the task, fitted to the data.
        task_config: options of the user.
        records: the training data; None: streaming.
    """
    given = given_task_options(task_config)
    if isinstance(task, InputTask):
        return _resolve_input_options(task, given, records)
    if not isinstance(task, LanguageModeling) or "prepend_bos" in given or records is None:
        return task, []
    reason = "prompts continue plain text" if records.is_plain_text else "prompts begin a record"
    value = not records.is_plain_text
    resolved = [ResolvedSetting("task_config.prepend_bos", value, reason)]
    return dataclasses.replace(task, prepend_bos=value), resolved


def _resolve_input_options(
    task: InputTask, given: Mapping[str, Any], records: Records | None
) -> tuple[Task, list[ResolvedSetting]]:
    resolved: list[ResolvedSetting] = []

    def resolve(name: str, value: Any, reason: str) -> None:
        nonlocal task
        resolved.append(ResolvedSetting(f"task_config.{name}", value, reason))
        task = dataclasses.replace(task, **{name: value})

    if task.input_kind == "pair" and "shared_token_types" not in given:
        masked = isinstance(task, MaskedLM)
        reason = "marks would reveal masked tokens" if masked else "inputs are pairs of texts"
        resolve("shared_token_types", not masked, reason)
    if (
        isinstance(task, Regression)
        and task.input_kind == "features"
        and task.num_values is None
        and records is not None
        and "target_delta_of" not in given
    ):
        # A mean or standard deviation of the user is that of plain values.
        is_plain = "target_mean" in given or "target_std" in given
        feature = None if is_plain else detect_series_feature(records.with_schema(task.schema))
        if feature is None:
            resolve("target_delta_of", "none", "the value is no feature's next number")
        else:
            resolve(
                "target_delta_of", feature, "held-out records confirm: the value is its next number"
            )
            task = dataclasses.replace(task, target_mean=None, target_std=None).fit(records)
    return task, resolved
