"""The page of `make bench`, from `results/<processor>.json`.

python benchmarks/quick_page.py [--check]
"""

import argparse
import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEHIND = 0.97  # of a peer's speed; so few rounds do not resolve less
HEAD = """# Quick measurements

`make bench` runs short rounds of the benchmarks that have peers and writes this page
(`benchmarks/quick.py`). It is made for ten minutes on two cores. Peers run in the same rounds, on
the same weights or shapes, and only if they are installed, which is
`pip install -c constraints.txt -e ".[bench]"`. `speed` is Miniformer's speed over the peer's: above
1, Miniformer is faster. One to three rounds are few: another run differs by some percent.
[The page of measurements](../benchmarks/README.md) has longer runs and describes the scripts.
"""
# Weights of peers in the same number of bits; llama.cpp's Python package has no batches.
DECODING_PEERS = {
    "float32": ("transformers, float32", "llama.cpp, f32"),
    "bf16": ("transformers, bf16", "llama.cpp, f16"),
    "int8": ("llama.cpp, q8_0",),
    "int4": ("llama.cpp, q4_0",),
}
BEAM_PEERS = {"float32": ("transformers, float32", "ctranslate2, float32"),
              "int8": ("ctranslate2, int8",)}  # fmt: skip


def training_rows(result):
    """Rows of training steps: both shapes of Miniformer beside every peer."""
    for group, rows in result.items():
        if not group.startswith(("float32", "bfloat16")):
            continue
        own = [name for name in rows if name.startswith("miniformer ")]
        peers = [name for name in rows if name not in (*own, "gemm_peak_gflops")]
        for name in own:
            for peer in peers:
                subject = f"training step, {name.split()[1]} shape, {group}, tokens/s"
                yield subject, rows[name]["tokens_per_s"], peer, rows[peer]["tokens_per_s"]


def decoding_rows(result):
    """Rows of decoding: one prompt, and 16 prompts where the peer has batches."""
    for shape, values in result.items():
        rates = {row["name"]: row for row in values["rows"]}
        for own, peers in DECODING_PEERS.items():
            for peer in peers:
                for batch in (1, 16):
                    if peer not in rates or (batch > 1 and peer.startswith("llama.cpp")):
                        continue
                    key, prompts = f"batch_{batch}", f"{batch} prompt{'s' * (batch > 1)}"
                    subject = f"decoding, {shape.upper()}, {own}, {prompts}, tokens/s"
                    yield subject, rates[f"miniformer, {own}"][key], peer, rates[peer][key]


def beam_rows(result):
    """Rows of beam search."""
    rates = result["rates"]
    for own, peers in BEAM_PEERS.items():
        for peer in peers:
            if peer in rates:
                subject = f"beam search, {own}, target tokens/s"
                yield subject, rates[f"miniformer, {own}"], peer, rates[peer]


def adapter_rows(result):
    """Rows of LoRA."""
    row = result["row"]
    if "peft_tokens_per_s" in row:
        yield (
            "LoRA step, tokens/s", row["lora_tokens_per_s"], "peft on transformers",
            row["peft_tokens_per_s"],
        )  # fmt: skip


def trainer_rows(result):
    """Rows of the trainer's overhead."""
    for name, row in result.items():
        if name != "environment":
            own = 1000 / (row["bare_step_ms"] * row["ratio"])
            yield (
                f"training run, {name}, steps/s", own, "a bare loop", 1000 / row["bare_step_ms"]
            )  # fmt: skip


ROWS = {
    "training_step": training_rows, "decoding": decoding_rows, "beams": beam_rows,
    "adapters": adapter_rows, "trainer": trainer_rows,
}  # fmt: skip


def comparisons(parts):
    """All rows of a processor: subject, own value, peer, its value."""
    for name, rows in ROWS.items():
        if name in parts:
            yield from rows(parts[name]["result"])


def number(value):
    """A value with three or more digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def section(path):
    """Markdown of one processor."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    machine, parts = stored["environment"], stored["parts"]
    versions = {}
    for part in parts.values():
        result = part["result"]
        own = result.get("environment") or next(iter(result.values()))["environment"]
        versions |= own["packages"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    flags = ", ".join(machine["instructions"]) or "no extensions"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    seconds = sum(part["seconds"] for part in parts.values())
    lines = [
        f"## {machine['cpu']}", "",
        f"{threads}; {flags}; Python {machine['python']}; {packages}.",
        f"The parts took {seconds} s ([the file](../benchmarks/results/{path.name})).", "",
        "| measured | Miniformer | peer | its value | speed |", "|---|---|---|---|---|",
    ]  # fmt: skip
    behind = []
    for subject, own, peer, value in comparisons(parts):
        ratio = own / value
        lines.append(f"| {subject} | {number(own)} | {peer} | {number(value)} | {ratio:.2f} |")
        if ratio < BEHIND:
            behind.append(f"- {subject}: {peer} has {value / own:.2f} of Miniformer's speed")
    lines += ["", "Where a peer is ahead by more than 3 %:", ""]
    return "\n".join([*lines, *(behind or ["- nowhere in these rows"])]) + "\n"


def page():
    """The page, with a section for each processor."""
    paths = [
        path
        for path in sorted(RESULTS.glob("*.json"))
        if "parts" in json.loads(path.read_text(encoding="utf-8"))
    ]
    return "\n".join([HEAD, *map(section, paths)])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is another one")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/benchmarks.md is not of these results: run python benchmarks/quick_page.py")


if __name__ == "__main__":
    main()
