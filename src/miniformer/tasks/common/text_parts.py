"""Texts of which only some parts are learned: a list of {"text": ..., "learn": true or false}.

A conversation is a list of messages, {"role": ..., "content": ...}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from miniformer.config import UserError
from miniformer.data.batching.columnar import Example
from miniformer.data.conversations.messages import ASSISTANT, is_chat
from miniformer.data.reading.records import Record
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.input_encoding import ids_to_array

Text = str | Sequence[Mapping[str, Any]]  # of a record: a text, or its parts


def text_parts(text: Text) -> Iterator[tuple[str, bool]]:
    """Yields the parts of a text, and for each if it is learned; of a conversation, contents."""
    if isinstance(text, str):
        yield text, True
    elif is_chat(text):
        for message in text:
            is_answer = message["role"] == ASSISTANT
            yield message["content"], is_answer and message.get("learn", True)
    else:
        for part in text:
            yield part["text"], part.get("learn", True)


def learned_text(text: Text) -> str:
    """The learned parts of a text."""
    return "".join(part for part, learn in text_parts(text) if learn)


def text_prompt(text: Text) -> str:
    """The parts before the first learned one; "" for a text without parts."""
    prompt = ""
    for part, learn in text_parts(text):
        if learn:
            return prompt
        prompt += part
    return prompt


def encode_parts(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    prefix: list[int],
    suffix: list[int],
    running_text: bool,
) -> list[Example]:
    """Examples with `ids`, `learn` and `bytes`, each part of a text encoded on its own.

    Args:
        records: records with a `text`.
        tokenizer: the tokenizer.
        prefix, suffix: token ids around a text.
        running_text: texts may continue one another; false: they are packed whole.

    Returns:
        `ids`, int [T]. `learn`, bool [T], belongs to the token that follows each one: the label of
        the last one is learned if the last part is. `bytes`: UTF-8 bytes of the learned parts.

    Raises:
        UserError: a text continues another one, and is to be packed whole.
    """
    if not running_text and any(record.get("continues") for record in records):
        raise UserError(
            "task_config: packing=best_fit is for records, and the data is running text; leave "
            "packing out"
        )
    parts = [list(text_parts(record["text"])) for record in records]
    encoded = iter(tokenizer.encode_batch([text for row in parts for text, _ in row]))
    examples = []
    for record, row in zip(records, parts, strict=True):
        prefixed = not record.get("continues")
        ids, learned = (list(prefix), [True] * len(prefix)) if prefixed else ([], [])
        for _, learn in row:
            part = next(encoded)
            ids += part
            learned += [learn] * len(part)
        if prefixed:
            ids += suffix
        learned += [row[-1][1]] * (len(ids) - len(learned) + 1)  # the end, and what follows it
        examples.append(
            {
                "ids": ids_to_array(ids, tokenizer),
                "learn": np.array(learned[1:], dtype=bool),
                "bytes": len(learned_text(record["text"]).encode()),
            }
        )
    return examples
