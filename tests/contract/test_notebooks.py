"""Notebooks: files in percent format that end with an assertion; the slow ring runs them."""

import ast
import re

import pytest

from tests.kit import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.py"))


def percent_cells(text):
    """Cells as (it is Markdown, source)."""
    cells = []
    for line in text.splitlines():
        if line.startswith("# %%"):
            cells.append((line == "# %% [markdown]", []))
        else:
            cells[-1][1].append(line)
    return [(is_text, "\n".join(lines).strip("\n")) for is_text, lines in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_a_title_and_ends_with_an_assertion(path):
    cells = percent_cells(path.read_text(encoding="utf-8"))
    assert cells[0][0]
    assert cells[0][1].startswith("# # ")
    is_text, source = cells[-1]
    assert not is_text
    assert isinstance(ast.parse(source).body[-1], ast.Assert)
    code = "\n".join(source for is_text, source in cells if not is_text)
    for word in ("http://", "https://"):  # offline, but for its own server
        assert code.count(word) == code.count(f"{word}127.0.0.1")


def test_every_notebook_is_on_the_page_of_notebooks():
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\.\./examples/(\w+)\.py", page))
    assert linked == {path.stem for path in NOTEBOOKS}
    assert len(linked) >= 10
