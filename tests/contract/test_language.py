"""The check of language finds each kind of offense."""

import pytest

from tests import language

OFFENSES = {
    "def told(): pass": "name 'told'",
    "def f(begun): pass": "name 'begun'",
    "for each in (): pass": "name 'each'",
    "self.kept = 1": "name 'kept'",
    'def f():\n    """Whether it holds."""': "docstring begins with 'Whether'",
    "x = 1  # the optimiser steps": "American spelling",
    "raise ValueError('the run goes on here')": "continue, resume",
    '"""Metrics.\n\nThe best figures of all."""': "metric",
}


@pytest.mark.parametrize("source", OFFENSES)
def test_language_offenses_are_found(tmp_path, source):
    path = tmp_path / "module.py"
    path.write_text(source)
    ((line, reason),) = language.offenses(path)
    assert OFFENSES[source] in reason
    assert line == source.count("\n") + 1 if "\n\n" in source else line <= 2


def test_language_of_good_source_has_no_offense(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""Metrics of `figures`."""\n\ndef step(state):\n    """Step."""\n')
    assert list(language.offenses(path)) == []


def test_language_command_lists_offenses_and_fails(tmp_path, capsys):
    """`make lint` runs it on all code."""
    (tmp_path / "good.py").write_text("steps = 1\n")
    assert language.main([str(tmp_path)]) == 0
    (tmp_path / "bad.py").write_text("told = 1\n")
    assert language.main([str(tmp_path)]) == 1
    assert "bad.py:1: name 'told' says nothing" in capsys.readouterr().out
