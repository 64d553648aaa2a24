"""Writes docs/recipes.md from results/quality.json and recipes.yaml.

    python benchmarks/quality_page.py [--check]

`--check` writes nothing; the exit code is 1 if the page does not match the results.
"""

import json
import statistics
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
PAGE = ROOT / "docs" / "recipes.md"

HEAD = """\
# Recipes

Results on well-known data sets, trained from scratch on a CPU. A recipe is a YAML file of this
repository; replace the paths by your own:

    miniformer train --config recipes/japanese_vowels.yaml \\
      --train_path train.jsonl --val_path val.jsonl --test_path test.jsonl

A flag with a dot changes one setting of a recipe, such as `--model_config.max_seq_len 512`. A
complete `--model_config '{...}'` replaces that of the recipe.

Metrics are those of the test split, or of val if there is none: the mean over seeds ± the standard
deviation; "one run" marks a single seed. Settings were selected on val. *Defaults*: the metric and
minutes of a run without flags other than paths and task. Minutes are those of one complete run.
`make bench-quality RECIPE=... DATA=...` writes this page from
[quality.json](../benchmarks/results/quality.json), which has more details, and
[recipes.yaml](../benchmarks/recipes.yaml).

sst2, sms_spam, sick_relatedness, bikeshare and japanese_vowels were measured last. The other rows
are of an earlier version: agnews had no wide head then, in the recipe and in the defaults.

| recipe | metric | recipe | defaults | simple method | other results | minutes | parameters |
|---|---|---|---|---|---|---|---|
"""
LIMITS = """
## Limits

"""
DATA = """
## Data

"""
ABLATIONS = """
## Ablations

The metric on val of the recipe, and of the recipe with one change; null removes a setting. For
seq2seq the metric is that of greedy decoding on 500 examples; for `num_beams`, that of all of val.

| recipe | metric, val | change | recipe | changed |
|---|---|---|---|---|
"""


def facts():
    """Texts and results of other methods, by recipe."""
    return yaml.safe_load((ROOT / "benchmarks" / "recipes.yaml").read_text(encoding="utf-8"))


def page(entries):
    """Text of docs/recipes.md: a table of results, the data, limits and ablations."""
    about = facts()
    rows, limits, data = [], [], []
    results = latest(entries)
    for (recipe, defaults, gpu), entry in results.items():
        if defaults:
            continue
        texts, plain = about[recipe], results.get((recipe, True, gpu))
        simple = [f"{name} {value:.3g}" for name, value in texts.get("simple", {}).items()]
        cells = [
            f"[{recipe}](../recipes/{recipe}.yaml)",
            f"{entry['metric'].replace('_', ' ')}, {entry['split']}",
            mean_and_spread(entry),
            "-" if plain is None else f"{mean_and_spread(plain)}, {minutes(plain)} min",
            *(simple or ["-"]),
            texts["compared"],
            f"{minutes(entry)} on {gpu or cores(entry)}",
            f"{entry['parameters'] / 1e6:.2f}M",
        ]
        rows.append(f"| {' | '.join(cells)} |")
        limits += [f"- {recipe}: {texts['limits']}"] if "limits" in texts else []
        data.append(f"- {recipe}: {texts['data']}")
    parts = [HEAD, rows, DATA, data, LIMITS if limits else "", limits]
    text = "".join(part if isinstance(part, str) else "\n".join(part) + "\n" for part in parts)
    return text + ablations(entries)


def latest(entries):
    """The last entry by recipe, whether it has the defaults, and GPU (None: CPU)."""
    result = {}
    for recipe in facts():
        for entry in entries:
            if entry["recipe"] == recipe and not entry["change"]:
                gpu = None if " cores, " in entry["machine"] else entry["machine"]
                result[recipe, entry["defaults"], gpu] = entry
    return result


def cores(entry):
    """Number of cores of the runs of an entry, as text."""
    count = entry["machine"].partition(" of ")[0]
    return "1 core" if count == "1" else f"{count} cores"


def ablations(entries):
    """Table of single changes of recipes; empty if there are none."""
    recipes = {key[0]: entry for key, entry in latest(entries).items() if not key[1]}
    changed = {
        (entry["recipe"], json.dumps(entry["change"])): entry
        for entry in entries
        if entry["change"]
    }
    rows = []
    for (recipe, change), entry in changed.items():
        unchanged = recipes.get(recipe)
        if unchanged is None or merged(unchanged["settings"], entry["change"]) != entry["settings"]:
            continue  # measured for earlier settings of the recipe
        pair = [mean_and_spread(on_val(result)) for result in (unchanged, entry)]
        metric = entry["metric"].replace("_", " ")
        rows.append(f"| {recipe} | {metric} | `{change}` | {' | '.join(pair)} |")
    for recipe, entry in recipes.items():  # greedy decoding needs no training of its own
        pair = [on_val(entry, name) for name in ("beams_", "greedy_")]
        if None not in pair:
            metric, change = entry["metric"].replace("_", " "), {"task_config": {"num_beams": 1}}
            cells = " | ".join(map(mean_and_spread, pair))
            rows.append(f"| {recipe} | {metric} | `{json.dumps(change)}` | {cells} |")
    rows.sort(key=lambda row: list(facts()).index(row.split()[1]))
    return ABLATIONS + "\n".join(rows) + "\n" if rows else ""


def on_val(entry, decoding=""):
    """Mean and spread of an entry on val; None if no run has that metric."""
    name = f"val_{decoding}{entry['metric']}"
    values = [run[name] for run in entry["runs"] if name in run]
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "spread": spread}


def minutes(entry):
    """Minutes of one run, as text."""
    return "< 0.1" if entry["minutes"] < 0.1 else f"{entry['minutes']:.1f}"


def mean_and_spread(entry):
    """Mean and standard deviation, as text."""
    spread = " (one run)" if entry["spread"] is None else f" ± {entry['spread']:.3g}"
    return f"{entry['mean']:.4g}{spread}"


def merged(settings, change):
    """Settings with a change; mappings are merged, and null removes a setting."""
    out = dict(settings)
    for name, value in change.items():
        both = isinstance(value, dict) and isinstance(out.get(name), dict)
        out[name] = merged(out[name], value) if both else value
    return {name: value for name, value in out.items() if value is not None}


def main():
    text = page(json.loads(RESULTS.read_text(encoding="utf-8")))
    if sys.argv[1:] == ["--check"]:
        return int(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
