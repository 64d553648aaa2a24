"""Settings that are worth a trial, for each kind of data.

| data                                | quick                      | full, in addition            |
|-------------------------------------|----------------------------|------------------------------|
| sources and targets                 | tokenizer                  | model_size                   |
| texts with one output each          | tokenizer                  | pooling, dropout             |
| texts with a wide head              | tokenizer                  |                              |
| vectors without a wide head         | pooling                    | model_size, dropout          |
| other texts                         |                            | model_size                   |

Settings that are given are never tried. A short run of a Transformer adds nothing to a wide head,
so trials with one evaluate the wide head alone, without a training step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from miniformer.config.size_presets import SHAPE_FIELDS, SIZE_PRESETS
from miniformer.tasks.base import Task
from miniformer.tasks.common.sequence_input import InputTask
from miniformer.train_config import TrainConfig
from miniformer.training.setup.run_setup import RunSetup

TIME_SHARES = {"quick": 0.15, "full": 0.5}  # of the time of a run
_TOKENIZERS = ("bpe", "char", "word")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Values of settings, by name; those of a config in a config have a dot.

    Args:
        settings: such as {"tokenizer": "char"} or {"model_config.pooling": "max"}; empty: the
            defaults.
        default: the value of the main setting with the defaults, for messages.
    """

    settings: dict[str, Any]
    default: str = ""

    def __str__(self) -> str:
        if not self.settings:
            return f"{self.default} (default)"
        return ", ".join(f"{name} {value}" for name, value in self.settings.items())

    def apply(self, config: TrainConfig) -> TrainConfig:
        """The config with these settings."""
        for name, value in self.settings.items():
            field, _, key = name.partition(".")
            if key:
                value = {**getattr(config, field), key: value}
            config = dataclasses.replace(config, **{field: value})
        return config


def candidate_groups(run: RunSetup, config: TrainConfig, mode: str) -> list[list[Candidate]]:
    """Groups of candidates in the order of their trials, the defaults first in each group.

    Args:
        run: the run with its defaults.
        config: the run, as given.
        mode: quick or full.
    """
    quick, full = _settings_of(run)
    names = quick if mode == "quick" else (*quick, *full)
    groups = [_GROUPS[name](run, config) for name in names]
    return [group for group in groups if len(group) > 1]


def unsupported_reason(config: TrainConfig) -> str | None:
    """The setting that excludes trials; None: trials are possible."""
    excluded = {
        "streaming": config.streaming, "init_from": config.init_from is not None,
        "pretrain": config.pretrain is not None, "several devices": config.world_size > 1,
        "memory_limit": config.memory_limit is not None,
        "find_batch_size": config.find_batch_size,
    }  # fmt: skip
    return next((name for name, value in excluded.items() if value), None)


def describe(run: RunSetup, config: TrainConfig) -> str:
    """A line about the trials that a run would begin with."""
    mode = config.auto or "off"
    if (reason := unsupported_reason(config)) is not None:
        return f"auto={mode}: no trials with {reason}"
    names = [str(x) for group in candidate_groups(run, config, mode) for x in group[1:]]
    if not names:
        return f"auto={mode}: nothing to try: the settings are given, or have no alternatives"
    share = f"at most {TIME_SHARES[mode]:.0%} of the time"
    return f"auto={mode}: would try {'; '.join(names)}, in {share}"


def _settings_of(run: RunSetup) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the settings to try: quick, and full in addition."""
    task: Task = run.task
    if run.model_config.wide_head is not None:  # a short run adds nothing to it
        return ("tokenizer",) if task.reads_text() else (), ()
    if not task.reads_text():
        return ("pooling",), ("model_size", "dropout")
    if task.text_fields is not None and all(field in task.schema for field in task.text_fields):
        return ("tokenizer",), ("model_size",)
    if isinstance(task, InputTask) and not task.per_token_loss:
        return ("tokenizer",), ("pooling", "dropout")
    return (), ("model_size",)


def _tokenizers(run: RunSetup, config: TrainConfig) -> list[Candidate]:
    """Kinds of tokenizers; sources of seq2seq keep a tokenizer of their own."""
    given = config.tokenizer is not None or config.source_tokenizer is not None
    has_sizes = config.model_config.keys() & {"vocab_size", "source_vocab_size"}
    if given or has_sizes or getattr(run.task, "bpe_dropout", 0.0) > 0:
        return []
    default, source = resolved_value(run, "tokenizer"), resolved_value(run, "source_tokenizer")
    others = {} if source is None else {"source_tokenizer": source}
    return [
        Candidate({}, f"tokenizer {default}"),
        *(Candidate({"tokenizer": x, **others}) for x in _TOKENIZERS if x != default),
    ]


def _poolings(run: RunSetup, config: TrainConfig) -> list[Candidate]:
    return _model_fields(run, config, "pooling", {"mean": ["mean+max"], "last": ["mean+max"]})


def _dropouts(run: RunSetup, config: TrainConfig) -> list[Candidate]:
    return _model_fields(run, config, "dropout", {0.0: [0.1], 0.1: [0.3]})


def _model_fields(
    run: RunSetup, config: TrainConfig, name: str, alternatives: dict[Any, list[Any]]
) -> list[Candidate]:
    """The alternatives of a field of the model to its default."""
    if name in config.model_config:
        return []
    default = getattr(run.model_config, name)
    others = [Candidate({f"model_config.{name}": x}) for x in alternatives.get(default, [])]
    return [Candidate({}, f"model_config.{name} {default}"), *others]


def _model_sizes(run: RunSetup, config: TrainConfig) -> list[Candidate]:
    """The sizes next to the default."""
    has_shape = config.model_size is not None or config.model_config.keys() & set(SHAPE_FIELDS)
    default = resolved_value(run, "model_size")
    if has_shape or default not in SIZE_PRESETS:
        return []
    names = list(SIZE_PRESETS)
    index = names.index(default)
    near = names[max(0, index - 1) : index] + names[index + 1 : index + 2]
    return [Candidate({}, f"model_size {default}"), *(Candidate({"model_size": x}) for x in near)]


_GROUPS: dict[str, Callable[[RunSetup, TrainConfig], list[Candidate]]] = {
    "tokenizer": _tokenizers,
    "pooling": _poolings,
    "dropout": _dropouts,
    "model_size": _model_sizes,
}


def resolved_value(run: RunSetup, name: str) -> Any:
    """The value of a setting that the run has resolved; None: there is none."""
    values = [setting.value for setting in run.resolved if setting.name == name]
    return values[-1] if values else None
