"""Settings of validation that the data determines if they are not given.

| setting                 | value                                                              |
|-------------------------|--------------------------------------------------------------------|
| val_check_interval      | one validation an epoch and ten a run, within an eighth of the time |
| early_stopping_patience | five validations, or three tenths of those so far; see `EarlyStopping` |
"""

from __future__ import annotations

import math

from miniformer.config.resolved import ResolvedSetting
from miniformer.config.train_settings import EvaluationSettings
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.training.callbacks.early_stopping import MIN_PATIENCE
from miniformer.training.callbacks.validation import MAX_TIME_SHARE, MIN_VALIDATIONS

_MIN_COSTLY_VALIDATIONS = 3  # however long they take
_TRAINING_PASSES = 3.0  # cost of a training step in forward passes
_DECODING_PASSES = 12.0  # cost of a generated token in forward passes of training


def resolve_validation(
    config: EvaluationSettings, data: MiniFormerDataModule, epochs: float | None
) -> tuple[int, list[ResolvedSetting]]:
    """Number of validations of a run, and the settings of validation.

    Args:
        config: settings of the run.
        data: the datamodule, set up.
        epochs: passes of the run over the training data; None: unknown.
    """
    if data.val_path is None:
        return 0, []
    settings = []
    count = default_num_validations(epochs, relative_validation_cost(data))
    if config.val_check_interval is None:
        per_epoch = epochs is None or count >= epochs
        reason = "at least one an epoch" if per_epoch else "to take at most an eighth of the time"
        value = "every epoch" if epochs is None else f"{count} validations"
        settings.append(ResolvedSetting("val_check_interval", value, reason))
    if config.early_stopping_patience is None:
        value = f"{MIN_PATIENCE} validations"
        reason = "or three tenths of those so far, if more"
        settings.append(ResolvedSetting("early_stopping_patience", value, reason))
    return count, settings


def default_num_validations(epochs: float | None, relative_cost: float) -> int:
    """Validations of a run: one an epoch, at least ten, within `MAX_TIME_SHARE` of the time.

    A run of a given number of epochs must be reproducible, so the time is estimated, not measured.

    Args:
        epochs: passes over the training data; None: unknown.
        relative_cost: time of a validation, as a fraction of that of a training epoch.
    """
    if epochs is None:
        return MIN_VALIDATIONS
    affordable = MAX_TIME_SHARE / (1 - MAX_TIME_SHARE) * epochs / max(relative_cost, 1e-9)
    count = min(max(MIN_VALIDATIONS, math.ceil(epochs)), affordable)
    return max(_MIN_COSTLY_VALIDATIONS, int(count))


def relative_validation_cost(data: MiniFormerDataModule) -> float:
    """Estimated time of a validation, as a fraction of that of a training epoch."""
    sizes = [data.num_tokens(split) for split in ("train", "val")]
    if None in sizes:  # not held in memory
        records = [getattr(data.chunks[split], "records", None) for split in ("train", "val")]
        sizes = [0 if split is None else split.n_bytes for split in records]
    train, val = (float(size or 0) for size in sizes)
    if not train:
        return 0.0
    num_records = len(getattr(data.chunks["val"], "records", ())) or 1
    generated = min(num_records, getattr(data.task, "eval_generate_samples", 0))
    forward_cost = val * (1 + _DECODING_PASSES * generated / num_records)
    return forward_cost / (_TRAINING_PASSES * train)
