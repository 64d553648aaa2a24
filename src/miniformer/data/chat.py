"""Chat templates: messages as one prompt.

A template is Jinja, as in Hugging Face's `chat_template.jinja` and `tokenizer_config.json`, and
runs in a sandbox. Texts of messages are encoded apart from the template, so that a message which
spells a special token does not become one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from miniformer.config import UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.utils.jsonl import read_json

# Templates of this project, by name.
TEMPLATES = {
    "plain": (
        "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
        "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "question_answer": (
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}Answer: {{ message.content }}{{ eos_token }}\n\n"
        "{% elif message.role == 'system' %}{{ message.content }}\n\n"
        "{% else %}Question: {{ message.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}Answer:{% endif %}"
    ),
}
# Tokens that templates of this project need in the vocabulary.
TEMPLATE_TOKENS = {"chatml": ("<|im_start|>", "<|im_end|>")}
_MAX_LENGTH = 1_000_000  # characters of a rendered prompt


def read_template(directory: Path) -> str | None:
    """The chat template of a model directory; None: it has none.

    Raises:
        UserError: a file is invalid.
    """
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return None
    try:
        template = read_json(path).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a JSON object: {error}") from None
    if isinstance(template, list):  # several by name
        named = {item.get("name"): item.get("template") for item in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


class Segment(NamedTuple):
    """A part of a rendered text.

    Args:
        text: the part.
        message: index of the message whose content it is; None: text of the template.
        generated: it is in a `{% generation %}` block.
    """

    text: str
    message: int | None
    generated: bool


class ChatTemplate:
    """Renders messages.

    Args:
        source: text of the template, or the name of one of `TEMPLATES`.
        special_tokens: further variables of the template, such as `bos_token`.

    Attributes:
        has_generation_tag: the template has `{% generation %}` blocks.

    Raises:
        UserError: the template is no valid Jinja, or jinja2 is not installed.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        try:
            from jinja2 import TemplateError

            from miniformer.data.conversations.sandbox import ChatEnvironment
        except ImportError:
            raise UserError(
                'chat templates need the package jinja2; pip install "miniformer[serve]"'
            ) from None
        self._error, self._environment = TemplateError, ChatEnvironment()
        self._variables = dict(special_tokens or {})
        try:
            self._template = self._environment.from_string(TEMPLATES.get(source, source))
        except TemplateError as error:
            raise UserError(f"the chat template is invalid: {error}") from None
        self.has_generation_tag = self._environment.has_generation_tag

    @classmethod
    def for_tokenizer(cls, source: str, tokenizer: Tokenizer) -> ChatTemplate:
        """A template with the variables `bos_token` and `eos_token` of a tokenizer."""
        bos = tokenizer.backend.id_to_token(tokenizer.bos_id)
        return cls(source, {"bos_token": bos or "", "eos_token": tokenizer.eos_token})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        generation_marks: tuple[str, str] = ("", ""),
    ) -> str:
        """The prompt of messages as one text.

        Raises:
            UserError: the template refuses the messages, fails, or takes too long.
        """
        self._environment.start(generation_marks)
        try:
            text = self._template.render(
                messages=[_without_learn(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except self._error as error:
            raise UserError(f"the chat template refuses the messages: {error}") from None
        except (
            TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError,
            AttributeError,
        ) as error:  # fmt: skip
            raise UserError(f"the chat template fails: {error}") from None
        if len(text) > _MAX_LENGTH:
            raise UserError(f"the chat template gives more than {_MAX_LENGTH:,} characters")
        return text

    def segments(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> list[Segment]:
        """The rendered text in parts: the contents of messages, and the template between them.

        A template may strip the spaces around a content.

        Raises:
            UserError: see `render`; or the template leaves out a content, repeats or changes it.
        """
        text = self.render(messages, add_generation_prompt=add_generation_prompt)
        contents = [str(message.get("content") or "") for message in messages]
        marks = [secrets.token_hex(16) for _ in messages]
        first, last = secrets.token_hex(16), secrets.token_hex(16)
        marked = self.render(
            [{**item, "content": mark} for item, mark in zip(messages, marks, strict=True)],
            add_generation_prompt=add_generation_prompt,
            generation_marks=(first, last),
        )
        number_of = {mark: number for number, mark in enumerate(marks)}
        tokens = re.split("(" + "|".join([*marks, first, last]) + ")", marked)
        present = [number_of[token] for token in tokens if token in number_of]
        for number, message in enumerate(messages):
            if (count := present.count(number)) != 1 and contents[number]:
                problem = f"repeats, {count} times," if count else "leaves out"
                raise UserError(
                    f"the chat template {problem} the content of message {number + 1} "
                    f"({message.get('role')}); use another template"
                )
        segments, position, generated = [], 0, False
        for index, token in enumerate(tokens):
            if token in (first, last):
                generated = token == first
                continue
            message_number = number_of.get(token)
            if message_number is None:
                part = token if text.startswith(token, position) else None
            else:
                rest = next((x for x in tokens[index + 1 :] if x and x not in (first, last)), None)
                part = _find_content(text, position, contents[message_number], rest, number_of)
            if part is None:
                near = next((n for n in map(number_of.get, tokens[index:]) if n is not None), None)
                which = "messages" if near is None else f"message {near + 1}"
                raise UserError(
                    f"the chat template changes the content of {which}; use another template"
                )
            if part:
                segments.append(Segment(part, message_number, generated))
            position += len(part)
        if position != len(text):
            raise UserError("the chat template changes contents of messages; use another template")
        return segments

    def encode(self, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[int]:
        """Token ids of the prompt; no text of a message becomes a special token.

        Raises:
            UserError: see `render`; or the template changes the text of messages, and one spells a
                special token.
        """
        try:
            segments = self.segments(messages, add_generation_prompt=True)
        except UserError:
            text = self.render(messages)
            for message in messages:
                token = spelled_token(str(message.get("content") or ""), tokenizer)
                if token is not None:
                    raise UserError(
                        f"a message contains {token!r}, a special token of the model, and the "
                        "chat template changes texts of messages; leave it out"
                    ) from None
            return tokenizer.encode_template(text).ids
        return encode_segments(segments, tokenizer)


def encode_segments(segments: Sequence[Segment], tokenizer: Tokenizer) -> list[int]:
    """Token ids of a rendered text; special tokens are recognized in the template's parts only."""
    if not any(spells_token(segment, tokenizer) for segment in segments):
        return tokenizer.encode_template("".join(segment.text for segment in segments)).ids
    return [token for segment in segments for token in encode_segment(segment, tokenizer)]


def encode_segment(segment: Segment, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a part by itself."""
    if segment.message is None:
        return tokenizer.encode_template(segment.text).ids
    return tokenizer.encode(segment.text)  # special tokens stay text


def spells_token(segment: Segment, tokenizer: Tokenizer) -> bool:
    """True for the content of a message that spells a special token."""
    return segment.message is not None and spelled_token(segment.text, tokenizer) is not None


def spelled_token(text: str, tokenizer: Tokenizer) -> str | None:
    """The first special token that a text spells; None: there is none."""
    spelled = [token for token in tokenizer.added_tokens if token in text]
    return min(spelled, key=text.index) if spelled else None


def _find_content(
    text: str, position: int, content: str, rest: str | None, marks: Mapping[str, int]
) -> str | None:
    """The content as it is at a position of a text, before `rest`; None: it is changed."""
    for part in (content, content.strip(), content.lstrip(), content.rstrip()):
        end = position + len(part)
        if text.startswith(part, position) and (
            end == len(text) if rest is None else rest in marks or text.startswith(rest, end)
        ):
            return part
    return None


def _without_learn(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without the key `learn`, which is for training."""
    return {key: value for key, value in message.items() if key != "learn"}
