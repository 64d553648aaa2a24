"""Tables of compressed models: `python -m tests.kit.compression_page` writes them into
docs/compression.md.

`tests/contract/test_measured.py` compares the page with benchmarks/results/compression.json.
"""

import json
import re

from tests.kit import ROOT

DOCUMENT = ROOT / "docs" / "compression.md"
RESULTS = ROOT / "benchmarks" / "results" / "compression.json"
_TABLES = re.compile(r"(?<=<!-- recipes -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table(recipe, result):
    """A heading, and a row for each form of a recipe's model."""
    label = (result["metric"] or "loss").replace("_", " ")
    unit = result["unit"]
    rows = [
        f"### {recipe}",
        "",
        f"| form | bytes | loss | {label} | {unit}/s, batch 1 | {unit}/s, batch 16 |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        first = row["form"] == "model"
        form = f"{row['megabytes']:.2f} MB" if first else f"{row['bytes_ratio']:.3f}"
        loss = f"{row['loss']:.4f}" if first else f"{100 * (row['loss_ratio'] - 1):+.2f} %"
        speeds = ["1" if first else f"{row['speed'][size]:.2f}" for size in ("1", "16")]
        rows.append(
            f"| {'the model itself' if first else row['form']} | {form} | {loss} | "
            f"{row['metric']:.4f} | {speeds[0]} | {speeds[1]} |"
        )
    return "\n".join(rows) + "\n"


def tables():
    """The tables of all saved recipes."""
    saved = json.loads(RESULTS.read_text(encoding="utf-8"))
    return "\n".join(table(name, saved[name]) for name in sorted(saved))


def page(text):
    """The page with the saved tables."""
    return _TABLES.sub(lambda match: f"\n{tables()}\n", text, count=1)


if __name__ == "__main__":
    DOCUMENT.write_text(page(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
