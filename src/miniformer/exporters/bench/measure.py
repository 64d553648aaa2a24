"""Measurements in child processes, in rounds: each artifact once, then each again."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from miniformer.config import UserError
from miniformer.config.command_line import resolve_model

_CHILD = Path(__file__).with_name("child.py")
# Key of a result, heading, and number of decimals.
_COLUMNS = (
    ("size_mb", "MB", 1),
    ("memory_mb", "memory MB", 0),
    ("first_s", "first result s", 2),
    ("token_ms", "ms a token", 2),
    ("classification_ms", "ms a classification", 2),
)


class Workload(NamedTuple):
    """The same work for each artifact.

    Args:
        prompt_tokens: length of the prompt, source or classified input.
        tokens: number of generated tokens.
        threads: threads of each process; 0: as many as cores.
    """

    prompt_tokens: int
    tokens: int
    threads: int


def measure_all(paths: Sequence[str], workload: Workload, rounds: int) -> list[dict[str, Any]]:
    """Results of each artifact: medians, and each measurement in `rounds`.

    Raises:
        UserError: a path is none of the kinds that can be measured, or its runtime fails.
    """
    artifacts = [(path, *find_kind(path)) for path in paths]
    measured: list[list[dict[str, float]]] = [[] for _ in artifacts]
    for _ in range(rounds):
        for results, (_, kind, file) in zip(measured, artifacts, strict=True):
            results.append(_measure(kind, file, workload))
    return [
        {
            "path": path,
            "kind": kind,
            "size_mb": size_of(file) / 1e6,
            **{name: statistics.median(result[name] for result in results) for name in results[0]},
            "rounds": results,
        }
        for results, (path, kind, file) in zip(measured, artifacts, strict=True)
    ]


def find_kind(path: str) -> tuple[str, Path]:
    """Kind of an artifact, and its file or folder.

    Raises:
        UserError: it is none of those that can be measured.
    """
    file = Path(path)
    if file.is_file() and file.suffix == ".gguf":
        return "gguf", file
    if (file / "export.json").exists():
        try:
            kind = json.loads((file / "export.json").read_text(encoding="utf-8")).get("to", "onnx")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{file / 'export.json'}: damaged ({error})") from None
        if kind in {"onnx", "pt2", "aoti", "openvino"}:
            return kind, file
        raise UserError(f"{path}: files of {kind} are measured on their own devices, not here")
    return "miniformer", Path(resolve_model(path))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return sum(item.stat().st_size for item in files)


def _measure(kind: str, path: Path, workload: Workload) -> dict[str, float]:
    """Starts a process; the time of its first result is that of the line it prints."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    if workload.threads:
        environment["OMP_NUM_THREADS"] = str(workload.threads)
    start_time = time.perf_counter()
    command = [sys.executable, str(_CHILD), kind, str(path.absolute()), json.dumps(workload)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        lines = []
        first = None
        for line in process.stdout:
            if line == "first\n":
                first = time.perf_counter() - start_time
            lines.append(line)
        _, errors = process.communicate()
    if process.returncode != 0 or first is None:
        reason = (errors.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{path}: cannot be measured: {reason}")
    results: dict[str, float] = json.loads(lines[-1])
    return {"first_s": first, **results}


def format_table(results: Sequence[dict[str, Any]]) -> str:
    """The medians as a text."""
    rows = [["", "kind", *(heading for _, heading, _ in _COLUMNS)]]
    for result in results:
        cells = [
            f"{result[name]:.{decimals}f}" if name in result else ""
            for name, _, decimals in _COLUMNS
        ]
        rows.append([result["path"], result["kind"], *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
