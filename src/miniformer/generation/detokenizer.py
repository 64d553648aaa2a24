"""Streaming detokenization: complete characters and stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

DecodeFn = Callable[[Sequence[int]], str]
# Number of leading characters of the decoded text that further tokens cannot change.
StableLengthFn = Callable[[Sequence[int], str], int]

# Leading characters of a window of tokens that may decode differently than in context.
_CONTEXT_SLACK = 16
_MIN_WINDOW = 32  # tokens that a stream decodes at least, if there are as many
_SEAMS = 4  # places that are tried for the start of a window


class StopStringChecker:
    """Stop condition: the decoded text contains a stop string.

    Args:
        decode: decodes token ids to text.
        stop_strings: stop strings.
    """

    def __init__(self, decode: DecodeFn, stop_strings: Sequence[str]) -> None:
        self.decode, self.stop_strings = decode, stop_strings
        self.max_stop_length = max(map(len, stop_strings), default=0)

    def __call__(self, tokens: list[int]) -> bool:
        """Returns True if the last token completes a stop string; decodes only a window."""
        if not self.stop_strings:
            return False
        needed = self.max_stop_length + _CONTEXT_SLACK + len(self.decode(tokens[-1:]))
        count, text = needed, self._decode_tail(tokens, needed)
        while len(text) < needed and count < len(tokens):  # tokens may have no text or only bytes
            count *= 2
            text = self._decode_tail(tokens, count)
        if not self._contains_stop(text):
            return False
        return count >= len(tokens) or self._contains_stop(self.decode(tokens))

    def _decode_tail(self, tokens: list[int], count: int) -> str:
        """Decodes the last tokens, without the bytes of a character that starts before them."""
        text = self.decode(tokens[-count:])
        return text if count >= len(tokens) else text.lstrip("\ufffd")

    def _contains_stop(self, text: str) -> bool:
        return any(stop in text for stop in self.stop_strings)

    def truncate(self, text: str) -> str:
        """Cuts the text before the first stop string."""
        positions = (text.find(stop) for stop in self.stop_strings if stop in text)
        return text[: min(positions, default=None)]


def complete_characters(tokens: Sequence[int], text: str) -> int:
    """`StableLengthFn` for byte tokens: excludes an incomplete character at the end."""
    return len(text.rstrip("\ufffd"))


class StreamingDetokenizer:
    """Incremental detokenizer that yields text once it can no longer change.

    Text is held back while it may change: a character may span several tokens, a decoder may
    remove a space before a comma, and a suffix may be a partial stop string. The concatenated
    output is the text of all tokens, up to the stop string.

    Each token decodes a window of the last tokens, so that the time of a token does not grow with
    the text. The window starts where its text alone is the end of the whole text, and well before
    the text that is held back.

    Args:
        decode: decodes token ids to text.
        stop_strings: strings at which the text ends.
        stable_length: see `StableLengthFn`.
    """

    def __init__(
        self,
        decode: DecodeFn,
        stop_strings: Sequence[str] = (),
        stable_length: StableLengthFn = complete_characters,
    ) -> None:
        self.decode, self.stable_length = decode, stable_length
        self.stop_checker = StopStringChecker(decode, stop_strings)
        self.tokens: list[int] = []
        self.emitted = 0  # number of characters of the window's text that were returned
        self.finished = False
        self._start = 0  # first token of the window
        self._limit = 2 * _MIN_WINDOW  # tokens of a window that is shortened

    def add_token(self, token: int) -> str:
        """Returns the newly stable text; may be empty."""
        self.tokens.append(token)
        window, text = self._window()
        stable = text[: self.stable_length(window, text)]
        # Only stable text can contain a partial stop string: the rest may still change.
        held_back = partial_stop_length(stable, self.stop_checker.stop_strings)
        new_text = self._emit(text, len(stable) - held_back)
        if len(window) >= self._limit:
            self._shorten(len(window), text)
        return new_text

    def flush(self) -> str:
        """Returns the remaining text after the last token."""
        _, text = self._window()
        return self._emit(text, len(text))

    def _window(self) -> tuple[list[int], str]:
        """Tokens of the window, and their text."""
        window = self.tokens[self._start :]
        return window, self.decode(window)

    def _shorten(self, length: int, text: str) -> None:
        """Moves the start of the window, of `length` tokens, if its text allows it."""
        first = length - _MIN_WINDOW
        for skipped in range(first, first - _SEAMS, -1):
            rest = self.decode(self.tokens[self._start + skipped :])
            cut = len(text) - len(rest)
            if cut + _CONTEXT_SLACK <= self.emitted and text.endswith(rest):
                self._start, self._limit = self._start + skipped, 2 * _MIN_WINDOW
                self.emitted -= cut
                return
        self._limit = 2 * length  # of tokens without text, or one word

    def _emit(self, text: str, end: int) -> str:
        if self.finished:
            return ""
        truncated = self.stop_checker.truncate(text)
        if len(truncated) < len(text):
            self.finished, end = True, len(truncated)
        new_text = text[self.emitted : end]
        self.emitted += len(new_text)
        return new_text


def partial_stop_length(text: str, stop_strings: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of a stop string."""
    prefixes = (stop[:length] for stop in stop_strings for length in range(1, len(stop)))
    return max((len(prefix) for prefix in prefixes if text.endswith(prefix)), default=0)
