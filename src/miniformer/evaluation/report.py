"""The report of an evaluation: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from miniformer.config import UserError
from miniformer.evaluation.results import EvaluationResults
from miniformer.evaluation.sections import render_sections
from miniformer.utils.formats import format_compact, metric_label
from miniformer.utils.page import render_section, render_tiles, write_page


def write_report(path: str | Path, evaluation: EvaluationResults) -> None:
    """Writes the page.

    Args:
        path: the HTML file; its folder is created.
        evaluation: the contents.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    tiles = [
        (
            metric_label(name),
            format_compact(value),
            " to ".join(map(format_compact, evaluation.intervals.get(name, ()))),
            repr(value),
        )
        for name, value in evaluation.metrics.items()
    ]
    tiles.append(("records", format_compact(evaluation.num_records), "", ""))
    sections = (render_section(title, html) for title, html in render_sections(evaluation))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(
            path,
            title=f"{evaluation.data}: evaluation",
            heading=f"Evaluation on {evaluation.data}",
            eyebrow=evaluation.task.name.replace("_", " "),
            body=render_tiles(tiles) + "\n".join(sections),
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
