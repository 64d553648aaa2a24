"""Text of tokens that come one by one: whole characters only, and where it has to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

DecodeFn = Callable[[Sequence[int]], str]
# Number of characters at the beginning of the text of some tokens that more tokens do not change.
StableLengthFn = Callable[[Sequence[int], str], int]

_CONTEXT_SLACK = (
    16  # characters at the beginning of a window that may be decoded otherwise than in context
)


class StopStringChecker:
    """Stop condition: the text of some tokens holds one of several strings.

    Args:
        decode: the text of token ids.
        stops: the strings.
    """

    def __init__(self, decode: DecodeFn, stop_strings: Sequence[str]) -> None:
        self.decode, self.stop_strings = decode, stop_strings
        self.max_stop_length = max(map(len, stop_strings), default=0)

    def __call__(self, tokens: list[int]) -> bool:
        """Whether the last token completes one of them; a long text is not decoded as a whole."""
        if not self.stop_strings:
            return False
        needed = self.max_stop_length + _CONTEXT_SLACK + len(self.decode(tokens[-1:]))
        count, text = needed, self._decode_tail(tokens, needed)
        while len(text) < needed and count < len(tokens):  # tokens of no text, or of some bytes
            count *= 2
            text = self._decode_tail(tokens, count)
        if not self._contains_stop(text):
            return False
        return count >= len(tokens) or self._contains_stop(self.decode(tokens))

    def _decode_tail(self, tokens: list[int], count: int) -> str:
        """The text of the last tokens, without the rest of a character that begins before them."""
        text = self.decode(tokens[-count:])
        return text if count >= len(tokens) else text.lstrip("\ufffd")

    def _contains_stop(self, text: str) -> bool:
        return any(stop in text for stop in self.stop_strings)

    def truncate(self, text: str) -> str:
        """The text before the first of the strings."""
        return text[
            : min((text.find(each) for each in self.stop_strings if each in text), default=None)
        ]


def complete_characters(tokens: Sequence[int], text: str) -> int:
    """See `Settled`; of tokens that are bytes, of which the last ones may be half a character."""
    return len(text.rstrip("\ufffd"))


class StreamingDetokenizer:
    """Text that each new token adds, given once it can change no more.

    A character may be the bytes of several tokens, a decoder may take a space back that comes
    before a comma, and what looks like the beginning of a stop string may become one: until that is
    known the text is held back. The pieces together are the text of all tokens, up to the stop
    string.

    Args:
        decode: the text of token ids.
        stops: strings at which the text ends.
        settled: see `Settled`.
    """

    def __init__(
        self,
        decode: DecodeFn,
        stop_strings: Sequence[str] = (),
        stable_length: StableLengthFn = complete_characters,
    ) -> None:
        self.decode, self.stop_checker, self.stable_length = (
            decode,
            StopStringChecker(decode, stop_strings),
            stable_length,
        )
        self.tokens: list[int] = []
        self.emitted = 0  # characters of the text that are out
        self.finished = False

    def add_token(self, token: int) -> str:
        """The text that is certain now, and was not before; may be empty."""
        self.tokens.append(token)
        text = self.decode(self.tokens)
        settled = text[: self.stable_length(self.tokens, text)]
        # Only settled text can become a stop: what comes after it may still be anything.
        return self._emit(
            text, len(settled) - partial_stop_length(settled, self.stop_checker.stop_strings)
        )

    def flush(self) -> str:
        """What was held back, now that no token follows."""
        text = self.decode(self.tokens)
        return self._emit(text, len(text))

    def _emit(self, text: str, end: int) -> str:
        if self.finished:
            return ""
        cut = self.stop_checker.truncate(text)
        if len(cut) < len(text):
            self.finished, end = True, len(cut)
        piece = text[self.emitted : end]
        self.emitted += len(piece)
        return piece


def partial_stop_length(text: str, stop_strings: Sequence[str]) -> int:
    """Length of the longest end of a text that is the beginning, and not all, of a stop string."""
    lengths = range(min(len(text), max(map(len, stop_strings), default=0)), 0, -1)
    ends = (text[-length:] for length in lengths)
    return next(
        (len(end) for end in ends if any(_is_partial_stop(stop, end) for stop in stop_strings)), 0
    )


def _is_partial_stop(stop: str, suffix: str) -> bool:
    return len(suffix) < len(stop) and stop.startswith(suffix)
