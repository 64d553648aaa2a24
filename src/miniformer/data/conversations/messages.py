"""Records of language modeling: texts, parts of texts, and conversations.

{"text": "..."}                                   a text, or a list of its parts
{"prompt": "...", "completion": "..."}            two parts, of which the second is learned
{"messages": [{"role": "user", "content": "..."}, ...]}
{"prompt": [messages], "completion": [messages]}  a conversation, of which the end is learned
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from miniformer.config.strict import TYPE_NAMES
from miniformer.data.reading.schema import DerivedCheck, check_text_or_parts

Messages = Sequence[Mapping[str, Any]]
CheckTemplate = Callable[[Messages], str | None]

ROLES = ("system", "developer", "user", "assistant", "tool")
ASSISTANT = "assistant"
_FIRST = ("system", "developer")
_OTHER_NAMES = {"human": "user", "gpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT}
_KEYS = {"from": "role", "value": "content"}


def is_chat(text: Any) -> bool:
    """True for a list of messages, false for a text and its parts."""
    return isinstance(text, list) and bool(text) and isinstance(text[0], Mapping) and (
        "role" in text[0] or "from" in text[0]
    )  # fmt: skip


def text_check(learn_prompt: bool, check_template: CheckTemplate | None = None) -> DerivedCheck:
    """The check of `text`, which may be derived from messages, or a prompt and a completion.

    Args:
        learn_prompt: prompts are learned, too.
        check_template: messages -> None, or the problem of the chat template with them.
    """
    return DerivedCheck(
        partial(_check_text, check_template=check_template),
        partial(_derive_text, learn_prompt=learn_prompt),
        sources={"prompt": _check_part, "completion": _check_part, "messages": check_messages},
    )


def check_messages(value: Any, *, needs_answer: bool = True, answer: bool = False) -> str | None:
    """Checks a conversation: roles, contents, and the order of the turns.

    Args:
        value: list of messages.
        needs_answer: an assistant turn is required.
        answer: the messages follow a prompt, so that the first one is an assistant's.
    """
    if not isinstance(value, list):
        return f"must be a list of messages, not {_describe(value)}"
    if not value:
        return "is an empty list; it needs a message, or leave the record out"
    for number, message in enumerate(value, 1):
        if problem := _message_problem(message):
            return f"message {number} {problem}"
    roles = [message["role"] for message in value]
    previous = "user" if answer else None
    for number, role in enumerate(roles, 1):
        if problem := _order_problem(previous, role):
            return f"message {number} {problem}"
        previous = role
    if needs_answer and ASSISTANT not in roles:
        return "has no assistant turn, so that nothing is learned; leave the record out"
    return None


def _message_problem(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        example = '{"role": "user", "content": "..."}'
        return f"is {_describe(message)}; each is an object such as {example}"
    for key, name in _KEYS.items():
        if name not in message and key in message:
            return (
                f"has {key!r} and no {name!r}; run miniformer data convert FILE OUT --from sharegpt"
            )
    for name in ("role", "content"):
        if name not in message:
            return f"has no {name!r} (it has {', '.join(map(repr, message)) or 'nothing'}); add it"
    role, content = message["role"], message["content"]
    if role not in ROLES:
        hint = f"use {_OTHER_NAMES[role]!r}" if role in _OTHER_NAMES else "one of"
        hint = hint if role in _OTHER_NAMES else f"use one of {', '.join(ROLES)}"
        return f"has the role {role!r}; {hint}"
    if not isinstance(content, str):
        return f"({role}) has {_describe(content)} as content; it must be a string"
    if not content.strip():
        return f"({role}) has an empty content; write a text, or leave the turn out"
    if not isinstance(message.get("learn", True), bool):
        return f"has {_describe(message['learn'])} as learn; it must be true or false"
    return None


def _order_problem(previous: str | None, role: str) -> str | None:
    """Problem of a role after another one; None as `previous`: it is the first."""
    if role in _FIRST and previous is not None:
        return f"is a {role} message after others; it must be the first one"
    if role == "user" and previous == "user":
        return "is a second user turn in a row; join the two, or add the answer between them"
    if role == ASSISTANT and previous == ASSISTANT:
        return "is a second assistant turn in a row; join the two"
    if role == ASSISTANT and previous in (None, *_FIRST):
        return "is an assistant turn without a user turn before it; add the question"
    if role == "tool" and previous not in (ASSISTANT, "tool"):
        return "is a tool result that follows no assistant turn; put it after the call"
    return None


def _check_text(value: Any, *, check_template: CheckTemplate | None) -> str | None:
    if not is_chat(value):
        return check_text_or_parts(value)
    problem = check_messages(value)
    return problem if problem or check_template is None else check_template(value)


def _check_part(value: Any) -> str | None:
    """Checks a prompt or a completion: a string, or a list of messages."""
    if isinstance(value, str):
        return None
    if not isinstance(value, list):
        return f"must be a string or a list of messages, not {_describe(value)}"
    is_answer = bool(value) and isinstance(value[0], Mapping) and value[0].get("role") == ASSISTANT
    return check_messages(value, needs_answer=is_answer, answer=is_answer)


def _derive_text(record: Mapping[str, Any], *, learn_prompt: bool) -> Any:
    """The text of a record without one; None: it has no other form of it either."""
    if {"prompt", "completion"} <= record.keys():
        prompt, completion = record["prompt"], record["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            # A message without keys is left to the check.
            first = [{**item, "learn": learn_prompt} if isinstance(item, Mapping) else item
                     for item in prompt]  # fmt: skip
            return [*first, *completion]
        if isinstance(prompt, list) or isinstance(completion, list):
            return [{"text": prompt}, {"text": completion}]  # the check names the wrong one
        return [{"text": prompt, "learn": learn_prompt}, {"text": completion}]
    return record.get("messages")


def _describe(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return TYPE_NAMES.get(type(value), f"a {type(value).__name__}")
