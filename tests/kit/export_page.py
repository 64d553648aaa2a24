"""Table of destinations: `python -m tests.kit.export_page` writes it into docs/export.md.

`tests/unit/exporters/test_listing.py` compares the page with the registry.
"""

import re

from miniformer import registry
from miniformer.exporters.destination import facts_of
from tests.kit import ROOT

DOCUMENT = ROOT / "docs" / "export.md"
_BETWEEN = re.compile(r"(?<=<!-- destinations -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table():
    """A row for each built-in destination."""
    rows = ["| `--to` | models | runtime | installed by |", "|---|---|---|---|"]
    for name in registry.builtin_names("exporter"):
        facts = facts_of(registry.get("exporter", name))
        command = f"`{facts.install_command()}`" if facts.extra else "nothing more"
        rows.append(f"| `{name}` | {facts.takes} | {facts.runtime} | {command} |")
    return "\n".join(rows) + "\n"


def page(text):
    """The page with the table of now."""
    return _BETWEEN.sub(lambda match: table(), text)


if __name__ == "__main__":
    DOCUMENT.write_text(page(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
