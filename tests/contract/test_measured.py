"""The measured table of README: each number is a value of a file of benchmarks/results."""

import json
import re

import pytest

from tests.kit import ROOT, measured

README = (ROOT / "README.md").read_text(encoding="utf-8")


def numbers(value):
    """All numbers of a JSON value."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


def lines():
    (block,) = measured.BETWEEN.findall(README)
    return [line for line in block.splitlines() if "benchmarks/results" in line]


def test_measured_table_is_that_of_the_results():
    assert measured.page(README) == README, "run python -m tests.kit.measured"
    assert len(lines()) >= 16


@pytest.mark.parametrize("line", lines())
def test_measured_number_is_in_its_file(line):
    """The file is searched for the number, whatever the code of the table does."""
    path = re.search(r"\((benchmarks/results/\w+\.json)\)", line)[1]
    values = list(numbers(json.loads((ROOT / path).read_text(encoding="utf-8"))))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    for cell in cells[1:3]:
        text = re.match(r"[\d,.]+", cell)[0].replace(",", "")
        if text == "1":  # the unit of a ratio
            continue
        half = 0.5 * 10.0 ** -len(text.partition(".")[2])
        shown = [float(text), float(text) - 1] if text.startswith(("1.0", "0.9")) else [float(text)]
        assert any(abs(value - x) <= half + 1e-9 for value in values for x in shown), cell


def test_numbers_of_readme_outside_of_the_table_have_a_link():
    """A line of README with a speed or a ratio names a result, a page or a test."""
    text = measured.BETWEEN.sub("", README)
    for line in text.splitlines():
        if re.search(r"\d\s?(tokens/s|records/s|MB/s|times faster|x faster)\b", line):
            assert "](" in line or "benchmarks" in line, line


def test_readme_counts_the_families():
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `\w+` \|", page, re.MULTILINE)
    assert f"| published families | [{len(rows)}, in both directions]" in README
