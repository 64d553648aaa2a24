"""Sequential reading of records from files, pipes and standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import BinaryIO

from miniformer.data.reading import files
from miniformer.data.reading import index as indexes
from miniformer.data.reading.decompression import open_stream
from miniformer.data.reading.files import DataFiles
from miniformer.data.reading.index import line_too_long_error, next_text_block_end
from miniformer.data.reading.mapping import FieldMapping, RowMapper
from miniformer.data.reading.parsing import (
    DataError,
    Record,
    RecordError,
    parse_line,
    parse_text_block,
)
from miniformer.data.reading.records import TEXT_SCHEMA, JSONLinesDataset
from miniformer.data.reading.schema import Checks, Schema, compile_schema

_STREAMED = (".jsonl", ".txt")


def stream_records(
    path: DataFiles, schema: Schema = TEXT_SCHEMA, mapping: FieldMapping | None = None
) -> Iterator[tuple[str, Record]]:
    """Streams records in file order; JSON lines and text without an index and without a copy.

    Args:
        path: "-" for standard input, a pipe, or a path as in `JSONLinesDataset`. Input without a
            suffix is read as JSON lines, and pipes in other formats are refused.
        schema, mapping: see `JSONLinesDataset`.

    Yields:
        The location of a record, as file:line, and the record.

    Raises:
        UserError: a file cannot be read.
        RecordError: a line is not JSON or violates the schema.
    """
    checks, mapping = compile_schema(schema), mapping or FieldMapping()
    mapper = mapping.row_mapper(schema)
    if path == "-":
        yield from _stream_lines(sys.stdin.buffer, "standard input", checks, mapper)
        return
    paths = files.expand_paths(path)
    first = paths[0]
    is_pipe = first.exists() and not first.is_file() and not first.is_dir()
    is_unnamed_pipe = len(paths) == 1 and not first.suffix and is_pipe
    if not is_unnamed_pipe and any(
        files.parse_suffixes(file)[0] not in _STREAMED for file in paths
    ):
        records = JSONLinesDataset(path, schema, mapping=mapping)
        yield from ((records.location(row), record) for row, record in enumerate(records))
        return
    is_plain_text = not is_unnamed_pipe and files.are_plain_text(paths, list(schema))
    for file in paths:
        with open_stream(file) as stream:
            if is_plain_text:
                yield from _stream_text_blocks(stream, str(file), checks)
            else:
                yield from _stream_lines(stream, str(file), checks, mapper)


def _stream_lines(
    stream: BinaryIO, name: str, checks: Checks, mapper: RowMapper | None
) -> Iterator[tuple[str, Record]]:
    line = 0
    while raw := stream.readline(indexes.MAX_LINE_BYTES + 1):
        line += 1
        if len(raw) > indexes.MAX_LINE_BYTES:
            raise line_too_long_error(name, line, f"more than {indexes.MAX_LINE_BYTES:,}")
        if line == 1:
            raw = raw.removeprefix(files.BYTE_ORDER_MARK)
        if raw.isspace() or not raw:
            continue
        try:
            yield f"{name}:{line}", parse_line(raw, checks, mapper)
        except DataError as error:
            raise RecordError(name, line + error.line, error.problem) from None


def _stream_text_blocks(
    stream: BinaryIO, name: str, checks: Checks
) -> Iterator[tuple[str, Record]]:
    """Same text blocks as from an index, read from a buffer that holds at least one of them."""
    line, start, continues = 1, 0, False
    min_bytes = indexes.MAX_TEXT_BLOCK_BYTES + 1
    buffer = stream.read(4 * min_bytes).removeprefix(files.BYTE_ORDER_MARK)
    while buffer:
        if len(buffer) - start < min_bytes:
            buffer, start = buffer[start:] + stream.read(4 * min_bytes), 0
            if not buffer:
                return
        end = next_text_block_end(
            lambda size, offset: buffer[offset : offset + size],  # noqa: B023 -- called at once
            start,
            len(buffer),
        )
        raw, start = buffer[start:end], end
        try:
            yield f"{name}:{line}", parse_text_block(raw, checks, continues=continues)
        except DataError as error:
            raise RecordError(name, line + error.line, error.problem) from None
        line, continues = line + raw.count(b"\n"), True
