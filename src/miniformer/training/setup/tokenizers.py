"""Tokenizers of a run: trained on its texts, read from a file, or those of a resumed run."""

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

# Kinds that fall back to bytes: a smaller vocabulary only makes texts longer.
_BYTE_FALLBACK_KINDS = ("bpe", "unigram")
_MAX_SAMPLED_TEXTS, _MAX_WORD_CHARS = 1_000, 32  # texts, characters


def make_tokenizer(
    config: TrainConfig, task: Task, records: Records | None
) -> tuple[Tokenizer | None, str | None]:
    """Makes the tokenizer of a run and one line about it; None: the task reads no text.

    Args:
        config: the run.
        task: the task, fitted to its training data.
        records: the training data; None: streaming.

    Raises:
        UserError: a tokenizer is unknown, missing, or cannot be trained on these records.
    """
    # A task that makes sources and targets of other fields has no separate text fields.
    fields = task.text_fields or ()
    fields = fields if all(field in task.schema for field in fields) else ()
    if config.source_tokenizer is not None and not fields:
        raise UserError(
            "source_tokenizer is for tasks with sources and targets, such as seq2seq; "
            f"task={config.task} has none"
        )
    if not task.reads_text():
        if config.tokenizer is not None:
            raise UserError(
                f"tokenizer has no effect: task={config.task} reads no text here, but vectors; "
                "leave it out"
            )
        return None, None
    field_texts = [
        None if records is None else _RecordTexts(records, partial(_nth_text, task, number))
        for number in range(len(fields))
    ]
    source_name = config.source_tokenizer
    if (
        source_name is None
        and fields
        and _allows_char_source_tokenizer(config, task)
        and _maps_words_to_texts(*field_texts)
    ):
        source_name = "char"
    name = config.tokenizer or "bpe"
    if source_name is None:
        texts = None if records is None else _RecordTexts(records, task.texts)
        return _build_tokenizer("tokenizer", name, "vocab_size", config, task, texts)
    sources, targets = field_texts
    source_tokenizer, source_line = _build_tokenizer(
        "source_tokenizer", source_name, "source_vocab_size", config, task, sources
    )
    tokenizer, line = _build_tokenizer("tokenizer", name, "vocab_size", config, task, targets)
    tokenizer.separate_source_tokenizer = source_tokenizer
    return tokenizer, f"of targets {line}; of sources {source_line}"


def mostly_single_words(texts: Iterable[str]) -> bool:
    """Returns whether most of the first texts are single words, such as names."""
    total = single = 0
    for text in islice(filter(str.strip, texts), _MAX_SAMPLED_TEXTS):
        total += 1
        single += len(text) <= _MAX_WORD_CHARS and len(text.split()) == 1
    return single > 0.9 * total


def _allows_char_source_tokenizer(config: TrainConfig, task: Task) -> bool:
    """Returns whether no setting conflicts with a character tokenizer for sources."""
    return (
        config.tokenizer is None
        and config.init_from is None
        and "source_vocab_size" not in config.model_config
        and not getattr(task, "bpe_dropout", 0)
    )


def _maps_words_to_texts(sources: _RecordTexts | None, targets: _RecordTexts | None) -> bool:
    """Returns whether only sources are single words, as for words and their pronunciation."""
    if sources is None or targets is None:  # streamed
        return False
    return mostly_single_words(sources) and not mostly_single_words(targets)


class _RecordTexts:
    """Re-iterable texts of records.

    Args:
        records: the records.
        extract_texts: returns the texts of a record.
    """

    def __init__(self, records: Records, extract_texts: Callable[[Record], Iterable[str]]) -> None:
        self.records, self.extract_texts = records, extract_texts

    def __iter__(self) -> Iterator[str]:
        return (text for record in self.records for text in self.extract_texts(record))


def _nth_text(task: Task, index: int, record: Record) -> Iterable[str]:
    """Text number `index` of a record: the source or the target."""
    return islice(task.texts(record), index, index + 1)


def _build_tokenizer(
    option: str,
    name: str,
    vocab_size_field: str,
    config: TrainConfig,
    task: Task,
    texts: _RecordTexts | None,
) -> tuple[Tokenizer, str]:
    """Builds a tokenizer and one line about it.

    Args:
        option: the setting with its name.
        name: a registered kind, or a path.
        vocab_size_field: field of the model config with the vocabulary size.
        config: the run.
        task: the task, fitted to its training data.
        texts: training texts; None: streaming.
    """
    if name in registry.names("tokenizer"):
        if texts is None and name != "byte":
            raise UserError(
                "no tokenizer can be trained with streaming, which reads the data once; set "
                f"{option} to byte, or to a tokenizer.json"
            )
        vocab_size, sample = config.model_config.get(vocab_size_field), TextSample(texts or ())
        is_language_model = task.per_token_loss and task.text_fields is None
        if vocab_size is None and is_language_model and name in _BYTE_FALLBACK_KINDS:
            default = default_vocab_size(sum(len(text.encode()) for text in sample))
            vocab_size = None if sample.truncated else default
        tokenizer = Tokenizer.train(name, sample, vocab_size)
        part = f"the first {SAMPLE_BYTES / 1e6:.0f} MB of " if sample.truncated else ""
        source = "" if texts is None else f", trained on {part}{texts.records.name}"
        return tokenizer, f"{name}, {tokenizer.vocab_size:,} ids{source}"
    if not Path(name).exists() and not name.endswith(".json"):
        message = registry.unknown_name_message(option, name, registry.names("tokenizer"))
        raise UserError(f"{message}; or set a tokenizer.json, or a directory with one")
    tokenizer = Tokenizer.from_path(name)
    note = "" if tokenizer.warning is None else f"; {tokenizer.warning}"
    return tokenizer, f"{tokenizer.vocab_size:,} ids, from {name}{note}"


def load_run_tokenizer(run_dir: Path) -> tuple[Tokenizer | None, str | None]:
    """Loads the tokenizer of a run folder and returns one line about it."""
    if not (run_dir / "tokenizer.json").is_file():
        return None, None
    tokenizer = Tokenizer.from_path(run_dir)
    if (run_dir / "source_tokenizer").is_dir():
        tokenizer.separate_source_tokenizer = Tokenizer.from_path(run_dir / "source_tokenizer")
    return tokenizer, f"{tokenizer.vocab_size:,} ids, from the resumed run"
