"""HTML pages: tables, and text that is not markup."""

import re

import pytest

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
    page = path.read_text(encoding="utf-8")
    assert "<b>" not in page
    assert page.count("&lt;b&gt;&amp;&quot;&#x27;&lt;/b&gt;\N{REPLACEMENT CHARACTER}") == 15


def test_render_table_aligns_numbers_and_shades_cells():
    table = render_table(["name", "count"], [["a", 1200], [Cell("b", "head"), Cell(3, shade=0.5)]])
    assert re.findall(r"<t[hd][^>]*>[^<]*</t[hd]>", table) == [
        "<th>name</th>", "<th>count</th>", "<td>a</td>", '<td class="number">1,200</td>',
        '<th class="head">b</th>', '<td style="--shade:0.500">3</td>',
    ]  # fmt: skip
