"""The example of `miniformer data check`: a record with marks around what is learned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miniformer.data.inspect import SplitReport

_MAX_CHARS = 2000
_LITERAL_TOKEN = re.compile(r"<\|?/?\w+\|?>|\[/?\w+\]")


def template_of_directory(task: str, tokenizer: str | None) -> dict[str, str]:
    """The chat template of a model directory, as an option of the task; {}: there is none."""
    if task != "language_modeling" or tokenizer is None or not Path(tokenizer).is_dir():
        return {}
    from miniformer.data.chat import read_template

    template = read_template(Path(tokenizer))
    return {} if template is None else {"chat_template": template}


def learned_example(task: Any, split: SplitReport, tokenizer: str | None) -> Iterator[str]:
    """Lines with the first record of parts or messages; none for other records."""
    if task.name != "language_modeling":
        return
    from miniformer.data.conversations.messages import is_chat
    from miniformer.tasks.common.text_parts import text_parts

    record = split.valid_records()[0]
    text = record["text"]
    if isinstance(text, str):
        return
    parts = list(_chat_parts(task, text, tokenizer) if is_chat(text) else text_parts(text))
    marked = "".join(f"[[{part}]]" if learn else part for part, learn in parts)
    yield f"an example ({split.records.location(int(split.rows[0]))}); learned: in [[ ]]"
    shown = marked if len(marked) <= _MAX_CHARS else marked[:_MAX_CHARS] + "..."
    yield from (f"  {line}" for line in shown.split("\n"))


def _chat_parts(task: Any, messages: Any, path: str | None) -> Iterator[tuple[str, bool]]:
    """Parts of a rendered conversation, and for each if it is learned."""
    from miniformer.data.conversations.learned import find_learned
    from miniformer.data.tokenizers.tokenizer import Tokenizer
    from miniformer.tasks.common.chat_texts import template_of

    if path in (None, "byte"):  # which tokens are special is read off the template
        tokenizer = Tokenizer.train("byte", [])
        literal = _LITERAL_TOKEN.findall(task.chat_template)
        tokenizer.add_special_tokens([*task.special_tokens(), *literal])
    else:
        tokenizer = Tokenizer.from_path(path)
    template = template_of(task.chat_template, tokenizer)
    learned = find_learned(template, tokenizer, messages, task.train_on)
    position = 0
    for start, end in learned.spans:
        yield learned.text[position:start], False
        yield learned.text[start:end], True
        position = end
    yield learned.text[position:], False
    if learned.needs_end:
        yield tokenizer.eos_token, True
