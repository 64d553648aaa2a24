"""Tokenizers that the training data determines if they are not given.

| setting          | value                                                                |
|------------------|----------------------------------------------------------------------|
| tokenizer        | char, if inputs, or targets of seq2seq, are symbols without spaces   |
| source_tokenizer | char, if sources are single words and targets are not                |
| vocab_size       | grows with the square root of the text length                        |

The number of distinct words grows with the square root of the text length (Heaps 1978). A token
that a model sees a handful of times is not learned: the rest of a word in smaller parts is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice

from miniformer.config.resolved import ResolvedSetting
from miniformer.config.train_settings import DataSettings, ModelSettings
from miniformer.data.reading.records import Records
from miniformer.data.tokenizers.training import DEFAULT_VOCAB_SIZE, TextSample
from miniformer.tasks.base import Task
from miniformer.tasks.common.sequence_input import InputTask

_MIN_VOCAB_SIZE = 512
# The vocabulary of a classifier, relative to the square root of the text length in bytes.
_INPUT_VOCAB_FACTOR = 4.0
# Kinds that fall back to bytes: a smaller vocabulary only makes texts longer.
_BYTE_FALLBACK_KINDS = ("bpe", "unigram")
_MAX_SAMPLED_TEXTS, _MAX_WORD_CHARS = 1_000, 32  # texts, characters
_MIN_SHARE = 0.9  # of the sampled texts
_MAX_ALPHABET_SIZE = 256  # scripts without spaces between words have thousands of characters


def resolve_tokenizer(
    config: DataSettings, model: ModelSettings, task: Task, records: Records | None
) -> ResolvedSetting | None:
    """Characters for inputs, or targets of seq2seq, without spaces: DNA, molecules, inflections.

    None: the default kind.

    Args:
        config, model: settings of the run.
        task: reads texts.
        records: the training data; None: streaming.
    """
    if records is None or _has_settings(config, model, task, "vocab_size"):
        return None
    if isinstance(task, InputTask) and not task.per_token_loss:
        name, texts = "inputs", partial(iter_texts, task, records)
    elif task.text_fields is not None:
        name, texts = "targets", partial(iter_texts, task, records, 1)
    elif getattr(task, "source_kind", None) == "features":
        name, texts = "targets", partial(iter_texts, task, records)
    else:
        return None
    sample = [text for text in islice(texts(), _MAX_SAMPLED_TEXTS) if text.strip()]
    alphabet = len({character for text in sample for character in text})
    if alphabet > _MAX_ALPHABET_SIZE or not _most(sample, lambda text: len(text.split()) == 1):
        return None
    reason = f"{name} have no spaces, and {alphabet} distinct characters"
    return ResolvedSetting("tokenizer", "char", reason)


def _has_settings(config: DataSettings, model: ModelSettings, task: Task, size_field: str) -> bool:
    """True if given settings decide the kind of tokenizer."""
    return (
        config.tokenizer is not None
        or model.init_from is not None
        or size_field in model.model_config
        or getattr(task, "bpe_dropout", 0.0) > 0
    )


def resolve_source_tokenizer(
    config: DataSettings, model: ModelSettings, task: Task, records: Records | None
) -> ResolvedSetting | None:
    """Characters for single words as sources, such as words and their pronunciation.

    None: sources and targets share a tokenizer.

    Args:
        config, model: settings of the run.
        task: has sources and targets.
        records: the training data; None: streaming.
    """
    if records is None or _has_settings(config, model, task, "source_vocab_size"):
        return None
    texts = partial(iter_texts, task, records)
    if not mostly_single_words(texts(0)) or mostly_single_words(texts(1)):
        return None
    return ResolvedSetting("source_tokenizer", "char", "sources are single words, targets are not")


def resolve_vocab_size(task: Task, kind: str, sample: TextSample) -> ResolvedSetting | None:
    """Vocabulary size of a tokenizer to be trained; None: that of its kind.

    Args:
        task: language models, masked LM and tasks with one output for each text have it.
        kind: of the tokenizer.
        sample: the training text.
    """
    is_language_model = task.per_token_loss and task.text_fields is None
    is_input_task = isinstance(task, InputTask)
    if not (is_language_model or is_input_task) or kind not in _BYTE_FALLBACK_KINDS:
        return None
    n_bytes = sum(len(text.encode()) for text in sample)
    if sample.truncated:
        return None
    size = default_vocab_size(n_bytes, 1.0 if is_language_model else _INPUT_VOCAB_FACTOR)
    return ResolvedSetting("vocab_size", size, f"at most, for a text of {n_bytes:,} bytes")


def default_vocab_size(n_bytes: int, factor: float = 1.0) -> int:
    """Default vocabulary size for a text of `n_bytes`: `factor` times their square root."""
    return min(max(round(factor * math.sqrt(n_bytes)), _MIN_VOCAB_SIZE), DEFAULT_VOCAB_SIZE)


def iter_texts(task: Task, records: Records, part: int | None = None) -> Iterator[str]:
    """Yields the texts of records: all, or number `part` of each record."""
    for record in records:
        texts = task.texts(record)
        yield from texts if part is None else islice(texts, part, part + 1)


def mostly_single_words(texts: Iterable[str]) -> bool:
    """Returns whether most of the first texts are single words, such as names."""
    sample = list(islice(filter(str.strip, texts), _MAX_SAMPLED_TEXTS))
    return _most(sample, lambda text: len(text) <= _MAX_WORD_CHARS and len(text.split()) == 1)


def _most(texts: list[str], check: Callable[[str], bool]) -> bool:
    return sum(map(check, texts)) > _MIN_SHARE * len(texts)
