"""JSON files, and metrics files in JSON lines: one object per line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniformer.utils.atomic import write_text


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: the file is not readable.
        ValueError: it is not JSON in UTF-8, or is nested too deeply to be parsed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path, count: int, *, truncate: bool) -> list[dict[str, Any]]:
    """First `count` lines; `truncate` removes the others, whose steps a resumed run repeats."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines[:count]]
    if truncate and len(lines) > count:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def is_due(progress: float, last_progress: float, max_rows: int) -> bool:
    """Returns whether the next line is due.

    Args:
        progress: completed fraction of the run.
        last_progress: progress at the last line; larger than `progress` after a run was extended.
        max_rows: approximate number of lines in a whole run.
    """
    return progress - last_progress >= 1 / max_rows or progress < last_progress
