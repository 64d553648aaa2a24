"""Answers of OpenAI's interface, of deltas."""

from __future__ import annotations

import dataclasses
import secrets
import time
from typing import Any

from miniformer.serving.generation import Delta, TokenText


@dataclasses.dataclass
class Collected:
    """All deltas of a choice.

    Args:
        text: its text.
        tokens: its tokens without EOS.
        finish_reason: stop or length.
        num_tokens: generated tokens, EOS included.
    """

    text: str = ""
    tokens: list[TokenText] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None
    num_tokens: int = 0

    def add(self, delta: Delta) -> None:
        """Appends a delta."""
        self.text += delta.text
        self.num_tokens += delta.num_tokens
        self.tokens += delta.tokens
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason


def header(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """The first fields of an answer."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def usage(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """The field `usage`."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }


def completion_logprobs(tokens: list[TokenText], offset: int) -> dict[str, Any]:
    """The field `logprobs` of completions; `offset`: characters before the first token."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            None
            if item.logprob is None
            else {text: logprob for text, _, logprob in reversed(item.top)}
            for item in tokens
        ],
        "text_offset": offsets,
    }


def chat_logprobs(tokens: list[TokenText]) -> dict[str, Any]:
    """The field `logprobs` of chat completions."""

    def entry(text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {
        "content": [
            {
                **entry(token.text, token.logprob),
                "top_logprobs": [entry(text, logprob) for text, _, logprob in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }
