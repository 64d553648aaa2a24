"""Inputs of a user, and the answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from miniformer.config import InputError, UserError
from miniformer.data.reading import schema
from miniformer.tasks.tagging.schemes import find_spans


def split_inputs(inputs: Sequence[Any]) -> list[list[str]]:
    """Tokens of a user's inputs: lists of tokens, or texts, which are split at whitespace.

    Raises:
        InputError: an input has another type.
    """
    rows = [item.split() if isinstance(item, str) else item for item in inputs]
    rows = [list(row) if isinstance(row, tuple) else row for row in rows]
    problems = {}
    for number, row in enumerate(rows):
        problem = None if row == [] else schema.check_tokens(row)
        if problem is not None:
            problems[number] = f"{problem}; an input is a text or a list of tokens"
    if problems:
        raise InputError(problems)
    return rows


def is_single_input(value: Any) -> bool:
    """True for a text, or for the tokens of one: a list of strings.

    Raises:
        UserError: a string of a list has whitespace, as if it were one of several texts.
    """
    if isinstance(value, str):
        return True
    is_list = isinstance(value, list | tuple) and bool(value)
    if not (is_list and all(isinstance(item, str) for item in value)):
        return False
    for number, token in enumerate(value, 1):
        if token and token.split() != [token]:
            raise UserError(
                f"a list of strings is the tokens of one input, and token {number} has whitespace: "
                f"{token[:60]!r}; for several texts use predict_all(texts), for tokens with "
                "whitespace predict([tokens])"
            )
    return True


def make_answer(
    tokens: list[str], tags: list[Any], scores: list[float], *, scheme: str | None, strict: bool
) -> dict[str, Any]:
    """Answer to an input; see `TokenClassification.predict`.

    Args:
        tokens, tags, scores: tokens, their tags, and the probabilities of these.
        scheme: of the tags; None: they are no spans.
        strict: see `find_spans`.
    """
    answer: dict[str, Any] = {"tokens": tokens, "tags": tags, "scores": scores}
    if scheme is not None:
        answer["entities"] = [
            {
                "type": kind,
                "start": start,
                "end": end,
                "text": " ".join(tokens[start:end]),
                "score": sum(scores[start:end]) / (end - start),
            }
            for kind, start, end in find_spans(tags, scheme, strict=strict)
        ]
    return answer
