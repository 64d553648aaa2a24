"""docs/configuration.md describes the settings as they are."""

from tests.kit import configuration_page


def test_configuration_page_is_that_of_the_configs():
    """`python -m tests.kit.configuration_page` writes it again."""
    text = configuration_page.DOCUMENT.read_text(encoding="utf-8")
    assert text == configuration_page.page(), "run python -m tests.kit.configuration_page"
