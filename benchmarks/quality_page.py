"""docs/recipes.md: what recipes give, from results/quality.json and recipes.yaml.

    python benchmarks/quality_page.py [--check]

`--check` writes nothing; its exit code is 1 where the page is not that of the results.
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

"What figure should I get?", for data sets of the field's textbooks, trained from scratch on a CPU.
A recipe is a YAML file of this repository; the paths are your own:

    miniformer train --config recipes/japanese_vowels.yaml \\
      --train_path train.jsonl --val_path val.jsonl --test_path test.jsonl

A dot changes one setting of a recipe, as `--model_config.max_seq_len 512` does; a whole
`--model_config '{...}'` would take the place of the recipe's.

Figures are of the test split (of val, where there is none), the mean over seeds ± their standard
deviation; "one run" marks a figure of a single seed. Settings were chosen on val. *Defaults*: no
flags but paths and task, and the minutes that they take. Minutes are of one whole run. This page is
written by
`python benchmarks/quality.py`, from [quality.json](../benchmarks/results/quality.json), which says
more, and [recipes.yaml](../benchmarks/recipes.yaml).

| recipe | figure | recipe gives | defaults give | simple method | other | minutes | parameters |
|---|---|---|---|---|---|---|---|
"""
LIMITS = """
## What limits them

"""
DATA = """
## The data

"""
WORTH = """
## What a setting is worth

The figure on val, of the recipe as it is and with one change (null takes a setting out). What
seq2seq models write is measured on 500 examples, greedily; `num_beams`, on all of val.

| recipe | figure, val | change | recipe | changed |
|---|---|---|---|---|
"""


def facts():
    """What there is to say of each data set beside what was measured."""
    return yaml.safe_load((ROOT / "benchmarks" / "recipes.yaml").read_text(encoding="utf-8"))


def page(entries):
    """The page of docs: what each recipe gives, on which data, and what limits it."""
    about = facts()
    rows, limits, data = [], [], []
    found = latest(entries)
    for (recipe, defaults, gpu), entry in found.items():
        if defaults:
            continue
        told, plain = about[recipe], found.get((recipe, True, gpu))
        simple = [f"{name} {value:.3g}" for name, value in told.get("simple", {}).items()]
        cells = [
            f"[{recipe}](../recipes/{recipe}.yaml)",
            f"{entry['metric'].replace('_', ' ')}, {entry['split']}",
            figure(entry),
            "-" if plain is None else f"{figure(plain)}, {minutes(plain)} min",
            *(simple or ["-"]),
            told["compared"],
            f"{minutes(entry)} on {gpu or cores(entry)}",
            f"{entry['parameters'] / 1e6:.2f}M",
        ]
        rows.append(f"| {' | '.join(cells)} |")
        limits += [f"- {recipe}: {told['limits']}"] if "limits" in told else []
        data.append(f"- {recipe}: {told['data']}")
    parts = [HEAD, rows, DATA, data, LIMITS if limits else "", limits]
    text = "".join(each if isinstance(each, str) else "\n".join(each) + "\n" for each in parts)
    return text + worth(entries)


def latest(entries):
    """The last entry of each recipe, by whether it is of defaults, and by the GPU or none."""
    found = {}
    for recipe in facts():
        for each in entries:
            if each["recipe"] == recipe and not each["change"]:
                gpu = None if " cores, " in each["machine"] else each["machine"]
                found[recipe, each["defaults"], gpu] = each
    return found


def cores(entry):
    """How many cores an entry's runs had."""
    count = entry["machine"].partition(" of ")[0]
    return "1 core" if count == "1" else f"{count} cores"


def worth(entries):
    """What single settings are worth: a table of the changes, beside the recipes unchanged."""
    whole = {key[0]: each for key, each in latest(entries).items() if not key[1]}
    changed = {
        (each["recipe"], json.dumps(each["change"])): each for each in entries if each["change"]
    }
    rows = []
    for (recipe, change), entry in changed.items():
        unchanged = whole.get(recipe)
        if unchanged is None or merged(unchanged["settings"], entry["change"]) != entry["settings"]:
            continue  # of another recipe than the one there is
        pair = [figure(on_val(each)) for each in (unchanged, entry)]
        metric = entry["metric"].replace("_", " ")
        rows.append(f"| {recipe} | {metric} | `{change}` | {' | '.join(pair)} |")
    for recipe, entry in whole.items():  # what needs no training of its own
        pair = [on_val(entry, name) for name in ("beams_", "greedy_")]
        if None not in pair:
            metric, change = entry["metric"].replace("_", " "), {"task_config": {"num_beams": 1}}
            said = " | ".join(map(figure, pair))
            rows.append(f"| {recipe} | {metric} | `{json.dumps(change)}` | {said} |")
    rows.sort(key=lambda row: list(facts()).index(row.split()[1]))
    return WORTH + "\n".join(rows) + "\n" if rows else ""


def on_val(entry, how=""):
    """Mean and spread of an entry's figure on val; None: it was not measured in that way."""
    name = f"val_{how}{entry['metric']}"
    found = [run[name] for run in entry["runs"] if name in run]
    if not found:
        return None
    spread = statistics.stdev(found) if len(found) > 1 else None
    return {"mean": statistics.mean(found), "spread": spread}


def minutes(entry):
    """Minutes of one run, in words."""
    return "< 0.1" if entry["minutes"] < 0.1 else f"{entry['minutes']:.1f}"


def figure(entry):
    """Mean and spread, in words."""
    spread = " (one run)" if entry["spread"] is None else f" ± {entry['spread']:.3g}"
    return f"{entry['mean']:.4g}{spread}"


def merged(settings, change):
    """Settings with a change, whose objects are merged; null takes a setting out."""
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
