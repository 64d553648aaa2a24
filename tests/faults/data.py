"""Seeded faults of miniformer.data."""

from tests.faults import fault


@fault("miniformer.data.tokenizer:Tokenizer.settled")
def half_character_is_given(original):
    """A stream gives U+FFFD for the first bytes of a character."""
    return lambda self, ids, text: len(text)


@fault("miniformer.data.tokenizer:Tokenizer.settled")
def run_of_bytes_is_given(original):
    """A stream gives characters of bytes that a later byte turns to U+FFFD."""
    return lambda self, ids, text: len(text.rstrip("\ufffd"))


@fault("miniformer.data.tokenizer:Tokenizer.settled")
def rewritten_text_is_given(original):
    """A stream gives the last word, though its decoder may take a space back."""

    def settled(self, ids, text):
        self.__dict__["rewrites"] = False
        return original(self, ids, text)

    return settled
