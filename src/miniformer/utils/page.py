"""A self-contained HTML page: sections with tables and images, without scripts.

A content security policy forbids everything but inline styles and embedded images.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniformer.utils.atomic import write_text
from miniformer.utils.formats import escape_html


def write_page(
    path: Path,
    *,
    title: str,
    heading: str,
    eyebrow: str,
    body: str,
    warnings: Sequence[str] = (),
    footer: str = "",
) -> None:
    """Writes a page atomically.

    Args:
        path: the HTML file.
        title: title of the window, plain text.
        heading, eyebrow: heading, and the line above it, plain text.
        body: HTML.
        warnings: messages at the top, plain text.
        footer: the last line, plain text.
    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape_html(title)}</title>
<style>
{style}
</style>
</head>
<body><main>
<header>
<p class="eyebrow">{escape_html(eyebrow)}</p>
<h1>{escape_html(heading)}</h1>
{"".join(f'<p class="warning">{escape_html(warning)}</p>' for warning in warnings)}
</header>
{body}
{footer and f"<footer>{escape_html(footer)}</footer>"}
</main></body>
</html>
"""
    write_text(path, page)


def render_section(title: str, body: str) -> str:
    """A section of HTML under a plain heading; empty without a body."""
    return f"<section><h2>{escape_html(title)}</h2>\n{body}</section>" if body else ""


def render_tiles(tiles: Sequence[tuple[str, str, str, str]]) -> str:
    """Tiles of numbers.

    Args:
        tiles: of each its name, value, unit or note, and exact value, plain text.
    """
    inner = "".join(
        f'<div title="{escape_html(exact)}"><dt>{escape_html(name)}</dt><dd>{escape_html(value)}'
        f"<small>{escape_html(unit)}</small></dd></div>\n"
        for name, value, unit, exact in tiles
    )
    columns = min((6, 5, 4), key=lambda count: -len(tiles) % count)  # fewest empty cells
    return f'<dl class="tiles" style="--columns:{columns}">{inner}</dl>' if inner else ""


def render_table(header: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> str:
    """A table with a header; numbers, and the names of columns of numbers, are on the right.

    Args:
        header: names of the columns, plain text.
        rows: cells, plain text or numbers; a `Cell` has classes and a tooltip.
        note: a line below the table, plain text.
    """
    cells = [[_as_cell(value) for value in row] for row in rows]
    columns = [[row[index] for row in cells if index < len(row)] for index in range(len(header))]
    numeric = [' class="number"' if _is_numeric(column) else "" for column in columns]
    names = zip(header, numeric, strict=True)
    head = "".join(f"<th{css}>{escape_html(name)}</th>" for name, css in names)
    lines = "".join(f"<tr>{''.join(cell.render() for cell in row)}</tr>\n" for row in cells)
    caption = f'<p class="note">{escape_html(note)}</p>' if note else ""
    table = f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="table"><table>{table}</table></div>{caption}'


class Cell:
    """A cell of a table.

    Args:
        value: plain text or a number.
        css: classes, such as whole (text with its line ends) or head (a name).
        shade: background, from 0 (none) to 1.
        tooltip: plain text.
    """

    def __init__(
        self, value: object, css: str = "", *, shade: float | None = None, tooltip: str = ""
    ) -> None:
        self.value, self.css, self.shade, self.tooltip = value, css, shade, tooltip

    def render(self) -> str:
        """The `<td>` or, for a name, the `<th>` element."""
        tag = "th" if "head" in self.css.split() else "td"
        attributes = f' class="{self.css}"' if self.css else ""
        if self.shade is not None:
            attributes += f' style="--shade:{self.shade:.3f}"'
        if self.tooltip:
            attributes += f' title="{escape_html(self.tooltip)}"'
        return f"<{tag}{attributes}>{format_cell(self.value)}</{tag}>"


def _as_cell(value: object) -> Cell:
    if isinstance(value, Cell):
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(value, "number" if is_number else "")


def _is_numeric(column: Sequence[Cell]) -> bool:
    """True for a column whose cells are numbers or empty, and not all empty."""
    filled = [cell for cell in column if cell.value != ""]
    return bool(filled) and all("number" in cell.css.split() for cell in filled)


def key_value_table(values: dict[str, Any]) -> str:
    """A table of names and values; empty without values."""
    lines = (
        f"<tr><th>{escape_html(name)}</th><td>{format_cell(value)}</td></tr>\n"
        for name, value in values.items()
    )
    return f'<div class="table"><table>{"".join(lines)}</table></div>' if values else ""


def format_cell(value: object) -> str:
    """HTML of a plain value: text, a number with separators, or JSON."""
    if isinstance(value, str):
        return escape_html(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return escape_html(f"{value:,}")
    return escape_html(json.dumps(value, ensure_ascii=False, default=str))


def embed_image(path: Path) -> str:
    """An embedded PNG file; empty if it is missing."""
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    name = escape_html(path.stem.replace("_", " "))
    return f'<figure class="picture"><img alt="{name}" src="data:image/png;base64,{data}"></figure>'
