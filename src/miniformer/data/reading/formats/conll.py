"""Format of .conllu, .conll and .bio files: a token in each line, a blank line after a sentence.

CoNLL-U (universaldependencies.org/format.html) has ten columns separated by tabs, and comments. The
others have two or more columns, separated by tabs or spaces: the token first and its tag last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from miniformer.config import UserError
from miniformer.data.reading.files import ProgressCallback, RandomAccessFile
from miniformer.data.reading.index import index_lines
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.parsing import DataError, Record, check_nul, decode_as
from miniformer.data.reading.record_index import RecordIndex
from miniformer.utils.columns import split_names

CONLLU_COLUMNS = (
    "id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc",
)  # fmt: skip
_COMMENTS = ("sent_id", "text")  # that become fields
_DOCUMENT_START = "-DOCSTART-"


class TaggedTokens:
    """Sentences of tokens and tags.

    Args:
        name: the file.
        file_type: .conllu, .conll or .bio.
        mapping: `input_field` and `label_field` name the columns of tokens and tags; `columns`
            names those of .conll files, which otherwise are 1, 2, ...
        fields: fields that the schema requires.

    Raises:
        UserError: a column is unknown, or the schema needs other fields.
    """

    is_table, is_mapped = False, True

    def __init__(
        self, name: Path, file_type: str, mapping: FieldMapping, fields: Iterable[str]
    ) -> None:
        self.is_conllu = file_type == ".conllu"
        self.encoding = mapping.encoding
        self.columns = [*CONLLU_COLUMNS] if self.is_conllu else split_names(mapping.columns)
        fields = list(fields)
        self.needs_tags = "tags" in fields
        if missing := [field for field in fields if field not in ("tokens", "tags", *_COMMENTS)]:
            raise UserError(
                f"{name}: a {file_type} file has tokens and tags, and no {' and '.join(missing)}; "
                "set --task token_classification"
            )
        sources = mapping.sources(("tokens", "tags"))
        defaults = {"tokens": "form", "tags": "upos"} if self.is_conllu else {}
        self.token_column, self.tag_column = (
            self._position(name, sources[field][0], field, defaults.get(field))
            for field in ("tokens", "tags")
        )
        self.cache_key = ("tokens",)

    def build_index(
        self, handle: RandomAccessFile, progress: ProgressCallback | None
    ) -> RecordIndex:
        lines = index_lines(handle, progress)
        next_lines = lines.blank_lines[0]
        first = np.unique(np.append(next_lines[next_lines < len(lines)], 0))[: len(lines)]
        starts = np.append(lines.starts[first], lines.starts[-1])
        keep = [row for row, start in enumerate(starts[:-1].tolist())
                if not self._is_document_start(handle, start, int(starts[row + 1]))]  # fmt: skip
        if len(keep) == len(first):
            return RecordIndex(starts, np.empty((2, 0), dtype=np.int64))
        # A skipped block is a gap after the record before it, as blank lines are.
        skipped = np.setdiff1d(np.arange(len(first)), keep)
        next_rows = np.searchsorted(keep, skipped)
        blank_lines = np.array([next_rows, starts[skipped]], dtype=np.int64)
        return RecordIndex(np.append(starts[keep], starts[-1]), blank_lines)

    def parse(self, raw: bytes) -> Record:
        record: Record = {"tokens": [], "tags": []}
        lines = check_nul(decode_as(raw, self.encoding)).removeprefix("\ufeff").split("\n")
        width = 0
        for number, line in enumerate(lines):
            line = line.removesuffix("\r")
            if not line.strip():
                continue
            if self.is_conllu and line.startswith("#"):
                key, _, value = line[1:].partition("=")
                if key.strip() in _COMMENTS:
                    record[key.strip()] = value.strip()
                continue
            cells = line.split("\t") if self.is_conllu or "\t" in line else line.split()
            width = width or len(cells)
            if problem := self._line_problem(cells, width):
                raise DataError(f"{problem} (the line: {line[:60]!r})", number)
            if self.is_conllu and not cells[0].isdigit():  # a range 1-2, or an empty node 1.1
                continue
            record["tokens"].append(cells[self.token_column])
            if len(cells) > 1:
                record["tags"].append(cells[self.tag_column])
        if not record["tokens"]:
            raise DataError("the sentence has comments and no token; add tokens, or remove it")
        if not record["tags"] and not self.needs_tags:
            del record["tags"]
        return record

    def _line_problem(self, cells: Sequence[str], width: int) -> str | None:
        number = f"the line has {len(cells)} column{'s' * (len(cells) > 1)}"
        if self.is_conllu:
            if len(cells) != len(CONLLU_COLUMNS):
                return f"{number}, CoNLL-U has 10, separated by tabs; fix the line"
            if not cells[0].replace("-", "").replace(".", "").isdigit():
                return f"the id {cells[0]!r} is no number; fix the line"
            return None
        if len(cells) == 1 and self.needs_tags:
            return f"{number}; a token and its tag are two, separated by a tab or spaces"
        if len(cells) != (len(self.columns) or width):
            source = "columns names" if self.columns else "the first line of the sentence has"
            return f"{number}, {source} {len(self.columns) or width}; fix the line"
        if max(self.token_column, self.tag_column) >= len(cells):
            return f"{number}; there is no column {max(self.token_column, self.tag_column) + 1}"
        return None

    def _position(self, name: Path, column: str, field: str, default: str | None) -> int:
        """Index of a column: of tokens by default the first, of tags the last."""
        if column in self.columns:
            return self.columns.index(column)
        if column == field:  # not mapped
            return self.columns.index(default) if default else 0 if field == "tokens" else -1
        if not self.columns and column.isdigit() and int(column) > 0:
            return int(column) - 1
        known = ", ".join(self.columns) or "numbers from 1, or names given by --columns"
        flag = "input_field" if field == "tokens" else "label_field"
        raise UserError(f"{name}: {flag}: there is no column {column!r}; the columns are {known}")

    def _is_document_start(self, handle: RandomAccessFile, start: int, end: int) -> bool:
        """True for a block with the mark of a new document alone (CoNLL-2003)."""
        if self.is_conllu or end - start > 200:
            return False
        raw = handle.read(end - start, start).strip()
        return raw.startswith(_DOCUMENT_START.encode()) and b"\n" not in raw
