"""Learned tokens of a conversation: the assistants' contents and the end of their turns.

    text    | <|user|>Hi<|end|><|assistant|>Hello<|end|><|user|>...
    learned |                               ++++++++++++

They follow from the messages: a text begins as its first messages do, with the prompt for an
answer. A template with `{% generation %}` blocks marks them itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from miniformer.config import UserError
from miniformer.data.chat import ChatTemplate, Segment, encode_segment, spells_token
from miniformer.data.conversations.messages import ASSISTANT, Messages
from miniformer.data.tokenizers.tokenizer import Tokenizer

Span = tuple[int, int]  # characters of a rendered text
_SPACES = re.compile(r"\s*")


class LearnedText(NamedTuple):
    """A rendered conversation.

    Args:
        segments: its parts.
        spans: what is learned of it.
        needs_end: the template ends the last answer with no special token, so that EOS follows.
    """

    segments: list[Segment]
    spans: list[Span]
    needs_end: bool

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(segment.text for segment in self.segments)


def find_learned(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Messages, train_on: str
) -> LearnedText:
    """Renders a conversation and finds what is learned of it.

    Args:
        template, tokenizer: of the model.
        messages: checked messages; those with `learn` false are not learned.
        train_on: assistant, completion (what follows the prompt) or all.

    Raises:
        UserError: the template refuses the messages, fails, or drops or changes a content.
    """
    segments = template.segments(messages)
    text = "".join(segment.text for segment in segments)
    contents = _content_spans(segments)
    answers = [n for n, message in enumerate(messages) if message["role"] == ASSISTANT]
    ends = {n: _turn_end(template, tokenizer, messages, n, text, contents) for n in answers}
    needs_end = answers[-1:] == [len(messages) - 1] and not ends[answers[-1]][1]
    if train_on == "all":
        return LearnedText(segments, [(0, len(text))], needs_end)
    if train_on == "completion":
        first = _num_prompt_messages(messages)
        start = _answer_start(template, messages, first, text, contents)
        return LearnedText(segments, [(start, len(text))], needs_end)
    learned = [n for n in answers if messages[n].get("learn", True)]
    if template.has_generation_tag:
        return _marked(segments, messages, contents, learned, ends)
    spans = [(_answer_start(template, messages, n, text, contents), ends[n][0]) for n in learned]
    return LearnedText(segments, spans, needs_end and len(messages) - 1 in learned)


def encode_learned(learned: LearnedText, tokenizer: Tokenizer) -> tuple[list[int], np.ndarray]:
    """Token ids of a conversation, and which of them are learned, bool [T].

    The ids are those of the whole text, unless a message spells a special token, or a token is
    learned in part: then those of each part.
    """
    bounds = sorted({bound for span in learned.spans for bound in span})
    if not any(spells_token(segment, tokenizer) for segment in learned.segments):
        encoding = tokenizer.encode_template(learned.text)
        starts, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        if not any(((starts < bound) & (ends > bound)).any() for bound in bounds):
            mask = np.zeros(len(ends), dtype=bool)
            for start, end in learned.spans:
                mask |= (ends > start) & (ends <= end)
            return encoding.ids, mask
    ids: list[int] = []
    mask_parts: list[bool] = []
    for part, start in _cut(learned.segments, bounds):
        part_ids = encode_segment(part, tokenizer)
        ids += part_ids
        mask_parts += [any(a <= start < b for a, b in learned.spans)] * len(part_ids)
    return ids, np.array(mask_parts, dtype=bool)


def turn_end_ids(template: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    """The special token that ends an answer, [1]; [] if the template writes none.

    Raises:
        UserError: the template fails.
    """
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "A"},
        {"role": ASSISTANT, "content": "B"},
    ]
    segments = template.segments(messages)
    text = "".join(segment.text for segment in segments)
    start = _content_spans(segments)[1][1]
    end, is_special = _turn_end(template, tokenizer, messages, 1, text, _content_spans(segments))
    return tokenizer.encode_template(text[start:end].strip()).ids if is_special else []


def learned_bytes(messages: Messages, train_on: str) -> int:
    """UTF-8 bytes of the contents that are learned."""
    first = _num_prompt_messages(messages) if train_on == "completion" else 0
    return sum(
        len(message["content"].encode())
        for number, message in enumerate(messages)
        if train_on == "all"
        or (number >= first if train_on == "completion" else _is_learned(message))
    )


def _is_learned(message: Mapping[str, Any]) -> bool:
    return message["role"] == ASSISTANT and bool(message.get("learn", True))


def _num_prompt_messages(messages: Messages) -> int:
    """Messages before the completion: those that are marked, or all before the last answer."""
    marked = next((n for n, m in enumerate(messages) if m.get("learn", True)), 0)
    if marked:
        return marked
    return max(n for n, message in enumerate(messages) if message["role"] == ASSISTANT)


def _content_spans(segments: Sequence[Segment]) -> dict[int, Span]:
    spans, position = {}, 0
    for segment in segments:
        if segment.message is not None:
            spans[segment.message] = (position, position + len(segment.text))
        position += len(segment.text)
    return spans


def _answer_start(
    template: ChatTemplate, messages: Messages, number: int, text: str, contents: dict[int, Span]
) -> int:
    """Start of the text of an answer: after the prompt of the messages before it."""
    content = contents[number][0]
    try:
        prompt = template.render(messages[:number])
        plain = template.render(messages[:number], add_generation_prompt=False)
    except UserError:
        return content  # the template needs what follows
    is_prompt = text.startswith(prompt) and len(prompt) <= content
    if is_prompt and (prompt != plain or not text[len(prompt) : content].strip()):
        return len(prompt)
    return content


def _turn_end(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Messages,
    number: int,
    text: str,
    contents: dict[int, Span],
) -> tuple[int, bool]:
    """The end of an answer's turn, and if it is a special token."""
    content = contents[number][1]
    following = contents[number + 1][0] if number + 1 in contents else len(text)
    spaces = _SPACES.match(text, content, following)
    end = content if spaces is None else spaces.end()
    tokens = [token for token in tokenizer.added_tokens if text.startswith(token, end, following)]
    if tokens:
        return end + max(map(len, tokens)), True
    try:
        turn = template.render(messages[: number + 1], add_generation_prompt=False)
    except UserError:
        return content, False
    is_prefix = text.startswith(turn) and content <= len(turn) <= following
    return (len(turn) if is_prefix else content), False


