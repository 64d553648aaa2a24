"""Round trips of a tokenizer."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

from miniformer.doctor.outcome import NotApplicable, Note

# Words, spaces, marks, scripts, code: what texts of users hold.
SAMPLES = (
    "Hello, world!",
    "  two  spaces\tand a tab\nand a line",
    "naïve café — “quotes” and 1,234.50 €",
    "Привет мир, γειά σου κόσμε",  # noqa: RUF001
    "日本語のテキスト 한국어 中文",
    "emoji 👩‍👩‍👧 🎉🏽",
    "x = {'a': [1, 2.5e-3]}  # code",
    "ACGTTGCA",
    "a",
)


def check_tokenizer(tokenizer: Any) -> list[str]:
    """Ids are in the vocabulary, and decoded text has the same characters and the same ids.

    Case, accents, spaces and control characters may differ.
    """
    return [*_problems(tokenizer)]


def _problems(tokenizer: Any) -> Iterator[str]:
    exact, unknown = 0, 0
    rows = tokenizer.encode_batch(SAMPLES)
    for sample, ids in zip(SAMPLES, rows, strict=True):
        if tokenizer.encode(sample) != ids:
            yield f"{sample!r}: encode and encode_batch give other ids"
        outside = [n for n in ids if not 0 <= n < tokenizer.vocab_size]
        if outside:
            yield f"{sample!r}: id {outside[0]} is outside of the {tokenizer.vocab_size} ids"
            continue
        if tokenizer.unk_id in ids:
            unknown += 1
            continue
        text = tokenizer.decode(ids)
        exact += text == sample
        if _compared(text) != _compared(sample):
            yield f"{sample!r}: loses or changes characters; it decodes to {text!r}"
            continue
        again = tokenizer.encode(text)
        if again != ids and tokenizer.decode(again) != text:
            yield f"{sample!r}: decodes to {text!r}, which decodes to {tokenizer.decode(again)!r}"
    if unknown == len(SAMPLES):
        raise NotApplicable("the vocabulary has an unknown character in each sample text")
    known = len(SAMPLES) - unknown
    yield Note(f"{exact} of {known} texts come back exactly; {unknown} have unknown characters")


def _compared(text: str) -> str:
    """Text without what tokenizers may leave out: case, accents, spaces, control characters."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(x for x in decomposed if unicodedata.category(x)[0] not in "MCZ").casefold()
