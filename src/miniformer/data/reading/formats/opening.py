"""Opens a data file in its format, by the suffix of its name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from miniformer.config import UserError
from miniformer.data.reading import files
from miniformer.data.reading.files import ProgressCallback, RandomAccessFile
from miniformer.data.reading.formats.arrow import ArrowFile
from miniformer.data.reading.formats.base import TextFormat
from miniformer.data.reading.formats.conll import TaggedTokens
from miniformer.data.reading.formats.json_array import JSONArray
from miniformer.data.reading.formats.table import TextTable
from miniformer.data.reading.index import IndexedFile
from miniformer.data.reading.mapping import FieldMapping, check_columns

DataFile = IndexedFile | ArrowFile


def open_data_file(
    path: Path,
    mapping: FieldMapping,
    fields: Iterable[str],
    *,
    cache_dir: Path | None = None,
    progress: ProgressCallback | None = None,
) -> DataFile:
    """Opens a file of records, and builds its index.

    Args:
        path: the file, or a folder of Hugging Face `datasets`.
        mapping: the columns of the fields.
        fields: fields that the schema requires.
        cache_dir, progress: see `IndexedFile`.

    Raises:
        UserError: the file cannot be read, is empty, or lacks a column.
    """
    file_type, _ = files.parse_suffixes(path)
    if file_type in (*files.ARROW_TYPES, files.DATASET_FOLDER):
        table = ArrowFile(path)
        if problem := check_columns(table.columns, mapping, fields):
            raise UserError(f"{path}: {problem}")
        return table

    def make_format(handle: RandomAccessFile) -> TextFormat:
        if file_type == ".json":
            return JSONArray(handle)
        if file_type in files.TAGGED_TYPES:
            return TaggedTokens(path, file_type, mapping, fields)
        return TextTable(handle, file_type, mapping, fields)

    return IndexedFile(
        path,
        is_plain_text=file_type == ".txt",
        make_format=None if file_type in (".jsonl", ".txt") else make_format,
        cache_dir=cache_dir,
        progress=progress,
    )
