"""Format of .json files: one array of objects. A file of JSON lines with this suffix is read, too.

The text of the array is held in memory while it is indexed.
"""

from __future__ import annotations

import json
import re
from array import array

import numpy as np

from miniformer.data.reading.files import ProgressCallback, RandomAccessFile, text_start
from miniformer.data.reading.index import index_lines
from miniformer.data.reading.parsing import (
    DataError,
    Record,
    RecordError,
    decode,
    describe_json_error,
)
from miniformer.data.reading.record_index import RecordIndex

_SPACE = re.compile(r"[ \t\r\n]*")
_AFTER_ITEM = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")


class JSONArray:
    """Array of objects, or JSON lines.

    Args:
        handle: the open file.
    """

    is_table, is_mapped = False, False

    def __init__(self, handle: RandomAccessFile) -> None:
        start = text_start(handle)
        head = handle.read(min(4096, handle.stat.size - start), start).lstrip()
        self.is_array = head.startswith(b"[")
        self.cache_key = ("json", self.is_array)

    def build_index(
        self, handle: RandomAccessFile, progress: ProgressCallback | None
    ) -> RecordIndex:
        if not self.is_array:
            return index_lines(handle, progress)
        start = text_start(handle)
        try:
            raw = handle.read(handle.stat.size - start, start)
            starts, ends = _item_spans(decode(raw))
        except DataError as error:
            raise RecordError(handle.name, 1 + error.line, error.problem) from None
        # Commas between items are gaps, as blank lines are.
        rows = np.arange(1, len(starts) + 1)
        blank_lines = np.array([rows, np.array(ends) + start], dtype=np.int64)
        offsets = np.append(np.array(starts, dtype=np.int64) + start, handle.stat.size)
        return RecordIndex(offsets, blank_lines)

    def parse(self, raw: bytes) -> Record:
        text = decode(raw)
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            hint = "; a .json file is an array of objects, or one object a line"
            raise DataError(describe_json_error(error, hint), error.lineno - 1) from None
        except (ValueError, RecursionError):
            raise DataError(
                "a number has too many digits, or lists are nested too deeply"
            ) from None
        if not isinstance(record, dict):
            raise DataError(f"expected a JSON object, found {text.strip()[:40]!r}")
        for value in record.values() if not self.is_array and len(record) < 10 else ():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                names = ", ".join(map(repr, record))
                raise DataError(
                    f"the file is one object with {names}; it must be an array of records: "
                    "write the list alone, such as with jq '.NAME' FILE"
                )
        return record


def _item_spans(text: str) -> tuple[array[int], array[int]]:
    """Byte offsets of the starts and ends of the items of an array.

    Raises:
        DataError: the text is not an array.
    """
    starts, ends = array("q"), array("q")
    is_ascii, decoder = text.isascii(), json.JSONDecoder()
    position = _skip_space(text, _skip_space(text, 0) + 1)
    offset, last = 0, 0  # bytes up to the character `last`

    def byte_offset(index: int) -> int:
        nonlocal offset, last
        if is_ascii:
            return index
        offset, last = offset + len(text[last:index].encode()), index
        return offset

    while not text.startswith("]", position):
        try:
            _, end = decoder.raw_decode(text, position)
            separator = _AFTER_ITEM.match(text, end)
            if separator is None:
                raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
            next_item = separator.end() if separator[1] == "," else separator.start(1)
            if separator[1] == "," and text.startswith("]", next_item):
                raise json.JSONDecodeError("Expecting value", text, next_item)
        except json.JSONDecodeError as error:
            column = error.pos - text.rfind("\n", 0, error.pos)
            raise DataError(
                f"not JSON: {error.msg} at column {column}; the file is an array of objects",
                text.count("\n", 0, error.pos),
            ) from None
        except (ValueError, RecursionError):
            raise DataError(
                "a number has too many digits, or lists are nested too deeply",
                text.count("\n", 0, position),
            ) from None
        starts.append(byte_offset(position))
        ends.append(byte_offset(end))
        position = next_item
    if _skip_space(text, position + 1) < len(text):
        raise DataError(
            "text follows the array; a .json file is one array of objects",
            text.count("\n", 0, _skip_space(text, position + 1)),
        )
    return starts, ends


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()
