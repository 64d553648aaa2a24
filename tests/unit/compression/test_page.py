"""Tables of docs/compression.md."""

from tests.kit import compression_page


def test_tables_are_those_of_the_results():
    """`python -m tests.kit.compression_page` writes them again."""
    text = compression_page.DOCUMENT.read_text(encoding="utf-8")
    assert compression_page.page(text) == text
