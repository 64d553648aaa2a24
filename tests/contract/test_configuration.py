"""docs/configuration.md describes the settings as they are."""

import re

import pytest

from miniformer import registry
from miniformer.config.flags.reference import describe_fields
from tests.kit import configuration_page


def test_configuration_page_is_that_of_the_configs():
    """`python -m tests.kit.configuration_page` writes it again."""
    text = configuration_page.DOCUMENT.read_text(encoding="utf-8")
    assert text == configuration_page.page(), "run python -m tests.kit.configuration_page"


@pytest.mark.catches("meaning_is_a_reference_to_a_class")
@pytest.mark.parametrize("name", registry.builtin_names("task"))
def test_meaning_of_a_task_option_needs_no_source_code(name):
    """Docstrings refer to other classes; the descriptions hold the text of those."""
    fields = [field for _, part in describe_fields(registry.get("task", name)) for field in part]
    for field in fields:
        assert field.meaning, field.name
        assert not re.search("see `[A-Z]", field.meaning), field
