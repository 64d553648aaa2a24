"""Chat templates: messages as one prompt.

A template is Jinja, as in Hugging Face's `chat_template.jinja` and `tokenizer_config.json`, and
runs in a sandbox. Texts of messages are encoded apart from the template, so that a message which
spells a special token does not become one.
"""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from miniformer.config import UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer

# Templates of this project, by name.
TEMPLATES = {
    "plain": (
        "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "question_answer": (
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}Answer: {{ message.content }}\n\n"
        "{% elif message.role == 'system' %}{{ message.content }}\n\n"
        "{% else %}Question: {{ message.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}Answer:{% endif %}"
    ),
}
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
        template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a JSON object: {error}") from None
    if isinstance(template, list):  # several by name
        named = {item.get("name"): item.get("template") for item in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


class ChatTemplate:
    """Renders messages.

    Args:
        source: text of the template, or the name of one of `TEMPLATES`.
        special_tokens: further variables of the template, such as `bos_token`.

    Raises:
        UserError: the template is no valid Jinja, or jinja2 is not installed.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise UserError(
                'chat templates need the package jinja2; pip install "miniformer[serve]"'
            ) from None
        self._error = TemplateError
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        environment.filters["tojson"] = lambda value, **options: json.dumps(
            value, ensure_ascii=False, indent=options.get("indent")
        )
        self._variables = dict(special_tokens or {})
        try:
            self._template = environment.from_string(TEMPLATES.get(source, source))
        except TemplateError as error:
            raise UserError(f"the chat template is invalid: {error}") from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt of messages as one text.

        Raises:
            UserError: the template refuses the messages, fails, or drops the last message.
        """
        try:
            text = self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except self._error as error:
            raise UserError(f"the chat template refuses the messages: {error}") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise UserError(f"the chat template fails: {error}") from None
        if len(text) > _MAX_LENGTH:
            raise UserError(f"the chat template gives more than {_MAX_LENGTH:,} characters")
        return text

    def encode(self, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> list[int]:
        """Token ids of the prompt; no text of a message becomes a special token.

        Raises:
            UserError: see `render`; or the template changes the text of messages, and one spells a
                special token.
        """
        text = self.render(messages)
        encode = _template_encoder(tokenizer.backend.to_str())
        contents = [str(message.get("content") or "") for message in messages]
        marks = [secrets.token_hex(16) for _ in messages]
        marked = self.render(
            [{**item, "content": mark} for item, mark in zip(messages, marks, strict=True)]
        )
        parts, rest = [], marked
        for mark, content in zip(marks, contents, strict=True):
            before, separator, rest = rest.partition(mark)
            parts.append((before, content if separator else ""))
        if "".join(before + content for before, content in parts) + rest != text:
            for content in contents:
                if (token := _spelled_token(content, tokenizer)) is not None:
                    raise UserError(
                        f"a message contains {token!r}, a special token of the model, and the "
                        "chat template changes texts of messages; leave it out"
                    )
            return encode(text)
        ids: list[int] = []
        for before, content in parts:
            ids += encode(before) if before else []
            ids += tokenizer.encode(content) if content else []  # special tokens stay text
        return [*ids, *(encode(rest) if rest else [])]


@functools.lru_cache(maxsize=8)
def _template_encoder(serialized: str) -> Callable[[str], list[int]]:
    """Encodes text of a template, in which special tokens are recognized."""
    backend = tokenizers.Tokenizer.from_str(serialized)
    backend.no_truncation()
    backend.no_padding()
    return lambda text: backend.encode(text, add_special_tokens=False).ids


def _spelled_token(text: str, tokenizer: Tokenizer) -> str | None:
    """The first special token that a text spells; None: there is none."""
    added = tokenizer.backend.get_added_tokens_decoder().values()
    spelled = [token.content for token in added if token.content and token.content in text]
    return min(spelled, key=text.index) if spelled else None


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
