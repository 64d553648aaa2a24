"""The model card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from miniformer.doctor.checks.files import is_bare
from miniformer.doctor.inputs import ModelInputs
from miniformer.doctor.outcome import NotApplicable


def check_card(directory: Path, model: Any) -> list[str]:
    """README.md names the model, its size and its use, and its metrics are numbers."""
    path = directory / "README.md"
    if is_bare(directory):
        raise NotApplicable("a bare model has no card")
    if not path.is_file():
        return [f"{path} does not exist"]
    return [*_problems(path.read_text(encoding="utf-8", errors="replace"), model)]


def _problems(card: str, model: Any) -> Iterator[str]:
    if re.search(r"^# \S", card, re.MULTILINE) is None:
        yield "README.md has no heading"
    if "miniformer.load(" not in card:
        yield "README.md has no example of miniformer.load"
    count = model.config.num_params(seq2seq=ModelInputs(model).seq2seq)
    if f"{count:,} parameters" not in card:
        yield f"README.md does not state {count:,} parameters"
    for name, value in re.findall(r"^\| ([^|]+) \| (nan|-?inf) \|$", card, re.MULTILINE | re.I):
        yield f"README.md: the metric {name} is {value}"
