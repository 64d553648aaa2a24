"""The report of `miniformer doctor` as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import miniformer
from miniformer.doctor.outcome import Outcome
from miniformer.utils.formats import escape_html
from miniformer.utils.page import render_section, render_table, write_page


def write_report(
    path: Path, target: str, description: Sequence[str], outcomes: Sequence[Outcome]
) -> None:
    """Writes the page.

    Args:
        path: the HTML file.
        target: the model as the command line names it.
        description: lines about the model.
        outcomes: results of the checks.
    """
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    rows = [
        (x.status, x.name, "; ".join((x.summary, *x.notes)), x.command, f"{x.seconds:.1f} s")
        for x in outcomes
    ]
    problems = [(x.name, problem) for x in failed for problem in x.problems]
    body = render_section(
        "Problems", render_table(("check", "problem"), problems) if problems else ""
    )
    header = ("result", "check", "what holds, and what was measured", "command", "time")
    body += render_section("Checks", render_table(header, rows))
    lines = "\n".join(escape_html(line) for line in description)
    body += render_section("Model", f"<pre>{lines}</pre>")
    write_page(
        path,
        title=f"doctor: {target}",
        heading=target,
        eyebrow="miniformer doctor",
        body=body,
        warnings=[f"{len(failed)} of {len(outcomes)} checks failed"] if failed else [],
        footer=f"Miniformer {miniformer.__version__}",
    )
