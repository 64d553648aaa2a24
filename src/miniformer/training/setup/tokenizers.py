"""Tokenizers of a run: trained on its texts, read from a file, or those of a resumed run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from miniformer import registry
from miniformer.config import UserError
from miniformer.config.resolved import ResolvedSetting
from miniformer.data.reading.records import Records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.data.tokenizers.training import SAMPLE_BYTES, TextSample
from miniformer.tasks.base import Task
from miniformer.train_config import TrainConfig
from miniformer.training.distributed.launcher import broadcast_from_rank0
from miniformer.training.setup.resolve import Resolution
from miniformer.training.setup.run_setup import load_run_tokenizer
from miniformer.training.tuning.tokenizer_defaults import (
    iter_texts,
    resolve_source_tokenizer,
    resolve_tokenizer,
    resolve_vocab_size,
)


def run_tokenizer(
    settings: Resolution, task: Task, records: Records | None, resume_dir: Path | None
) -> tuple[Tokenizer | None, str | None]:
    """Makes or loads the tokenizer of a run, and one line about it."""
    if resume_dir is not None:
        return load_run_tokenizer(resume_dir)
    # Rank 0 trains it: training is not deterministic for all kinds.
    tokenizer, summary, options = broadcast_from_rank0(
        lambda: make_tokenizer(settings.config, task, records)
    )
    if tokenizer is not None and settings.config.tokenizer is None:
        settings.resolved.append(ResolvedSetting("tokenizer", "bpe", "default"))
    for option in options:  # the vocabulary size is a field of the tokenizer, not of the config
        if option.name == "source_tokenizer":
            settings.apply([option])
        else:
            settings.resolved.append(option)
    return tokenizer, summary


def make_tokenizer(
    config: TrainConfig, task: Task, records: Records | None
) -> tuple[Tokenizer | None, str | None, list[ResolvedSetting]]:
    """Makes the tokenizer of a run, one line about it, and the settings that follow from the data.

    Args:
        config: the run.
        task: the task, fitted to its training data; without a tokenizer if it reads no text.
        records: the training data; None: streaming.

    Raises:
        UserError: a tokenizer is unknown, missing, or cannot be trained on these records.
    """
    # A task that makes sources and targets of other fields has no separate text fields.
    fields = task.text_fields
    has_sources = fields is not None and all(field in task.schema for field in fields)
    if config.source_tokenizer is not None and not has_sources:
        raise UserError(
            "source_tokenizer is for tasks with sources and targets that are texts, such as "
            f"seq2seq; task={config.task} has none here; leave it out"
        )
    if not task.reads_text():
        if config.tokenizer is not None:
            raise UserError(
                f"tokenizer has no effect: task={config.task} reads no text here, but vectors; "
                "leave it out"
            )
        return None, None, []
    resolved: list[ResolvedSetting] = []
    source_name = config.source_tokenizer
    if source_name is None and has_sources:
        setting = resolve_source_tokenizer(config, config, task, records)
        if setting is not None:
            source_name = setting.value
            resolved.append(setting)

    def build(name: str, part: int | None = None) -> tuple[Tokenizer, str]:
        """Builds the tokenizer of sources (part 0), of targets (1) or of both (None)."""
        prefix = "source_" if part == 0 else ""
        if name not in registry.names("tokenizer"):
            return _read_tokenizer(f"{prefix}tokenizer", name)
        if records is None and name != "byte":
            raise UserError(
                "no tokenizer can be trained with streaming, which reads the data once; set "
                f"{prefix}tokenizer to byte, or to a tokenizer.json"
            )
        sample = TextSample(() if records is None else _Texts(task, records, part))
        vocab_size = config.model_config.get(f"{prefix}vocab_size")
        if vocab_size is None and (setting := resolve_vocab_size(task, name, sample)):
            vocab_size = setting.value
            resolved.append(setting)
        special = task.special_tokens()
        size = vocab_size and vocab_size - len(special)
        tokenizer = Tokenizer.train(name, sample, size)
        tokenizer.add_special_tokens(special)
        extent = f"the first {SAMPLE_BYTES / 1e6:.0f} MB of " if sample.truncated else ""
        source = "" if records is None else f", trained on {extent}{records.name}"
        return tokenizer, f"{name}, {tokenizer.vocab_size:,} ids{source}"

    name = config.tokenizer or "bpe"
    if source_name is None and (setting := resolve_tokenizer(config, config, task, records)):
        name = setting.value
        resolved.append(setting)
    if source_name is None:
        return *build(name), resolved
    source_tokenizer, source_line = build(source_name, 0)
    tokenizer, line = build(name, 1)
    tokenizer.separate_source_tokenizer = source_tokenizer
    return tokenizer, f"of targets {line}; of sources {source_line}", resolved


class _Texts:
    """Re-iterable `iter_texts`."""

    def __init__(self, task: Task, records: Records, part: int | None) -> None:
        self.arguments = (task, records, part)

    def __iter__(self) -> Iterator[str]:
        return iter_texts(*self.arguments)


def _read_tokenizer(option: str, path: str) -> tuple[Tokenizer, str]:
    """Reads a tokenizer file and returns one line about it."""
    if not Path(path).exists() and not path.endswith(".json"):
        message = registry.unknown_name_message(option, path, registry.names("tokenizer"))
        raise UserError(f"{message}; or set a tokenizer.json, or a directory with one")
    tokenizer = Tokenizer.from_path(path)
    note = "" if tokenizer.warning is None else f"; {tokenizer.warning}"
    return tokenizer, f"{tokenizer.vocab_size:,} ids, from {path}{note}"
