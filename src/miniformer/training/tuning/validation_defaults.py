"""Settings of validation that the data determines if they are not given.

| setting                 | value                                                              |
|-------------------------|--------------------------------------------------------------------|
| val_share               | a tenth of the data, within limits; see `hold_out_validation`      |
| val_check_interval      | ten a run, or one an epoch if more, within a seventh of the time   |
| checkpoint_metric       | the metric that people read; see `resolve_checkpoint_metric`       |
| early_stopping_patience | five validations, or three tenths of those so far; see `EarlyStopping` |
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from itertools import islice
from pathlib import Path

from miniformer import registry
from miniformer.config import UserError
from miniformer.config.resolved import ResolvedSetting
from miniformer.config.train_settings import EvaluationSettings
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.folds import split_fold
from miniformer.data.holdout import default_val_share, hold_out
from miniformer.data.reading.records import Records
from miniformer.tasks.base import Task
from miniformer.tasks.common.text_metrics import has_sacrebleu
from miniformer.training.callbacks.early_stopping import MIN_PATIENCE
from miniformer.training.callbacks.validation import MAX_TIME_SHARE, MIN_VALIDATIONS
from miniformer.training.resume.config import check_same_data
from miniformer.training.setup.resolve import Resolution

_MIN_COSTLY_VALIDATIONS = 3  # however long they take
_TRAINING_PASSES = 3.0  # cost of a training step in forward passes
_DECODING_PASSES = 12.0  # cost of a generated token in forward passes of training

_MIN_BALANCE = 0.75  # entropy of classes, relative to equal ones, for accuracy; of two: 3.7 to 1
_MAX_SAMPLED_TARGETS = 2_000
_SHORT_TARGET_WORDS, _SHORT_TARGET_CHARS = 3, 30  # medians
_MAX_FORMAL_VARIETY = 0.05  # distinct words per word of commands, phonemes, queries
_MAX_WORD_CHARS = 12  # mean; longer "words" are text without spaces


def hold_out_validation(
    settings: Resolution, records: Records, checkpoint: Path | None
) -> tuple[Records, Records | None, list[ResolvedSetting]]:
    """The training records, those that are set aside for validation, and the `val_share`."""
    config = settings.config
    if config.folds is not None and config.fold is not None:
        return *split_fold(records, config.folds, config.fold, config.seed), []
    if config.val_path is not None or config.val_share == 0:
        return records, None, []
    share = config.val_share or default_val_share(records)
    try:
        parts = hold_out(records, share)
    except UserError as error:
        if checkpoint is not None:  # the data of the run could be divided
            check_same_data(records, checkpoint)
        if config.val_share is not None:
            raise UserError(f"val_share={share}: {error}; leave it out, or set 0") from None
        return records, None, [ResolvedSetting("val_share", 0.0, str(error))]
    if config.val_share is not None:
        return *parts, []
    reason = "no val_path: a part of train_path is set aside"
    return *parts, [ResolvedSetting("val_share", share, reason)]


def check_metric(settings: Resolution, task: Task) -> None:
    """Checks the given metric of the best model.

    Raises:
        UserError: the task does not have it, or it needs a package.
    """
    if (given := settings.config.checkpoint_metric) is not None:
        metric = given.removeprefix("val_")
        if metric not in task.metrics:
            names = list(task.metrics)
            raise UserError(registry.unknown_name_message("checkpoint_metric", metric, names))
        list(task.pre_run_warnings(metric))


def resolve_metric(settings: Resolution, task: Task, records: Records | None) -> str:
    """Metric of the best model, without the prefix `val_`."""
    if settings.config.checkpoint_metric is not None:
        return settings.config.checkpoint_metric.removeprefix("val_")
    setting = resolve_checkpoint_metric(task, records)
    settings.resolved.append(setting)
    return str(setting.value)


def resolve_checkpoint_metric(task: Task, records: Records | None) -> ResolvedSetting:
    """Metric that selects the best model: the one that people read of such data.

    | task           | metric                                                                   |
    |----------------|--------------------------------------------------------------------------|
    | classification | accuracy; macro_f1 if classes are very unequal                           |
    | seq2seq        | exact_match of short targets and of formal ones, with few distinct words; |
    |                | else bleu, or chrf of text without spaces                                |
    | regression     | rmse; r2 of several values; pearson for pairs of texts                   |
    | others         | the first metric of the task                                             |

    Args:
        task: the task, fitted to the data.
        records: the training data; None: not known.
    """
    metric, reason = task.metrics[0], f"default of {task.name}"
    if task.name == "classification" and records is not None:
        balance = class_balance(records)
        if balance < _MIN_BALANCE:
            metric, reason = "macro_f1", "classes are very unequal"
    elif getattr(task, "num_values", None) is not None:
        metric, reason = "r2", "values are several numbers, of different units"
    elif getattr(task, "input_kind", None) == "pair" and "pearson" in task.metrics:
        metric, reason = "pearson", "inputs are pairs of texts"
    elif getattr(task, "eval_generate_samples", 0) and records is not None:
        metric, reason = _generation_metric(task, records)
    return ResolvedSetting("checkpoint_metric", metric, reason)


def class_balance(records: Records) -> float:
    """Entropy of the labels, relative to that of equally frequent ones, in [0, 1]."""
    counts = Counter(record["label"] for record in records)
    total = sum(counts.values())
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    return entropy / math.log(len(counts)) if len(counts) > 1 else 1.0


def _generation_metric(task: Task, records: Records) -> tuple[str, str]:
    """Metric of generated targets, and the reason."""
    sample = islice(records, _MAX_SAMPLED_TARGETS)
    first = 0 if getattr(task, "source_kind", None) == "features" else 1  # vectors are no text
    targets = [text for record in sample for text in islice(task.texts(record), first, first + 1)]
    tokens = [token for text in targets for token in text.split()]
    if not tokens or not {"exact_match", "bleu", "chrf"} <= set(task.metrics):
        return task.metrics[0], f"default of {task.name}"
    median_words = statistics.median(len(text.split()) for text in targets)
    median_chars = statistics.median(map(len, targets))
    if median_words <= _SHORT_TARGET_WORDS and median_chars <= _SHORT_TARGET_CHARS:
        return "exact_match", "targets are short"
    if len(set(tokens)) < _MAX_FORMAL_VARIETY * len(tokens):
        return "exact_match", f"targets have {len(set(tokens)):,} distinct words only"
    if not has_sacrebleu():
        return "loss", 'BLEU and chrF need pip install "miniformer[eval]"'
    if statistics.mean(map(len, tokens)) > _MAX_WORD_CHARS:
        return "chrf", "targets are texts without spaces"
    return "bleu", "targets are texts"


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
    count, reason = default_num_validations(epochs, relative_validation_cost(data))
    if config.val_check_interval is None:
        value = f"{count} validations"
        if epochs is None and not data.streaming:
            value += ", and one after each epoch"
            reason = "the time decides how many epochs there are"
        settings.append(ResolvedSetting("val_check_interval", value, reason))
    if config.early_stopping_patience is None:
        value = f"{MIN_PATIENCE} validations"
        reason = "or three tenths of those so far, if more"
        settings.append(ResolvedSetting("early_stopping_patience", value, reason))
    return count, settings


def default_num_validations(epochs: float | None, relative_cost: float) -> tuple[int, str]:
    """Validations of a run: ten, or one an epoch if more, within `MAX_TIME_SHARE` of the time.

    A run of a given number of epochs must be reproducible, so the time is estimated, not measured.

    Args:
        epochs: passes over the training data; None: unknown.
        relative_cost: time of a validation, as a fraction of that of a training epoch.

    Returns:
        The number, and the reason.
    """
    if epochs is None:
        return MIN_VALIDATIONS, "default"
    affordable = MAX_TIME_SHARE / (1 - MAX_TIME_SHARE) * epochs / max(relative_cost, 1e-9)
    if affordable < _MIN_COSTLY_VALIDATIONS:
        return _MIN_COSTLY_VALIDATIONS, "the fewest, as they take more than a seventh of the time"
    regular = max(MIN_VALIDATIONS, math.ceil(epochs))
    if affordable < regular:
        return int(affordable), "to take at most a seventh of the time"
    return regular, "one an epoch" if regular > MIN_VALIDATIONS else "default"


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
