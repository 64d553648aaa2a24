"""Destinations and measurements: `python -m tests.kit.export_page` writes them into docs/export.md.

`tests/unit/exporters/test_listing.py` compares the page with the registry and the results.
"""

import json
import re

from miniformer import registry
from miniformer.exporters.destination import facts_of
from tests.kit import ROOT

DOCUMENT = ROOT / "docs" / "export.md"
RESULTS = ROOT / "benchmarks" / "results" / "export.json"
QUALITY = RESULTS.with_name("export_quality.json")


def table():
    """A row for each built-in destination."""
    rows = ["| `--to` | models | runtime | installed by |", "|---|---|---|---|"]
    for name in registry.builtin_names("exporter"):
        facts = facts_of(registry.get("exporter", name))
        command = f"`{facts.install_command()}`" if facts.extra else "nothing more"
        rows.append(f"| `{name}` | {facts.takes} | {facts.runtime} | {command} |")
    return "\n".join(rows) + "\n"


def speeds():
    """Sizes and times of `benchmarks/export.py`."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    size, times = results["megabytes"], results["clock"]
    rates, steps = times["tokens_per_second"], times["ms_per_step"]
    first = times["seconds_to_first_token"]
    others = ", ".join(f"{rates[f'run.py, {name}']:.0f}" for name in ("float32", "int8", "int4"))
    return (
        "| measurement | result |\n|---|---|\n"
        f"| Llama shape of 13.8M parameters: float32, int8, int4 | {size['float32']:.1f}, "
        f"{size['int8']:.1f} ({size['int8'] / size['float32']:.2f} of it) and "
        f"{size['int4']:.1f} MB ({size['int4'] / size['float32']:.2f}) |\n"
        "| the same, 128 tokens after 32: `run.py` float32, int8, int4; transformers | "
        f"{others}; {rates['transformers']:.0f} tokens a second |\n"
        "| the same, a step after 100 columns, after 900 | "
        f"{steps['100']:.1f} ms, {steps['900']:.1f} ms |\n"
        "| process of `run.py` from its start to the first token | "
        f"{first['run.py']:.1f} s, with torch and Miniformer {first['torch']:.1f} s |\n"
    )


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


def conversions():
    """The sentence on `benchmarks/export_files.py --part convert`."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["convert"]["results"]
    rates = results["gguf_mb_per_second"]
    return (
        f"{results['parameters'] / 1e6:.1f}M parameters take {results['onnx_seconds']:.0f} s to "
        f"ONNX and, in MB of float32 weights, go to GGUF with\n{rates['f32']:,} MB/s as f32, "
        f"{rates['f16']:,} as f16 and {rates['q8_0']:,} as q8_0.\n"
    )


def quality():
    """A row for each form of the models of `benchmarks/export_quality.py`."""
    results = json.loads(QUALITY.read_text(encoding="utf-8"))
    rows = ["| | metric | same answers as the model | loss | MB |", "|---|---|---|---|---|"]
    for kind, metric in (("translator", "BLEU"), ("classifier", "accuracy")):
        row = results[kind]
        rows.append(f"| {kind}, {row['records']:,} texts | {metric} {row['model']} | | | |")
        for form in ("float32", "int8", "int4"):
            values = row[form]
            rows.append(
                f"| as {form} | {values['metric']} | {values['equal_answers']:,} | "
                f"{values['loss_change_percent']:+.3f} % | {values['megabytes']:.2f} |"
            )
    return "\n".join(rows) + "\n"


PARTS = {
    "destinations": table,
    "speeds": speeds,
    "artifacts": artifacts,
    "conversions": conversions,
    "quality": quality,
}


def page(text):
    """The page with the tables of now."""
    for name, make in PARTS.items():
        between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        text, count = between.subn(lambda match, make=make: make(), text, count=1)
        assert count, name
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(page(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
