"""Copy noise of seq2seq, if the training data determines it.

| setting                | value                                                               |
|------------------------|---------------------------------------------------------------------|
| task_config.copy_noise | 0.5, if tokens are characters and most targets copy half of a source |
"""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Any

import numpy as np

from miniformer.config.resolved import ResolvedSetting
from miniformer.data.reading.records import Records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import Task
from miniformer.tasks.common.copy_noise import MIN_SHARED, find_longest_shared
from miniformer.tasks.seq2seq import Seq2Seq

_PROBABILITY = 0.5
_MAX_SAMPLE = 1_000  # records
_MAX_CHARACTERS = 200  # of a text that is compared
_MIN_RECORDS, _MIN_PART = 0.5, 0.5  # shares of the records, and of a target


def resolve_copy_noise(
    task: Task, tokenizer: Tokenizer, records: Records
) -> tuple[Task, list[ResolvedSetting]]:
    """Sets `copy_noise` for inflection, spelling and other tasks that copy most characters.

    Args:
        task: the task, with no `copy_noise` of the user; other tasks than seq2seq do not change.
        tokenizer: of the run.
        records: the training data.
    """
    if not isinstance(task, Seq2Seq) or not {"source", "target"} <= set(task.schema):
        return task, []
    if tokenizer.separate_source_tokenizer is not None:
        return task, []
    sample = [(record["source"], record["target"]) for record in islice(records, _MAX_SAMPLE)]
    targets = [target for _, target in sample]
    ids = tokenizer.encode_batch(targets)
    if sum(map(len, ids)) != sum(map(len, targets)):
        return task, []  # tokens are not characters
    share = np.mean([_copies(source, target) for source, target in sample])
    if share < _MIN_RECORDS:
        return task, []
    reason = f"{share:.0%} of the targets copy half of their characters from the source"
    setting = ResolvedSetting("task_config.copy_noise", _PROBABILITY, reason)
    return dataclasses.replace(task, copy_noise=_PROBABILITY), [setting]


def _copies(source: str, target: str) -> bool:
    """True if half of the target is one part of the source."""
    texts: list[Any] = [
        np.array(list(map(ord, text[:_MAX_CHARACTERS])), dtype=np.int64)
        for text in (source, target)
    ]
    length = int(find_longest_shared(*texts)[2])
    return length >= max(MIN_SHARED, _MIN_PART * len(texts[1]))