def _marked(
    segments: list[Segment],
    messages: Messages,
    contents: dict[int, Span],
    learned: Sequence[int],
    ends: dict[int, tuple[int, bool]],
) -> LearnedText:
    """The learned text of a template that marks it."""
    spans: list[Span] = []
    position = 0
    for segment in segments:
        end = position + len(segment.text)
        if segment.generated:
            follows = bool(spans) and spans[-1][1] == position  # in the same block
            spans.append((spans.pop()[0] if follows else position, end))
        position = end
    for number in learned:
        if not any(start <= contents[number][0] < end for start, end in spans):
            raise UserError(
                f"the chat template marks no part of message {number + 1} (assistant) by "
                "{% generation %}; mark it, or leave the tags out"
            )
    skipped = [contents[n] for n, m in enumerate(messages) if n in ends and n not in learned]
    spans = [span for span in spans if not any(span[0] <= x[0] < span[1] for x in skipped)]
    return LearnedText(segments, spans, needs_end=False)


def _cut(segments: Sequence[Segment], bounds: Sequence[int]) -> list[tuple[Segment, int]]:
    """Pieces cut at positions of the text, each with its start."""
    result, position = [], 0
    for segment in segments:
        end = position + len(segment.text)
        edges = [position, *(bound for bound in bounds if position < bound < end), end]
        for start, stop in pairwise(edges):
            text = segment.text[start - position : stop - position]
            result.append((segment._replace(text=text), start))
        position = end
    return result
