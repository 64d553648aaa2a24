"""The tokenizers of a run: trained on its text, read from a file, or those it began with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from miniformer import registry
from miniformer.config import UserError
from miniformer.data.records import Record, Records
from miniformer.data.tokenizer import Tokenizer
from miniformer.data.tokenizer_training import SAMPLE_BYTES, TextSample
from miniformer.tasks.task import Task
from miniformer.train_config import TrainConfig
from miniformer.training.sizing import vocabulary_for

# Subwords down to single bytes: fewer ids only make for shorter pieces.
_OF_BYTES = ("bpe", "unigram")


def make_tokenizer(
    config: TrainConfig, task: Task, records: Records | None
) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer that the config names, and a line about it; None: the task reads no text.

    Args:
        config: the run.
        task: knows its training data.
        records: the training data; None: it is streamed.

    Raises:
        UserError: a tokenizer is unknown, is not there, or cannot be trained on these records.
    """
    if config.source_tokenizer is not None and task.two_texts is None:
        raise UserError(
            f"source_tokenizer is for tasks with sources and targets, such as seq2seq; "
            f"task={config.task} has none"
        )
    if not task.reads_text():
        return None, None
    if config.source_tokenizer is None:
        texts = None if records is None else _Texts(records, task.texts)
        return _make("tokenizer", config, "vocab_size", task, texts)
    assert task.two_texts is not None
    made = []
    for option, size, field in (
        ("source_tokenizer", "source_vocab_size", task.two_texts[0]),
        ("tokenizer", "vocab_size", task.two_texts[1]),
    ):
        texts = None if records is None else _Texts(records, partial(_of_field, field))
        made.append(_make(option, config, size, task, texts))
    (source, of_sources), (tokenizer, of_targets) = made
    tokenizer.source = source
    return tokenizer, f"of targets {of_targets}; of sources {of_sources}"


class _Texts:
    """The texts of records, as often as they are asked for.

    Args:
        records: all of them.
        of_record: the texts of one.
    """

    def __init__(self, records: Records, of_record: Callable[[Record], Iterable[str]]) -> None:
        self.records, self.of_record = records, of_record

    def __iter__(self) -> Iterator[str]:
        return (text for each in self.records for text in self.of_record(each))


def _of_field(field: str, record: Record) -> list[str]:
    return [record[field]]


def _make(
    option: str, config: TrainConfig, size: str, task: Task, texts: _Texts | None
) -> tuple[Tokenizer, str]:
    """The tokenizer that an option names, and a line about it.

    Args:
        option: the name of a field of `config`.
        config: the run.
        size: the field of the model's config that says how many ids there are room for.
        task: knows its training data.
        texts: to train on; None: they are streamed.
    """
    name = getattr(config, option)
    if name in registry.names("tokenizer"):
        if texts is None and name != "byte":
            raise UserError(
                "streaming reads its text once, so that no tokenizer can be trained on it; set "
                f"{option} to byte, or to a tokenizer.json"
            )
        ids, sample = config.model_config.get(size), TextSample(texts or ())
        if ids is None and task.learns_each_token and name in _OF_BYTES:
            found = vocabulary_for(sum(len(text.encode()) for text in sample))
            ids = None if sample.cut else found
        tokenizer = Tokenizer.train(name, sample, ids)
        part = f"the first {SAMPLE_BYTES / 1e6:.0f} MB of " if sample.cut else ""
        on = "" if texts is None else f", trained on {part}{texts.records.name}"
        return tokenizer, f"{name}, {tokenizer.vocab_size:,} ids{on}"
    if not Path(name).exists() and not name.endswith(".json"):
        known = registry.unknown(option, name, registry.names("tokenizer"))
        raise UserError(f"{known}; or name a tokenizer.json, or a directory with one")
    tokenizer = Tokenizer.from_path(name)
    note = "" if tokenizer.note is None else f"; {tokenizer.note}"
    return tokenizer, f"{tokenizer.vocab_size:,} ids, from {name}{note}"


def tokenizer_of(run: Path) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer that a run began with, and a line about it."""
    if not (run / "tokenizer.json").is_file():
        return None, None
    tokenizer = Tokenizer.from_path(run)
    if (run / "source_tokenizer").is_dir():
        tokenizer.source = Tokenizer.from_path(run / "source_tokenizer")
    return tokenizer, f"{tokenizer.vocab_size:,} ids, of the run that goes on"
