"""Tables of destinations and measured files: `python -m tests.kit.export_page` writes them into
docs/export.md.

`tests/unit/exporters/test_listing.py` compares the page with the registry.
"""

import json
import re

from miniformer import registry
from miniformer.exporters.destination import facts_of
from tests.kit import ROOT

DOCUMENT = ROOT / "docs" / "export.md"
RESULTS = ROOT / "benchmarks" / "results" / "export.json"
_BETWEEN = re.compile(r"(?<=<!-- destinations -->\n).*?(?=<!-- end -->)", re.DOTALL)
_MEASURED = re.compile(r"(?<=<!-- artifacts -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table():
    """A row for each built-in destination."""
    rows = ["| `--to` | models | runtime | installed by |", "|---|---|---|---|"]
    for name in registry.builtin_names("exporter"):
        facts = facts_of(registry.get("exporter", name))
        command = f"`{facts.install_command()}`" if facts.extra else "nothing more"
        rows.append(f"| `{name}` | {facts.takes} | {facts.runtime} | {command} |")
    return "\n".join(rows) + "\n"


def artifacts():
    """A row for each file of `benchmarks/export_files.py --part artifacts`."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["artifacts"]["results"]
    rows = ["| files | MB | memory MB | first token s | ms a token |", "|---|---|---|---|---|"]
    for name, row in results.items():
        label = "the model itself" if name == "model" else f"`{name}`"
        rows.append(
            f"| {label} | {row['size_mb']:.1f} | {row['memory_mb']:.0f} | {row['first_s']:.2f} | "
            f"{row['token_ms']:.2f} |"
        )
    return "\n".join(rows) + "\n"


def page(text):
    """The page with the tables of now."""
    text = _BETWEEN.sub(lambda match: table(), text)
    return _MEASURED.sub(lambda match: artifacts(), text)


if __name__ == "__main__":
    DOCUMENT.write_text(page(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
