"""Interface of the formats of text files that have byte-offset indexes."""

from __future__ import annotations

from typing import Any, Protocol

from miniformer.data.reading.files import ProgressCallback, RandomAccessFile
from miniformer.data.reading.parsing import Record
from miniformer.data.reading.record_index import RecordIndex


class TextFormat(Protocol):
    """Format of one open file: where its records are, and how one is parsed.

    Attributes:
        cache_key: everything other than the file that the index depends on.
        is_table: true if all values are cells of text, which `cells` converts.
        is_mapped: true if `parse` gives the fields of the mapping itself.
    """

    cache_key: tuple[Any, ...]
    is_table: bool
    is_mapped: bool

    def build_index(
        self, handle: RandomAccessFile, progress: ProgressCallback | None
    ) -> RecordIndex:
        """Byte offsets of the records of the file."""

    def parse(self, raw: bytes) -> Record:
        """The row of a record's bytes, by column.

        Raises:
            DataError: the bytes are not a valid record.
        """
