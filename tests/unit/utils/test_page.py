"""HTML pages: tables, and text that is not markup."""

import re
from pathlib import Path

import pytest

from miniformer.utils import page
from miniformer.utils.page import Cell, render_section, render_table, render_tiles, write_page


@pytest.mark.catches("table_cells_are_markup")
def test_all_texts_are_escaped(tmp_path):
    text = "<b>&\"'</b>\x00"
    table = render_table([text], [[text, Cell(text, "head", tooltip=text)]], text)
    body = render_section(text, table + render_tiles([(text,) * 4]))
    path = tmp_path / "page.html"
    write_page(
        path, title=text, heading=text, eyebrow=text, body=body, warnings=[text], footer=text
    )
    text = path.read_text(encoding="utf-8")
    assert "<b>" not in text
    assert text.count("&lt;b&gt;&amp;&quot;&#x27;&lt;/b&gt;\N{REPLACEMENT CHARACTER}") == 15


def test_render_table_aligns_numbers_and_shades_cells():
    table = render_table(["name", "count"], [["a", 1200], [Cell("b", "head"), Cell(3, shade=0.5)]])
    assert re.findall(r"<t[hd][^>]*>[^<]*</t[hd]>", table) == [
        "<th>name</th>", "<th>count</th>", "<td>a</td>", '<td class="number">1,200</td>',
        '<th class="head">b</th>', '<td style="--shade:0.500">3</td>',
    ]  # fmt: skip


@pytest.mark.catches("names_over_numbers_are_on_the_left")
def test_names_of_columns_of_numbers_are_aligned_as_the_numbers():
    rows = [["a", 1, Cell("0.5", "number shaded"), "", 1], ["b", "", Cell("2"), "", True]]
    table = render_table(["name", "count", "share", "empty", "mixed"], rows)
    assert re.findall(r"<th[^>]*>[^<]*</th>", table) == [
        "<th>name</th>", '<th class="number">count</th>', "<th>share</th>", "<th>empty</th>",
        "<th>mixed</th>",
    ]  # fmt: skip
    style = Path(page.__file__).with_name("page.css").read_text(encoding="utf-8")
    assert re.search(r"^\.number \{ text-align: right;", style, re.MULTILINE)
    assert "<th>count</th>" in render_table(["count"], [])
