"""Conversion of files of conversations in other layouts to `{"messages": [...]}` lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.data.conversations.messages import ASSISTANT, check_messages
from miniformer.data.reading.records import JSONLinesDataset
from miniformer.utils.atomic import atomic_path

_ROLES = {
    "human": "user", "user": "user", "gpt": ASSISTANT, "assistant": ASSISTANT,
    "chatgpt": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT, "model": ASSISTANT,
    "function_call": ASSISTANT, "system": "system", "tool": "tool", "observation": "tool",
}  # fmt: skip


class _ConversionError(Exception):
    """Problem of a record: a phrase that follows "the record"."""


def from_sharegpt(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Messages of `{"conversations": [{"from": "human", "value": "..."}, ...]}`.

    A field `system` is the first message.
    """
    turns = record.get("conversations", record.get("conversation"))
    if not isinstance(turns, list):
        fields = ", ".join(map(repr, record)) or "nothing"
        raise _ConversionError(
            f"has no list 'conversations' (it has {fields}); is it in the layout sharegpt?"
        )
    messages = _system(record)
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or not {"from", "value"} <= turn.keys():
            raise _ConversionError(f"has no 'from' and 'value' in turn {number}")
        role = _ROLES.get(str(turn["from"]).lower())
        if role is None:
            raise _ConversionError(
                f"has {turn['from']!r} as 'from' of turn {number}; use one of "
                f"{', '.join(sorted(_ROLES))}"
            )
        messages.append({"role": role, "content": turn["value"]})
    return messages


def from_alpaca(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Messages of `{"instruction": "...", "input": "...", "output": "..."}`.

    The input follows the instruction after an empty line. `system` is the first message;
    `history`, a list of [question, answer], comes before the instruction.
    """
    for name in ("instruction", "output"):
        if not isinstance(record.get(name), str):
            fields = ", ".join(map(repr, record)) or "nothing"
            raise _ConversionError(
                f"has no text {name!r} (it has {fields}); is it in the layout alpaca?"
            )
    messages = _system(record)
    for number, pair in enumerate(record.get("history") or [], 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise _ConversionError(f"has no question and answer in part {number} of 'history'")
        messages += [
            {"role": "user", "content": pair[0]},
            {"role": ASSISTANT, "content": pair[1]},
        ]
    source = record.get("input") or ""
    question = record["instruction"] + (f"\n\n{source}" if str(source).strip() else "")
    return [
        *messages,
        {"role": "user", "content": question},
        {"role": ASSISTANT, "content": record["output"]},
    ]


LAYOUTS: dict[str, Callable[[Mapping[str, Any]], list[dict[str, Any]]]] = {
    "sharegpt": from_sharegpt,
    "alpaca": from_alpaca,
}


def convert_file(source: str, out: Path, layout: str, *, drop_invalid: bool) -> tuple[int, int]:
    """Writes the conversations of a file as JSON lines.

    Args:
        source: a `.json` or `.jsonl` file, or another format with the columns.
        out: the file to write; it must not exist.
        layout: one of `LAYOUTS`.
        drop_invalid: leave out records that are invalid; false: they are errors.

    Returns:
        The numbers of conversations that are written, and left out.

    Raises:
        UserError: `out` exists or cannot be written, the source cannot be read, or a record is
            invalid, with file:line.
    """
    if out.exists():
        raise UserError(f"{out}: exists; name another file")
    if out.suffix != ".jsonl":
        raise UserError(f"{out}: the conversations are JSON lines; name a .jsonl file")
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist; create it")
    counts = [0, 0]
    records = JSONLinesDataset(source, {})

    def lines() -> Iterator[str]:
        for index, record in enumerate(records):
            messages, problem = _convert(record, layout)
            counts[problem is not None] += 1
            if problem is None:
                yield json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
            elif not drop_invalid:
                raise UserError(
                    f"{records.location(index)}: the record {problem}; correct it, or leave such "
                    "records out by --invalid drop"
                )

    try:
        with atomic_path(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(lines())
            if not counts[0]:
                raise UserError(f"{records.name}: each of {counts[1]:,} records is invalid")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    return counts[0], counts[1]


def _convert(record: Mapping[str, Any], layout: str) -> tuple[list[dict[str, Any]], str | None]:
    """The messages of a record, and its problem."""
    try:
        messages = LAYOUTS[layout](record)
    except _ConversionError as error:
        return [], str(error)
    return messages, check_messages(messages)


def _system(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The system message of a record, if it has one."""
    text = record.get("system")
    return [{"role": "system", "content": text}] if isinstance(text, str) and text.strip() else []
