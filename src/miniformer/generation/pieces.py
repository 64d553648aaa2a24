"""Text of tokens that come one by one: whole characters only, and where it has to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
# Number of characters at the beginning of the text of some tokens that more tokens do not change.
Settled = Callable[[Sequence[int], str], int]

_SLACK = 16  # characters at the beginning of a window that may be decoded otherwise than in context


class StopAt:
    """Stop condition: the text of some tokens holds one of several strings.

    Args:
        decode: the text of token ids.
        stops: the strings.
    """

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self.decode, self.stops = decode, stops
        self.longest = max(map(len, stops), default=0)

    def __call__(self, tokens: list[int]) -> bool:
        """Whether the last token completes one of them; a long text is not decoded as a whole."""
        if not self.stops:
            return False
        needed = self.longest + _SLACK + len(self.decode(tokens[-1:]))
        count, text = needed, self._end(tokens, needed)
        while len(text) < needed and count < len(tokens):  # tokens of no text, or of some bytes
            count *= 2
            text = self._end(tokens, count)
        if not self._within(text):
            return False
        return count >= len(tokens) or self._within(self.decode(tokens))

    def _end(self, tokens: list[int], count: int) -> str:
        """The text of the last tokens, without the rest of a character that begins before them."""
        text = self.decode(tokens[-count:])
        return text if count >= len(tokens) else text.lstrip("\ufffd")

    def _within(self, text: str) -> bool:
        return any(stop in text for stop in self.stops)

    def cut(self, text: str) -> str:
        """The text before the first of the strings."""
        return text[: min((text.find(each) for each in self.stops if each in text), default=None)]


def whole_characters(tokens: Sequence[int], text: str) -> int:
    """See `Settled`; of tokens that are bytes, of which the last ones may be half a character."""
    return len(text.rstrip("\ufffd"))


class Pieces:
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
        self, decode: Decode, stops: Sequence[str] = (), settled: Settled = whole_characters
    ) -> None:
        self.decode, self.stop, self.settled = decode, StopAt(decode, stops), settled
        self.tokens: list[int] = []
        self.given = 0  # characters of the text that are out
        self.over = False

    def add(self, token: int) -> str:
        """The text that is certain now, and was not before; may be empty."""
        self.tokens.append(token)
        text = self.decode(self.tokens)
        settled = text[: self.settled(self.tokens, text)]
        # Only settled text can become a stop: what comes after it may still be anything.
        return self._give(text, len(settled) - open_stop(settled, self.stop.stops))

    def end(self) -> str:
        """What was held back, now that no token follows."""
        text = self.decode(self.tokens)
        return self._give(text, len(text))

    def _give(self, text: str, until: int) -> str:
        if self.over:
            return ""
        cut = self.stop.cut(text)
        if len(cut) < len(text):
            self.over, until = True, len(cut)
        piece = text[self.given : until]
        self.given += len(piece)
        return piece


def open_stop(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of a text that is the beginning, and not all, of a stop string."""
    lengths = range(min(len(text), max(map(len, stops), default=0)), 0, -1)
    ends = (text[-length:] for length in lengths)
    return next((len(end) for end in ends if any(_begins(stop, end) for stop in stops)), 0)


def _begins(stop: str, end: str) -> bool:
    return len(end) < len(stop) and stop.startswith(end)
