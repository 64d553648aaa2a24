"""Validation data that is set aside from the training data, the same for each run on that data.

Plain text is divided at a line end: validation is its last part. Of records, those with equal
inputs are in the same part, and classes have the same shares in both. Which records are set aside
depends on their inputs alone, not on their order or on the seed of a run. A mixture with plain text
is divided source by source.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from miniformer.config import UserError
from miniformer.data.reading.mixture import split_mixture
from miniformer.data.reading.records import InMemoryRecords, Record, Records
from miniformer.data.selection import RecordSubset

MIN_RECORDS = 20  # of data from which a part can be set aside
_SHARE, _MIN_VAL_RECORDS, _MAX_VAL_RECORDS = 0.1, 100, 5_000
_MAX_SHARE = 0.2  # where `_MIN_VAL_RECORDS` would be more
_MAX_VAL_TEXT_BYTES = 1 << 20
_MAX_COMPARED_BYTES = 1 << 28  # records of larger data are not read to find equal inputs
_MAX_CUT_TEXT_BYTES = 1 << 20  # smaller texts are cut within a block
_INPUT_FIELDS = ("input", "source", "tokens", "text")
_LABEL_FIELDS = ("label", "labels", "tags")


def default_val_share(records: Records) -> float:
    """Default share: a tenth, at least about 100 and at most 5,000 records, or 1 MB of plain text.

    The minimum is at most a fifth of the records.
    """
    if records.is_plain_text:
        return round(min(_SHARE, _MAX_VAL_TEXT_BYTES / max(1, records.n_bytes)), 6)
    count = len(records)
    val_count = min(max(_SHARE * count, _MIN_VAL_RECORDS), _MAX_VAL_RECORDS, _MAX_SHARE * count)
    return round(val_count / count, 6)


def hold_out(records: Records, share: float) -> tuple[Records, Records]:
    """Divides records into a training and a validation part; see the docstring of this module.

    Args:
        records: the training data.
        share: fraction of the records, or of the bytes of plain text, for validation.

    Raises:
        UserError: too few records, or all inputs are equal.
    """
    if records.is_plain_text or (records.mixture is not None and records.mixture.has_plain_text):
        return _split_text(records, share)
    if len(records) < MIN_RECORDS:
        raise UserError(f"{len(records)} records are too few to set a part of them aside")
    if records.n_bytes > _MAX_COMPARED_BYTES:
        order = np.random.default_rng(0).permutation(len(records))
        chosen = order[: max(1, round(share * len(records)))]
    else:
        chosen = _select(records, share)
    is_val = np.zeros(len(records), dtype=bool)
    is_val[chosen] = True
    if not is_val.any() or is_val.all():
        raise UserError(
            "the records have too few different inputs, or too few of each label, to set a part of "
            "them aside"
        )
    return (
        RecordSubset(records, np.flatnonzero(~is_val)),
        RecordSubset(records, np.flatnonzero(is_val)),
    )


def _select(records: Records, share: float) -> np.ndarray:
    """Indices of the validation records, int64 [n]."""
    groups: dict[bytes, list[int]] = defaultdict(list)  # records by input
    strata: dict[str, set[bytes]] = defaultdict(set)  # inputs by the label of their first record
    labels: list[tuple[str, ...]] = []  # of each record
    for index, record in enumerate(records):
        key = input_digest(record)
        labels.append(tuple(record_labels(record)))
        if key not in groups:
            strata["\0".join(labels[-1])].add(key)
        groups[key].append(index)
    if any(len(keys) == 1 for keys in strata.values()) and len(strata) > len(groups) / 2:
        strata = {"": set(groups)}  # labels that hardly repeat, such as sequences of tags
    selected, deficit = [], 0.0
    for stratum in sorted(strata):
        keys = sorted(strata[stratum])
        deficit += share * sum(len(groups[key]) for key in keys)
        for key in keys[: len(keys) - 1]:  # one stays for training
            if len(groups[key]) - deficit < 0.5:
                selected.append(key)
                deficit -= len(groups[key])
    return _without_unknown_labels(selected, groups, labels)


def _without_unknown_labels(
    selected: list[bytes], groups: dict[bytes, list[int]], labels: list[tuple[str, ...]]
) -> np.ndarray:
    """Indices of the records of the groups whose labels occur in the other groups, too."""
    val = set(selected)
    known = {x for key, rows in groups.items() if key not in val for i in rows for x in labels[i]}
    retained: list[int] = []
    for key in selected:
        names = {name for index in groups[key] for name in labels[index]}
        if names <= known:
            retained += groups[key]
        else:  # to the training part
            known |= names
    return np.array(sorted(retained), dtype=np.int64)


def input_digest(record: Record) -> bytes:
    """Hash of a record's input, or of the whole record without one."""
    name = next((name for name in _INPUT_FIELDS if name in record), None)
    value: Any = record if name is None else record[name]
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def record_labels(record: Record) -> Iterable[str]:
    """The labels of a record as text, sorted: none for tasks without classes."""
    for name in _LABEL_FIELDS:
        if name in record:
            value = record[name]
            items = value if isinstance(value, (list, tuple)) else [value]
            return sorted({str(item) for item in items})
    return ()


class _TextPart(InMemoryRecords):
    """Text blocks that were cut within a block, in memory."""

    is_plain_text = True

    def __init__(self, blocks: list[Record], records: Records) -> None:
        super().__init__(blocks, records.schema)
        self.name, self.files, self.mapping = records.name, records.files, records.mapping

    def location(self, index: int) -> str:
        return f"{self.name}, text block {self._normalize_index(index)}"


def _split_text(records: Records, share: float) -> tuple[Records, Records]:
    if records.mixture is not None:
        return split_mixture(records, partial(hold_out, share=share))
    sizes = records.sizes
    limit = int(sizes.sum()) * (1 - share)
    ends = np.cumsum(sizes)
    first = int(np.searchsorted(ends, limit, side="right"))  # the block with the end of training
    if records.n_bytes > _MAX_CUT_TEXT_BYTES:
        first = min(max(first, 1), len(records) - 1)
        rows = np.arange(len(records))
        return RecordSubset(records, rows[:first]), RecordSubset(records, rows[first:])
    blocks = list(records)
    parts = list(
        _cut_at_line_end(blocks[first], (limit - (ends[first] - sizes[first])) / sizes[first])
    )
    if len(parts) < 2:
        raise UserError("the text has too few lines to set its last part aside")
    train, val = [*blocks[:first], parts[0]], [parts[1], *blocks[first + 1 :]]
    return _TextPart(train, records), _TextPart(val, records)


def _cut_at_line_end(block: Record, fraction: float) -> Iterator[Record]:
    """The two parts of a block, cut after the line end nearest to a fraction of it; or one part."""
    text = block["text"]
    ends = [index + 1 for index, c in enumerate(text[:-1]) if c == "\n"]
    if not ends:
        yield block
        return
    cut = min(ends, key=lambda end: abs(end - fraction * len(text)))
    yield {**block, "text": text[:cut]}
    yield {**block, "text": text[cut:], "continues": True}
