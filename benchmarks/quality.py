"""What a recipe gives: its figure over seeds, on the test split, with time and size.

    python benchmarks/quality.py RECIPE DATA [--seeds 3] [--jobs 1] [--defaults | --change JSON]
        [--save]

RECIPE is the name of a file in recipes/; DATA is a folder with train, val and test files (.jsonl or
.txt; without a test file the figure is of val). Each run is a process of its own; `--jobs 2` has
two of them at once, with half of the cores each. `--defaults` leaves the recipe's settings out:
only paths and task are said. `--change JSON` changes some of them, such as {"task_config":
{"r_drop": 0}}, to see on val what they are worth; nothing is tested. `--save` adds the result to
results/quality.json and writes docs/recipes.md from it.

    python benchmarks/quality.py --page    only writes the page
"""

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import yaml

from miniformer import TrainConfig, load
from miniformer.model.pretrained import read_config

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
PAGE = ROOT / "docs" / "recipes.md"


# recipe: (figure, what there is to compare it with)
FIGURES = {
    "sst2": ("accuracy", "naive Bayes on words and pairs 0.796; CNN-rand with phrases 0.827"),
    "agnews": (
        "accuracy",
        "naive Bayes on words and pairs 0.885; fastText with 9 x the rows 0.925",
    ),
    "sms_spam": ("mcc", "naive Bayes 0.935; linear SVM, another split 0.893"),
    "sick_relatedness": ("pearson", "word overlap 0.589; LSTM with pretrained vectors 0.853"),
    "bikeshare": ("rmse", "ridge regression 0.768; the last hour again 1.507"),
    "japanese_vowels": ("accuracy", "nearest neighbour 0.924; published with the data 0.941"),
    "scan": ("exact_match", "Lake and Baroni 2018: 0.998"),
    "cmudict_g2p": ("exact_match", "Transformer on twice the words, stress dropped 0.779"),
    "multi30k_ende": ("bleu", "Transformer-Tiny, lower-cased and tokenised 41.0"),
    "wikitext2": ("word_perplexity", "LSTM 100.9; AWD-LSTM 65.6"),
    "tinyshakespeare": ("nats_per_byte", "nanoGPT 1.88 on a CPU, 1.47 on a GPU"),
}


HEAD = """\
# Recipes

"What figure should I get?", for data sets of the field's textbooks, trained from scratch on two
CPU cores. A recipe is a YAML file; the paths are your own:

    miniformer train --config recipes/japanese_vowels.yaml \\
      --train_path train.jsonl --val_path val.jsonl --test_path test.jsonl

Figures are of the test split (of val, where there is none), the mean over seeds ± their standard
deviation; settings were chosen on val. *Defaults*: no flags but paths and task. Minutes are of one
whole run, on one core or two. This page is written by `python benchmarks/quality.py`, from
[quality.json](../benchmarks/results/quality.json), which says more.

| recipe | figure | recipe gives | defaults give | for comparison | minutes | million parameters |
|---|---|---|---|---|---|---|
"""


WORTH = """
## What a setting is worth

The figure on val, of the recipe as it is and with one change (null takes a setting out).

| recipe | figure, val | change | recipe | changed |
|---|---|---|---|---|
"""


def settings_of(recipe, data, *, seed, defaults, change):
    """Settings of a run: the recipe's, changed, or only its task; and the paths."""
    settings = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    if defaults:
        settings = {"task": settings["task"]}
    settings = merged(settings, change)
    for name in ("train", "val") if change else ("train", "val", "test"):
        found = [path for end in ("jsonl", "txt") if (path := data / f"{name}.{end}").exists()]
        settings |= {f"{name}_path": str(path) for path in found}
    return {**settings, "seed": seed, "logger": "none", "experiment_name": "run"}


def merged(settings, change):
    """Settings with a change, whose objects are merged; null takes a setting out."""
    out = dict(settings)
    for name, value in change.items():
        both = isinstance(value, dict) and isinstance(out.get(name), dict)
        out[name] = merged(out[name], value) if both else value
    return {name: value for name, value in out.items() if value is not None}


def run(settings):
    """A run's seed, wall-clock seconds, figures and parameters; in a process of its own."""
    from miniformer.training.run import train

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = train(TrainConfig.from_dict({**settings, "work_dir": folder}))
        kind, config = read_config(result.model)
        about = {"seed": settings["seed"], "seconds": round(time.perf_counter() - began, 1)}
        figures = result.figures | of_text(settings, result)
    parameters = config.num_params(seq2seq=kind.startswith("Seq2Seq"))
    return {**figures, **about, "parameters": parameters}  # whose seconds are those of all


