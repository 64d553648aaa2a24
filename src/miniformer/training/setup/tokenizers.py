"""The tokenizers of a run: trained on its text, read from a file, or those it began with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from miniformer import registry
from miniformer.config import UserError
from miniformer.data.reading.records import Record, Records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.data.tokenizers.training import SAMPLE_BYTES, TextSample
from miniformer.tasks.base import Task
from miniformer.train_config import TrainConfig
from miniformer.training.tuning.data_defaults import default_vocab_size

# Subwords down to single bytes: fewer ids only make for shorter pieces.
_BYTE_FALLBACK_KINDS = ("bpe", "unigram")
_MAX_SAMPLED_TEXTS, _MAX_WORD_CHARS = 1_000, 32  # texts, characters


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
    fields = task.text_fields or ()
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
        None if records is None else _RecordTexts(records, partial(_nth_text, task, number))
        for number in range(len(fields))
    ]
    of_source = config.source_tokenizer
    if (
        of_source is None
        and fields
        and _allows_char_source_tokenizer(config, task)
        and _maps_words_to_texts(*sides)
    ):
        of_source = "char"
    name = config.tokenizer or "bpe"
    if of_source is None:
        texts = None if records is None else _RecordTexts(records, task.texts)
        return _build_tokenizer("tokenizer", name, "vocab_size", config, task, texts)
    sources, targets = sides
    source, line = _build_tokenizer(
        "source_tokenizer", of_source, "source_vocab_size", config, task, sources
    )
    tokenizer, other = _build_tokenizer("tokenizer", name, "vocab_size", config, task, targets)
    tokenizer.separate_source_tokenizer = source
    return tokenizer, f"of targets {other}; of sources {line}"


def mostly_single_words(texts: Iterable[str]) -> bool:
    """Whether most of the first texts are a word each, as names are."""
    some = words = 0
    for text in islice(filter(str.strip, texts), _MAX_SAMPLED_TEXTS):
        some += 1
        words += len(text) <= _MAX_WORD_CHARS and len(text.split()) == 1
    return words > 0.9 * some


def _allows_char_source_tokenizer(config: TrainConfig, task: Task) -> bool:
    """Whether nothing that is said of tokenizers speaks against one of letters for the sources."""
    return (
        config.tokenizer is None
        and config.init_from is None
        and "source_vocab_size" not in config.model_config
        and not getattr(task, "bpe_dropout", 0)
    )


def _maps_words_to_texts(sources: _RecordTexts | None, targets: _RecordTexts | None) -> bool:
    """Whether sources are single words, and targets are not: words and how they sound."""
    if sources is None or targets is None:  # streamed
        return False
    return mostly_single_words(sources) and not mostly_single_words(targets)


class _RecordTexts:
    """The texts of records, as often as they are asked for.

    Args:
        records: all of them.
        of_record: the texts of one.
    """

    def __init__(self, records: Records, extract_texts: Callable[[Record], Iterable[str]]) -> None:
        self.records, self.extract_texts = records, extract_texts

    def __iter__(self) -> Iterator[str]:
        return (text for each in self.records for text in self.extract_texts(each))


def _nth_text(task: Task, index: int, record: Record) -> Iterable[str]:
    """One of a record's texts, as its task has them: the source or the target."""
    return islice(task.texts(record), index, index + 1)


def _build_tokenizer(
    option: str,
    name: str,
    vocab_size_field: str,
    config: TrainConfig,
    task: Task,
    texts: _RecordTexts | None,
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
        ids, sample = config.model_config.get(vocab_size_field), TextSample(texts or ())
        whole = task.per_token_loss and task.text_fields is None  # running text, not pairs
        if ids is None and whole and name in _BYTE_FALLBACK_KINDS:
            found = default_vocab_size(sum(len(text.encode()) for text in sample))
            ids = None if sample.truncated else found
        tokenizer = Tokenizer.train(name, sample, ids)
        part = f"the first {SAMPLE_BYTES / 1e6:.0f} MB of " if sample.truncated else ""
        on = "" if texts is None else f", trained on {part}{texts.records.name}"
        return tokenizer, f"{name}, {tokenizer.vocab_size:,} ids{on}"
    if not Path(name).exists() and not name.endswith(".json"):
        known = registry.unknown_name_message(option, name, registry.names("tokenizer"))
        raise UserError(f"{known}; or name a tokenizer.json, or a directory with one")
    tokenizer = Tokenizer.from_path(name)
    note = "" if tokenizer.warning is None else f"; {tokenizer.warning}"
    return tokenizer, f"{tokenizer.vocab_size:,} ids, from {name}{note}"


def load_run_tokenizer(run_dir: Path) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer that a run began with, and a line about it."""
    if not (run_dir / "tokenizer.json").is_file():
        return None, None
    tokenizer = Tokenizer.from_path(run_dir)
    if (run_dir / "source_tokenizer").is_dir():
        tokenizer.separate_source_tokenizer = Tokenizer.from_path(run_dir / "source_tokenizer")
    return tokenizer, f"{tokenizer.vocab_size:,} ids, of the run that goes on"
