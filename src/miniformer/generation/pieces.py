"""Text of tokens that come one by one: whole characters only, and where it has to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]


class StopAt:
    """Whether the text of some tokens holds one of several strings.

    Args:
        decode: the text of token ids.
        stops: the strings.
    """

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self.decode, self.stops = decode, stops
        # A token stands for a byte at least, and a character is four of them at most.
        self.reach = 4 * max((len(stop) for stop in stops), default=0) + 4

    def __call__(self, tokens: list[int]) -> bool:
        """Whether one of them is at the end of the text."""
        text = self.decode(tokens[-self.reach :])
        return any(stop in text for stop in self.stops)

    def cut(self, text: str) -> str:
        """The text before the first of the strings."""
        return text[: min((text.find(each) for each in self.stops if each in text), default=None)]


class Pieces:
    """Says of each new token what text it adds, once that can change no more.

    A character may be the bytes of several tokens, a decoder may take a space back that comes
    before a comma, and what looks like the beginning of a stop string may become one: until that is
    known the text is held back. The pieces together are the text of all tokens, up to the stop
    string.

    Args:
        decode: the text of token ids.
        stops: strings at which the text ends.
        rewrites: whether more tokens may change the last word that was decoded.
    """

    def __init__(
        self, decode: Decode, stops: Sequence[str] = (), *, rewrites: bool = False
    ) -> None:
        self.decode, self.stop, self.rewrites = decode, StopAt(decode, stops), rewrites
        self.tokens: list[int] = []
        self.given = 0  # characters of the text that are out
        self.over = False

    def add(self, token: int) -> str:
        """The text that is certain now, and was not before; may be empty."""
        self.tokens.append(token)
        text = self.decode(self.tokens)
        return self._give(text, len(text) - self._open(text))

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

    def _open(self, text: str) -> int:
        """Characters at the end that may still change."""
        held = len(text) - len(text.rstrip("\ufffd"))  # bytes of a character that is not whole
        if self.rewrites:
            held = max(held, len(text) - max(0, text.rfind(" ")))
        for stop in self.stop.stops:
            shared = range(min(len(stop) - 1, len(text)), 0, -1)
            held = max(held, next((n for n in shared if text.endswith(stop[:n])), 0))
        return held