def of_text(settings, result):
    """Figures of a language model that mean the same whatever its tokens are.

    nats_per_byte is what a validation measures; word_perplexity, what `miniformer score` does.
    """
    found = {}
    if settings["task"] == "language_modeling":
        for split in [name for name in ("val", "test") if f"{name}_path" in settings]:
            nats = result.figures[f"{split}_bits_per_byte"] * math.log(2)
            scored = load(result.model).perplexity(settings[f"{split}_path"])
            found[f"{split}_nats_per_byte"] = nats
            found[f"{split}_word_perplexity"] = scored["word_perplexity"]
    return found


def measure(recipe, data, seeds, *, jobs=1, defaults=False, change=None):
    """The entry of a recipe in results/quality.json."""
    change = change or {}
    split = "test" if any(data.glob("test.*")) and not change else "val"
    metric = FIGURES[recipe][0]
    all_settings = [
        settings_of(recipe, data, seed=seed, defaults=defaults, change=change)
        for seed in range(seeds)
    ]
    threads = max(1, torch.get_num_threads() // jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # the processes to come read it
    context = multiprocessing.get_context("spawn")
    runs = []
    with concurrent.futures.ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        for figures in pool.map(run, all_settings):
            parameters = figures.pop("parameters")
            runs.append({name: round(value, 4) for name, value in figures.items()})
            print(json.dumps(runs[-1]), flush=True)
    found = [each[f"{split}_{metric}"] for each in runs]
    return {
        "recipe": recipe,
        "defaults": defaults,
        "change": change,
        "split": split,
        "metric": metric,
        "mean": round(statistics.mean(found), 4),
        "spread": round(statistics.stdev(found), 4) if seeds > 1 else None,
        "minutes": round(statistics.mean(each["seconds"] for each in runs) / 60, 1),
        "parameters": parameters,
        "machine": f"{threads} of {os.cpu_count()} cores, {platform.machine()}",
        "runs": runs,
    }


def page(entries):
    """The page of docs: the last entry of each recipe, with and without its settings."""
    last = {(each["recipe"], each["defaults"]): each for each in entries if not each["change"]}
    rows = []
    for recipe, (metric, compared) in FIGURES.items():
        tuned, plain = last.get((recipe, False)), last.get((recipe, True))
        if tuned is None:
            continue
        cells = [
            f"[{recipe}](../recipes/{recipe}.yaml)",
            f"{metric.replace('_', ' ')}, {tuned['split']}",
            figure(tuned),
            figure(plain),
            compared,
            f"{tuned['minutes']:.1f}",
            f"{tuned['parameters'] / 1e6:.2f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return HEAD + "\n".join(rows) + "\n" + worth(entries, last)


def worth(entries, recipes):
    """What single settings are worth: a table of the changes, beside the recipes unchanged."""
    changed = {
        (each["recipe"], json.dumps(each["change"])): each for each in entries if each["change"]
    }
    rows = []
    for (recipe, change), entry in changed.items():
        whole = recipes.get((recipe, False))
        if whole is not None:
            metric = FIGURES[recipe][0]
            pair = [figure(on_val(each, metric)) for each in (whole, entry)]
            rows.append(
                f"| {recipe} | {metric.replace('_', ' ')} | `{change}` | {' | '.join(pair)} |"
            )
    return WORTH + "\n".join(rows) + "\n" if rows else ""


def on_val(entry, metric):
    """Mean and spread of an entry's figure on val."""
    found = [run[f"val_{metric}"] for run in entry["runs"]]
    spread = statistics.stdev(found) if len(found) > 1 else None
    return {"mean": statistics.mean(found), "spread": spread}


def figure(entry):
    """Mean and spread, in words."""
    if entry is None:
        return "-"
    spread = "" if entry["spread"] is None else f" ± {entry['spread']:.3g}"
    return f"{entry['mean']:.4g}{spread}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    known = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    parser.add_argument("recipe", nargs="?", choices=known)
    parser.add_argument("data", nargs="?", type=Path, help="folder with train, val and test files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--defaults", action="store_true", help="only paths and task are said")
    parser.add_argument(
        "--change", type=json.loads, metavar="JSON", help="of the recipe's settings"
    )
    parser.add_argument("--save", action="store_true", help="add to results/quality.json")
    parser.add_argument("--page", action="store_true", help="only write docs/recipes.md")
    given = parser.parse_args()
    measured = []
    if not given.page:
        if given.data is None:
            parser.error("name a recipe and a folder of data")
        if given.defaults and given.change:
            parser.error("--change is of the recipe's settings; leave --defaults out")
        measured.append(
            measure(
                given.recipe,
                given.data,
                given.seeds,
                jobs=given.jobs,
                defaults=given.defaults,
                change=given.change,
            )
        )
        print(json.dumps({name: measured[-1][name] for name in ("recipe", "mean", "spread")}))
    # Read only now: another run may have added to it.
    entries = (json.loads(RESULTS.read_text()) if RESULTS.exists() else []) + measured
    if given.save:
        RESULTS.write_text(json.dumps(entries, indent=2) + "\n")
    if given.save or given.page:
        PAGE.write_text(page(entries), encoding="utf-8")


if __name__ == "__main__":
    main()
