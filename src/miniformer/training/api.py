"""`miniformer.train`: trains from keyword arguments, and on records in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from rich.console import Console

from miniformer.config import ConfigError, StrictConfig, UserError
from miniformer.config.train_settings import IN_MEMORY
from miniformer.train_config import TrainConfig
from miniformer.training.evaluate import RunResult
from miniformer.training.isolation import isolated_run
from miniformer.training.resume.config import AUTO, resume_config
from miniformer.training.run import train as train_config
from miniformer.training.setup.builders import CallbackOrFactory
from miniformer.utils.sources import has_weights

if TYPE_CHECKING:
    from miniformer.checkpoint.pipeline import Pipeline
    from miniformer.training.cross_validation import CrossValidationResult
    from miniformer.training.in_memory import InMemoryResult
    from miniformer.training.resume.optimizer_state import OptimizerState


@overload
def train(
    data: Any = None, *, folds: int, fold: None = None, **options: Any
) -> CrossValidationResult: ...
@overload
def train(data: Any = None, *, in_memory: Literal[True], **options: Any) -> InMemoryResult: ...
@overload
def train(data: Any = None, *, in_memory: Literal[False] = False, **options: Any) -> RunResult: ...
def train(
    data: Any = None,
    *,
    val: Any = None,
    test: Any = None,
    console: Console | None = None,
    quiet: bool = False,
    callbacks: Sequence[CallbackOrFactory | str | dict[str, Any]] = (),
    in_memory: bool = False,
    start: Pipeline | InMemoryResult | None = None,
    optimizer_state: OptimizerState | None = None,
    **settings: Any,
) -> RunResult | InMemoryResult | CrossValidationResult:
    """Trains a model: `train("train.csv", val="val.csv", task="classification", max_epochs=3)`.

    Data is a path, a glob, a list of paths, or records in memory: a list of dicts, a frame, or a
    Hugging Face `Dataset`. A run on records in memory resumes with the same records.

    Args:
        data: training data; or a `TrainConfig`, which then holds all settings.
        val: validation data.
        test: test data, evaluated with the best model at the end.
        console: output for progress messages; None: standard output.
        quiet: print nothing.
        callbacks: additional Lightning callbacks; see `miniformer.training.run.train`. Names and
            objects with options are those of `TrainConfig.callbacks`.
        in_memory: train without a run folder; see `miniformer.training.in_memory`. Nothing is
            printed unless `console` is given, and no data is set aside for validation.
        start: in memory: the pipeline, or an earlier result, whose weights to start from.
        optimizer_state: in memory: state of the optimizer to start from; None: that of `start`.
        **settings: fields of `TrainConfig`, such as `task`, `max_epochs`, `lr` or `model_config`.

    Returns:
        The metrics, the run folder, and the pipeline of the best model; in memory the pipeline, the
        metrics and the optimizer state; with `folds` the result of cross-validation.

    Raises:
        UserError: a setting, a path or a record is invalid; an unknown setting is named with the
            nearest one.
    """
    console = Console(quiet=True) if quiet else console
    options: dict[str, Any] = {"console": console, "callbacks": callbacks}
    if in_memory:
        options |= {"start": start, "optimizer_state": optimizer_state}
    elif start is not None or optimizer_state is not None:
        name = "optimizer_state" if start is None else "start"
        raise UserError(f"train: {name} needs in_memory=True; a run folder starts from init_from")
    if isinstance(data, TrainConfig):
        extra = [*settings, *(name for name, x in (("val", val), ("test", test)) if x is not None)]
        if extra:
            raise UserError(
                f"train takes a TrainConfig or settings as keywords, not both: set {extra[0]} in "
                "the TrainConfig"
            )
        return _run(data, in_memory, **options)
    records: dict[str, Any] = {}
    for argument, name, source in (
        ("the first argument", "train_path", data),
        ("val", "val_path", val),
        ("test", "test_path", test),
    ):
        if source is None:
            source = settings.pop(name, None)
        elif settings.get(name) is not None:
            raise UserError(f"train: {argument} and {name} are both given; leave one out")
        if source is not None:
            settings[name] = _as_path(source)
        if settings.get(name) == IN_MEMORY:
            records[name] = source
    if named := [item for item in callbacks if isinstance(item, str | dict)]:
        settings["callbacks"] = named
        options["callbacks"] = [item for item in callbacks if not isinstance(item, str | dict)]
    config = _make_config({name: _plain_value(value) for name, value in settings.items()})
    if config.streaming and "train_path" in records:
        raise UserError("streaming reads files, not records in memory; leave it out")
    return _run(config, in_memory, records=records, **options)


def _run(
    config: TrainConfig, in_memory: bool, **options: Any
) -> RunResult | InMemoryResult | CrossValidationResult:
    """Trains one model, in memory or in a run folder, or a model for each fold."""
    with isolated_run():
        if in_memory:
            from miniformer.training.in_memory import train_in_memory

            return train_in_memory(config, **options)
        if config.folds is not None and config.fold is None:
            from miniformer.training.cross_validation import cross_validate

            return cross_validate(config, **options)
        return train_config(config, **options)


def _as_path(source: Any) -> Any:
    """The path or paths of `TrainConfig`, or its mark of records in memory."""
    if has_weights(source):
        return [{**item, "path": _as_path(item["path"])} for item in source]
    items = source if isinstance(source, list | tuple) and len(source) else [source]
    if not all(isinstance(item, str | os.PathLike) for item in items):
        return IN_MEMORY
    paths = [os.fspath(item) for item in items]
    return paths if isinstance(source, list | tuple) else paths[0]


def _plain_value(value: Any) -> Any:
    """A setting as plain JSON: the given fields of a config such as `TransformerConfig`, a path."""
    if isinstance(value, StrictConfig):
        return value.given_fields()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _make_config(settings: dict[str, Any]) -> TrainConfig:
    """The config of a new run, or of the run to resume with its changes."""
    try:
        config = TrainConfig.from_dict(settings)
        if config.resume not in (None, AUTO):
            config = resume_config(Path(str(config.resume)), settings)
        return config
    except ConfigError as error:
        raise ConfigError("train", error.problems) from None
