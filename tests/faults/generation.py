"""Seeded faults of miniformer.generation."""

from tests.faults import fault


@fault("miniformer.generation.pieces:open_stop")
def stop_prefix_is_given(original):
    """The beginning of a stop string is given out."""
    return lambda text, stops: 0


@fault("miniformer.generation.pieces:Pieces.add")
def stop_prefix_before_half_character_is_given(original):
    """Bytes of half a character hide the beginning of a stop string before them."""
    from miniformer.generation.pieces import open_stop

    def add(self, token):
        self.tokens.append(token)
        text = self.decode(self.tokens)
        settled = self.settled(self.tokens, text)
        return self._give(text, min(settled, len(text) - open_stop(text, self.stop.stops)))

    return add


@fault("miniformer.generation.pieces:StopAt._end")
def stop_window_starts_within_character(original):
    """A stop string is looked for in text whose first byte belongs to an earlier character."""
    return lambda self, tokens, count: self.decode(tokens[-count:])


@fault("miniformer.generation.pieces:StopAt.__call__")
def stop_window_is_too_short(original):
    """A stop string is looked for in the last tokens, though these may have no text."""

    def call(self, tokens):
        return self._within(self.decode(tokens[-4 * self.longest - 4 :]))

    return call
