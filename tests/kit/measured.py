"""Measured table of README.md: `python -m tests.kit.measured` writes it from the results.

`tests/contract/test_measured.py` compares the page with the files.
"""

import json
import re

from tests.kit import ROOT

DOCUMENT = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BETWEEN = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- end -->)", re.DOTALL)


def result(name):
    """A file of benchmarks/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def rows():
    """Rows of the table: subject, Miniformer, the fastest peer, file."""
    lines = []
    for shape in ("14m", "110m"):
        rates = {row["name"]: row for row in result("generation")[shape]["rows"]}
        # llama.cpp's Python interface decodes one prompt at a time.
        for own, batches, peers in (
            ("float32", (1, 16), ("transformers, float32", "llama.cpp, f32")),
            ("int8", (1,), ("llama.cpp, q8_0",)),
        ):
            for batch in batches:
                value = rates[f"miniformer, {own}"][f"batch_{batch}"]
                name = max(peers, key=lambda peer: rates[peer][f"batch_{batch}"])
                subject = f"decoding, {shape.upper()} parameters, {own}, batch {batch}, tokens/s"
                peer = f"{rates[name][f'batch_{batch}']:,.0f} ({name})"
                lines.append((subject, f"{value:,.0f}", peer, "generation"))
    beams = result("beams")["rates"]
    for own in ("float32", "int8"):
        name = f"ctranslate2, {own}"
        subject = f"beam search, {own}, tokens/s"
        value = f"{beams[f'miniformer, {own}']:,.0f}"
        lines.append((subject, value, f"{beams[name]:,.0f} ({name})", "beams"))
    steps = result("train_step")
    for shape in ("gpt2", "llama"):
        for ids in ("65", "32000"):
            group = steps[f"float32, vocabulary {ids}"]
            own = group[f"miniformer {shape}"]
            name = own["best_other"]["name"]
            subject = f"training step, {shape} shape, {int(ids):,} ids, float32, tokens/s"
            peer = f"{group[name]['tokens_per_s']:,.0f} ({name})"
            lines.append((subject, f"{own['tokens_per_s']:,.0f}", peer, "train_step"))
    overhead = result("trainer_overhead")
    for size in ("1M", "10M"):
        subject = f"time of a trained step over a bare loop's, {size} parameters"
        lines.append((subject, f"{overhead[size]['ratio']:.3f}", "1", "trainer_overhead"))
    for row in result("weights")["rows"]:
        if row["weights"] in ("int8", "int4"):
            subject = f"loss with {row['weights']} weights over float32's"
            lines.append((subject, f"{1 + row['more']:.4f}", "1", "weights"))
    return lines


def table():
    """The table as Markdown."""
    lines = ["| measured | Miniformer | fastest peer of the run | file |", "|---|---|---|---|"]
    lines += [
        f"| {subject} | {value} | {peer} | [{name}](benchmarks/results/{name}.json) |"
        for subject, value, peer, name in rows()
    ]
    return "\n".join(lines) + "\n"


def page(text):
    """The page with the table of now."""
    return BETWEEN.sub(lambda match: table(), text)


if __name__ == "__main__":
    DOCUMENT.write_text(page(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
