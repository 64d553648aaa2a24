"""Comparison at the end of the commands `quantize`, `prune` and `calibrate-exit`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from miniformer.config.command_line import resolve_model

ROUNDS, TOKENS = 2, 16  # fewer than those of `miniformer compare`, which takes longer


def add_comparison_flag(parser: Any) -> None:
    """Adds the flag that leaves the comparison out."""
    parser.add_argument(
        "--no-compare",
        action="store_true",
        help="with --data: leave out the table of size, metric, speed and memory of both models",
    )


def print_comparison(first: str | Path, second: str | Path, data: str, **fields: Any) -> None:
    """Prints the table of `miniformer compare` on two model directories.

    Args:
        first: directory or run folder that the second one is compared with.
        second: directory or run folder.
        data: file of labeled records.
        **fields: its columns, see `compare`.
    """
    from miniformer.compression.comparison.compare import compare

    paths = [resolve_model(str(path), note=False) for path in (first, second)]
    print()
    print(compare(paths, data, rounds=ROUNDS, tokens=TOKENS, **fields))


def print_exit_comparison(directory: str, data: str, **fields: Any) -> None:
    """Prints the table on a classifier with exits, compared with itself without them.

    Args:
        directory: model directory or run folder.
        data: file of labeled records.
        **fields: its columns, see `compare`.
    """
    from miniformer.checkpoint.early_exit import FILE_NAME

    path = Path(resolve_model(directory, note=False))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "all-layers"
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns(FILE_NAME))
        print_comparison(copy, path, data, **fields)
