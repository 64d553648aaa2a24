"""Files of a run's figures: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniformer.utils.atomic import write_text


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path, count: int, *, truncate: bool) -> list[dict[str, Any]]:
    """The first `count` lines; with `writes` the others go: they are of steps done again."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines[:count]]
    if truncate and len(lines) > count:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def is_due(progress: float, last_progress: float, max_rows: int) -> bool:
    """Whether a line is due, of about `points` over a run.

    Args:
        progress: share of the run done.
        last: that at the last line; more than `progress` where a run has been made longer.
        points: see above.
    """
    return progress - last_progress >= 1 / max_rows or progress < last_progress
