"""Conversations as texts of language modeling: templates, examples, checks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miniformer.config import InputError, UserError
from miniformer.data.batching.columnar import Example
from miniformer.data.chat import TEMPLATE_TOKENS, TEMPLATES, ChatTemplate, read_template
from miniformer.data.conversations.learned import (
    encode_learned,
    find_learned,
    learned_bytes,
    turn_end_ids,
)
from miniformer.data.conversations.messages import Messages, is_chat
from miniformer.data.reading.records import Record
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.input_encoding import ids_to_array

DEFAULT_TEMPLATE = "plain"
_SHOWN_CHARS = 40  # of a conversation in messages


@functools.lru_cache(maxsize=16)
def template_text(setting: str) -> str:
    """The Jinja text of a setting: a name, a text, a file, or a directory with a template.

    Raises:
        UserError: it is none of them.
    """
    if setting in TEMPLATES:
        return TEMPLATES[setting]
    if "{{" in setting or "{%" in setting:
        return setting
    path = Path(setting)
    if path.is_dir():
        if (text := read_template(path)) is None:
            raise UserError(
                f"chat_template: {path} has no chat_template.jinja and no tokenizer_config.json "
                "with a chat_template"
            )
        return text
    if not path.is_file():
        raise UserError(
            f"chat_template: {setting!r} is no file; name a file, a model directory, or one of "
            f"{', '.join(TEMPLATES)}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"chat_template: {path}: cannot be read: {error}") from None


def template_of(setting: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template of a setting for a tokenizer."""
    bos = tokenizer.backend.id_to_token(tokenizer.bos_id)
    return _cached_template(setting, bos or "", tokenizer.eos_token)


@functools.lru_cache(maxsize=16)
def _cached_template(setting: str, bos_token: str, eos_token: str) -> ChatTemplate:
    variables = {"bos_token": bos_token, "eos_token": eos_token}
    return ChatTemplate(template_text(setting), variables)


def template_problem(messages: Messages, setting: str) -> str | None:
    """Problem of a template with checked messages; None: it renders each content once."""
    try:
        _cached_template(setting, "<s>", "</s>").segments(messages)
    except UserError as error:
        return f"cannot be rendered: {error}"
    return None


def special_tokens(setting: str | None) -> tuple[str, ...]:
    """Tokens that a template of this project needs."""
    text = None if setting is None else template_text(setting)
    return next((x for name, x in TEMPLATE_TOKENS.items() if TEMPLATES[name] == text), ())


def require_tokens(setting: str | None, tokenizer: Tokenizer) -> None:
    """Checks that a tokenizer has the tokens of a template.

    Raises:
        UserError: it lacks some.
    """
    tokens = special_tokens(setting)
    missing = [token for token in tokens if tokenizer.backend.token_to_id(token) is None]
    if missing:
        names = " ".join(f"'{token}'" for token in missing)
        raise UserError(
            f"chat_template: the tokenizer has no {' and no '.join(missing)}; add them: "
            f"miniformer tokenizer add-tokens DIR OUT {names}, or use the template "
            f"{DEFAULT_TEMPLATE}"
        )


def answer_end(setting: str, tokenizer: Tokenizer) -> list[int]:
    """Ids other than EOS that end an answer; [] if it has no such token."""
    try:
        ids = turn_end_ids(template_of(setting, tokenizer), tokenizer)
    except UserError:
        return []
    return [] if ids == [tokenizer.eos_id] else ids


def encode_mixed(
    task: Any, records: Sequence[Record], tokenizer: Tokenizer, seq_len: int
) -> list[Example]:
    """Examples of records of which some are conversations; `task` encodes the others.

    Args:
        task: a `LanguageModeling`.
        records, tokenizer, seq_len: see `Task.encode`.

    Raises:
        InputError, UserError: see `encode_chats`; or the task has no template or cuts texts.
    """
    if task.chat_template is None or task.packing != "best_fit":
        raise UserError(
            "task_config: the data has conversations, which are packed whole; set packing: "
            "best_fit and a chat_template"
        )
    chats = [n for n, record in enumerate(records) if is_chat(record["text"])]
    texts = [n for n in range(len(records)) if n not in set(chats)]
    try:
        examples = encode_chats(
            [records[n]["text"] for n in chats], tokenizer, setting=task.chat_template,
            train_on=task.train_on, overlong=task.overlong, seq_len=seq_len,
        )  # fmt: skip
    except InputError as error:
        raise InputError({chats[n]: x for n, x in error.problems.items()}) from None
    examples += task.encode([records[n] for n in texts], tokenizer, seq_len)
    by_record = dict(zip([*chats, *texts], examples, strict=True))
    return [by_record[n] for n in range(len(records))]


def encode_chats(
    conversations: Sequence[Messages],
    tokenizer: Tokenizer,
    *,
    setting: str,
    train_on: str,
    overlong: str,
    seq_len: int,
) -> list[Example]:
    """Examples of conversations: `ids`, `learn` and `bytes` as of `encode_parts`, and `dropped`.

    Args:
        conversations: checked messages.
        tokenizer: the tokenizer.
        setting: the chat template.
        train_on: see `find_learned`.
        overlong: drop: a conversation of more than `seq_len` tokens has no tokens, and `dropped`
            is their number; refuse: it is an error.
        seq_len: tokens of a window.

    Raises:
        InputError: a conversation is too long.
        UserError: the template fails.
    """
    template = template_of(setting, tokenizer)
    examples = []
    for number, messages in enumerate(conversations):
        learned = find_learned(template, tokenizer, messages, train_on)
        ids, learned_ids = encode_learned(learned, tokenizer)
        mask: list[bool] = learned_ids.tolist()
        if learned.needs_end:
            ids, mask = [*ids, tokenizer.eos_id], [*mask, True]
        dropped = 0
        if len(ids) > seq_len:
            if overlong == "refuse":
                start = messages[0]["content"][:_SHOWN_CHARS]
                raise InputError(
                    {
                        number: f"has {len(ids):,} tokens, more than seq_len={seq_len} "
                        f"({start!r}...); raise seq_len, shorten it, or set overlong: drop"
                    }
                )
            dropped, ids, mask = len(ids), [], []
        examples.append(
            {
                "ids": ids_to_array(ids, tokenizer),
                "learn": np.array([*mask[1:], False][: len(ids)], dtype=bool),
                "bytes": 0 if dropped else learned_bytes(messages, train_on),
                "dropped": dropped,
            }
        )
    return examples
