"""Limits of chat templates."""

import pytest

from miniformer import UserError
from miniformer.data.chat import ChatTemplate

MESSAGES = [{"role": "user", "content": "x"}]
LOOP = "{% for i in range(50000) %}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LOOP * 2 + "{% endfor %}" * 2, "more than 100,000 steps"),
        ("{% set a = range(9999) %}{% for i in a %}{% for j in a %}{% endfor %}{% endfor %}",
         "more than 100,000 steps"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(30) }}",
         "more than 100,000 steps"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails"),
        ("{{ 'x' * 2000000 }}", "more than 1,000,000 characters"),
        ("{{ 9 ** 9 ** 9 ** 9 }}", "too large"),
        ("{% set n = namespace(s='xx') %}" + LOOP + "{% set n.s = n.s ~ n.s %}{% endfor %}",
         "more than 1,000,000 characters"),
        ("{% set n = namespace(s='xx') %}" + LOOP + "{% set n.s = n.s + n.s %}{% endfor %}",
         "more than 1,000,000 characters"),
    ],
)  # fmt: skip
def test_templates_end(source, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(source).render(MESSAGES)


@pytest.mark.catches("steps_count_a_hundred_thousandfold")
def test_loops_and_operators_are_those_of_jinja():
    source = (
        "{% for m in messages * 2 %}{{ loop.index }}{{ loop.last }}{{ loop.length }}"
        "{{ 'a' ~ (loop.index + 1) }}{{ 2 ** 3 * 2 }}"
        "{% if loop.index == 1 %}{% continue %}{% endif %}"
        "{% for x in nothing %}{% else %}-{% endfor %}{% endfor %}"
    )
    assert ChatTemplate(source).render(MESSAGES) == "1False2a2162True2a316-"
