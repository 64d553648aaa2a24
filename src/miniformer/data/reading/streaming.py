"""Reading data as it comes, front to back: files, pipes and standard input."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from miniformer.data.reading import files
from miniformer.data.reading import index as indexes
from miniformer.data.reading.decompression import open_stream
from miniformer.data.reading.files import DataFiles
from miniformer.data.reading.index import line_too_long_error, next_piece_end
from miniformer.data.reading.parsing import DataError, Record, RecordError, parse_line, parse_piece
from miniformer.data.reading.records import TEXT_SCHEMA
from miniformer.data.reading.schema import FieldCheck, Schema, compile_schema


def stream_records(path: DataFiles, schema: Schema = TEXT_SCHEMA) -> Iterator[tuple[str, Record]]:
    """Records as they come, front to back, without an index and with nothing written to disk.

    Args:
        path: "-" for standard input, a pipe, or whatever `JSONLinesDataset` takes. What has no
            suffix to tell is taken for JSON lines.
        schema: the fields each record must have, and their checks.

    Yields:
        Where a record stands, as file:line, and the record.

    Raises:
        UserError: a file cannot be read.
        RecordError: a line is not JSON or does not keep to the schema.
    """
    checks = compile_schema(schema)
    if path == "-":
        yield from _stream_lines(sys.stdin.buffer, "standard input", checks)
        return
    paths = files.expand_paths(path)
    untold = len(paths) == 1 and not paths[0].suffix and _is_pipe(paths[0])
    plain = not untold and files.are_plain_text(paths, list(schema))
    for file in paths:
        with open_stream(file) as stream:
            read = _stream_pieces if plain else _stream_lines
            yield from read(stream, str(file), checks)


def _stream_lines(
    stream: BinaryIO, name: str, checks: Mapping[str, FieldCheck]
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
            yield f"{name}:{line}", parse_line(raw, checks)
        except DataError as flaw:
            raise RecordError(name, line + flaw.line, flaw.problem) from None


def _stream_pieces(
    stream: BinaryIO, name: str, checks: Mapping[str, FieldCheck]
) -> Iterator[tuple[str, Record]]:
    """The pieces that `index` would find, from a buffer that always holds a whole one."""
    line, start, continues = 1, 0, False
    needed = indexes.MAX_PIECE_BYTES + 1
    buffer = stream.read(4 * needed).removeprefix(files.BYTE_ORDER_MARK)
    while buffer:
        if len(buffer) - start < needed:
            buffer, start = buffer[start:] + stream.read(4 * needed), 0
            if not buffer:
                return
        end = next_piece_end(
            lambda size, offset: buffer[offset : offset + size],  # noqa: B023 -- called at once
            start,
            len(buffer),
        )
        raw, start = buffer[start:end], end
        try:
            yield f"{name}:{line}", parse_piece(raw, checks, continues=continues)
        except DataError as flaw:
            raise RecordError(name, line + flaw.line, flaw.problem) from None
        line, continues = line + raw.count(b"\n"), True


def _is_pipe(path: Path) -> bool:
    return path.exists() and not stat.S_ISREG(path.stat().st_mode) and not path.is_dir()
