"""StoredDataSettings: `data.json` of a model directory, how training read and batched its data.

With it, files are read alike later, and an evaluation gives the metrics of training to the last
digit.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from miniformer.config import ConfigError, StrictConfig, UserError, option
from miniformer.data.reading.mapping import FieldMapping
from miniformer.evaluation.run_batches import BatchSettings
from miniformer.utils.columns import split_names
from miniformer.utils.jsonl import read_json

FILE_NAME = "data.json"
_COLUMN_FIELDS = ("input_field", "label_field", "text_field")


@dataclasses.dataclass(frozen=True)
class StoredDataSettings(StrictConfig):
    """Content of `data.json`; the defaults are those of a directory without this file.

    Args:
        seq_len, batch_size, batch_tokens: see `BatchSettings`.
        fields: fields of the `FieldMapping`; null: columns have the names of the fields.
    """

    seq_len: int | None = option(None, low=1)
    batch_size: int = option(16, low=1)
    batch_tokens: int | None = option(None, low=1)
    fields: dict[str, Any] | None = None

    def batches(self) -> BatchSettings:
        """Sizes of batches."""
        return BatchSettings(self.seq_len, self.batch_size, self.batch_tokens)

    def mapping(self) -> FieldMapping:
        """Columns of the fields; files with the names of the fields are read, too."""
        return FieldMapping.from_dict({**(self.fields or {}), "optional": True}, stored=True)

    def override(self, fields: dict[str, Any]) -> FieldMapping:
        """The mapping with other columns, whose values are of the same kinds.

        The names of columns of training data without a header are not those of a file with other
        columns, which has a header.

        Args:
            fields: given fields of `FieldMapping`.

        Raises:
            UserError: a field is unknown or invalid.
        """
        mapping, given = self.mapping(), {k: v for k, v in fields.items() if v is not None}
        if not given:
            return mapping
        if "columns" not in given and not _named(given) <= {*split_names(mapping.columns)}:
            mapping = dataclasses.replace(mapping, columns=None)  # of files without a header
        values = {**mapping.to_dict(), **given, "optional": False}
        if mapping.kinds is not None:
            old, new = (
                FieldMapping.from_dict({**mapping.to_dict(), **changes, "kinds": None})
                for changes in ({}, given)
            )
            renamed = {str(getattr(new, x)): str(getattr(old, x)) for x in _COLUMN_FIELDS}
            same = {name: mapping.kinds.get(source) for name, source in renamed.items()}
            kinds = {name: kind for name, kind in same.items() if kind is not None}
            values["kinds"] = {**mapping.kinds, **kinds}
        return FieldMapping.from_dict(values)


def _named(fields: dict[str, Any]) -> set[str]:
    """Columns that the given fields of `FieldMapping` name."""
    return {column for name in _COLUMN_FIELDS for column in split_names(fields.get(name))}


def read_data_settings(directory: Path) -> StoredDataSettings:
    """Reads `data.json`; a directory of an earlier version, or an imported one, has none.

    Raises:
        UserError: the file is invalid.
    """
    path = directory / FILE_NAME
    try:
        settings = StoredDataSettings.from_dict(read_json(path), stored=True)
        settings.mapping()
    except FileNotFoundError:
        return StoredDataSettings()
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not data settings: {error}") from None
    return settings
