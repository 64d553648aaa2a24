"""The tokenizers of a run: trained on its text, read from a file, or those it began with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
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
_LOOKED_AT, _LONGEST_WORD = 1_000, 32  # texts, characters


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
    # A task may make sources and targets of other fields; then it has texts, and no sides.
    fields = task.two_texts or ()
    fields = fields if all(field in task.schema for field in fields) else ()
    if config.source_tokenizer is not None and not fields:
        raise UserError(
            f"source_tokenizer is for tasks with sources and targets, such as seq2seq; "
            f"task={config.task} has none"
        )
    if not task.reads_text():
        if config.tokenizer is not None:
            raise UserError(
                f"tokenizer has no effect: task={config.task} reads no text here, but vectors; "
                "leave it out"
            )
        return None, None
    sides = [
        None if records is None else _Texts(records, partial(_nth_text, task, number))
        for number in range(len(fields))
    ]
    of_source = config.source_tokenizer
    if of_source is None and fields and _open(config, task) and _words_for_texts(*sides):
        of_source = "char"
    name = config.tokenizer or "bpe"
    if of_source is None:
        texts = None if records is None else _Texts(records, task.texts)
        return _make("tokenizer", name, "vocab_size", config, task, texts)
    sources, targets = sides
    source, line = _make("source_tokenizer", of_source, "source_vocab_size", config, task, sources)
    tokenizer, other = _make("tokenizer", name, "vocab_size", config, task, targets)
    tokenizer.source = source
    return tokenizer, f"of targets {other}; of sources {line}"


def single_words(texts: Iterable[str]) -> bool:
    """Whether most of the first texts are a word each, as names are."""
    some = words = 0
    for text in islice(filter(str.strip, texts), _LOOKED_AT):
        some += 1
        words += len(text) <= _LONGEST_WORD and len(text.split()) == 1
    return words > 0.9 * some


def _open(config: TrainConfig, task: Task) -> bool:
    """Whether nothing that is said of tokenizers speaks against one of letters for the sources."""
    return (
        config.tokenizer is None
        and config.init_from is None
        and "source_vocab_size" not in config.model_config
        and not getattr(task, "bpe_dropout", 0)
    )


def _words_for_texts(sources: _Texts | None, targets: _Texts | None) -> bool:
    """Whether sources are single words, and targets are not: words and how they sound."""
    if sources is None or targets is None:  # streamed
        return False
    return single_words(sources) and not single_words(targets)


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


def _nth_text(task: Task, number: int, record: Record) -> Iterable[str]:
    """One of a record's texts, as its task has them: the source or the target."""
    return islice(task.texts(record), number, number + 1)


def _make(
    option: str, name: str, size: str, config: TrainConfig, task: Task, texts: _Texts | None
) -> tuple[Tokenizer, str]:
    """A tokenizer, and a line about it.

    Args:
        option: the setting that names it.
        name: its kind, or where it is.
        size: the field of the model's config that says how many ids there are room for.
        config: the run.
        task: knows its training data.
        texts: to train on; None: they are streamed.
    """
    if name in registry.names("tokenizer"):
        if texts is None and name != "byte":
            raise UserError(
                "streaming reads its text once, so that no tokenizer can be trained on it; set "
                f"{option} to byte, or to a tokenizer.json"
            )
        ids, sample = config.model_config.get(size), TextSample(texts or ())
        whole = task.learns_each_token and task.two_texts is None  # running text, not pairs
        if ids is None and whole and name in _OF_BYTES:
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
