"""ChatSession: a conversation with a loaded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import UserError
from miniformer.data.chat import TEMPLATES, read_template
from miniformer.generation.api import GenerationInput
from miniformer.tasks.common.chat_texts import answer_end, template_of
from miniformer.tasks.common.text_generation import TextGenerationTask

Message = dict[str, Any]


class ChatSession:
    """Messages so far, and the answers of a model to them.

    Args:
        pipeline: a causal language model.
        template: a chat template, see `template_text`; None: that of the model.
        system: the system message; None: none.
        **options: fields of `GenerationConfig` that override those of the model.

    Attributes:
        messages: the conversation.
        notes: what happened in the last answer that a user needs to know, such as turns that were
            left out.

    Raises:
        UserError: the model has no template and none is given, or generates no text.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        template: str | None = None,
        system: str | None = None,
        **options: Any,
    ) -> None:
        task, tokenizer = pipeline.task, pipeline.tokenizer
        if not isinstance(task, TextGenerationTask) or hasattr(pipeline.model, "decoder"):
            raise UserError(
                f"chat needs a causal language model; this one is for {task.name}: use generate or "
                "predict"
            )
        if tokenizer is None:
            raise UserError("chat needs a model with a tokenizer; this one takes token ids")
        if template is None:  # an adapter brings its own with its task
            template = getattr(task, "chat_template", None)
        if template is None and pipeline.directory is not None:
            template = read_template(pipeline.directory)
        if template is None:
            raise UserError(
                f"{pipeline.directory or 'the model'}: a base model without a chat template; "
                "continue texts with generate, train it on messages (miniformer train FILE "
                "--init_from DIR), put a chat_template.jinja into its directory, or set "
                f"chat_template to one of {', '.join(TEMPLATES)}"
            )
        self._task, self._tokenizer = task, tokenizer
        self._model, self._template = pipeline.model, template_of(template, tokenizer)
        config = pipeline.generation.override(options)
        stops = [*(config.stop_token_ids or []), *answer_end(template, tokenizer)]
        self._options = config.override({"stop_token_ids": list(dict.fromkeys(stops)) or None})
        if self._options.eos_id is None:
            self._options = self._options.override({"eos_id": tokenizer.eos_id})
        self._system: list[Message] = [] if system is None else [_message("system", system)]
        self.messages: list[Message] = list(self._system)
        self.notes: list[str] = []

    def reset(self) -> None:
        """Starts anew, with the system message."""
        self.messages = list(self._system)

    def ask(self, text: str) -> Iterator[str]:
        """Yields the answer to a message in pieces.

        The message and the answer, or what there is of it when the iterator is closed, are then
        part of the conversation. If the context is full, the oldest turns are left out.

        Raises:
            UserError: the message is empty, or alone longer than the context, or the template
                refuses it; the conversation is then as before.
        """
        if not text.strip():
            raise UserError("the message is empty; write a text")
        self.notes = []
        ids, options = self._prompt([*self.messages, _message("user", text)])
        self.messages.append(_message("user", text))
        parts: list[str] = []
        stream = self._task.stream_input(
            self._model, self._tokenizer, GenerationInput(ids), options
        )
        try:
            for part in stream:
                parts.append(part)
                yield part
        finally:
            self.messages.append(_message("assistant", "".join(parts).strip() or "..."))
        length = len(self._tokenizer.encode("".join(parts)))
        if length >= options.max_new_tokens - 1:
            self.notes.append(
                f"the answer was stopped after {options.max_new_tokens} tokens; raise "
                "max_new_tokens"
                if options.max_new_tokens == self._options.max_new_tokens
                else "the answer was stopped at the end of the context; use /reset"
            )

    def save(self, path: Path) -> None:
        """Appends the conversation to a `.jsonl` file, as a record for training.

        Raises:
            UserError: there is no answer yet, or the file cannot be written.
        """
        if not any(message["role"] == "assistant" for message in self.messages):
            raise UserError("there is no answer to save yet")
        if path.suffix != ".jsonl":
            raise UserError(f"{path}: the conversation is a JSON line; name a .jsonl file")
        line = json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None

    def _prompt(self, messages: list[Message]) -> tuple[list[int], Any]:
        """Token ids of the prompt, and the options with `max_new_tokens` that fit."""
        room = self._model.config.max_seq_len
        needed = min(self._options.max_new_tokens, max(1, room // 4))
        first = len(self._system)
        dropped = 0
        while True:
            recent = messages[:first] + messages[first + dropped :]
            ids = self._template.encode(recent, self._tokenizer)
            if len(ids) + needed <= room:
                break
            if dropped + 2 >= len(messages) - first:  # the message itself remains
                if len(ids) < room:
                    break
                raise UserError(
                    f"the message has {len(ids):,} tokens with its template, and the context of "
                    f"the model has {room:,}; shorten it"
                )
            dropped += 2
        if dropped:
            self.notes.append(
                f"the context of {room:,} tokens is full: the first {dropped} messages are left "
                "out; /reset starts anew"
            )
        limit = min(self._options.max_new_tokens, room - len(ids))
        return ids, self._options.override({"max_new_tokens": limit})


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
