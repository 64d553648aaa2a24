"""Quality of a recipe: its metric over seeds on the test split, time and parameters.

    python benchmarks/quality.py RECIPE DATA [--seeds 3] [--jobs 1] [--defaults | --change JSON]
        [--save]

RECIPE is the name of a file in recipes/. DATA is a folder with train, val and test files (.jsonl or
.txt; without a test file the metric is that of val). Each run is a separate process; `--jobs 2`
runs two at once, with half of the cores each. `--defaults` omits the settings of the recipe, except
for paths and task. `--change JSON` changes settings, such as {"task_config": {"r_drop": 0}}, and
evaluates them on val only. `--save` adds the result to results/quality.json and writes
docs/recipes.md from it (`quality_page.py`).
"""

import argparse
import concurrent.futures
import importlib.util
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

from environment import environment
from miniformer import TrainConfig, load
from miniformer.model.config_file import read_config
from quality_page import PAGE, RESULTS, ROOT, facts, merged, page


def files_of(data):
    """The train, val and test files in a folder, by split."""
    suffixes = ("jsonl", "txt")
    paths = {(n, s): data / f"{n}.{s}" for n in ("train", "val", "test") for s in suffixes}
    return {name: path for (name, _), path in paths.items() if path.exists()}


def settings_of(recipe, data, *, seed, defaults, change):
    """Settings of a run: those of `recipe_settings`, and the paths.

    A changed recipe is not tested: that would be a selection on the test split.
    """
    paths = {
        f"{name}_path": str(path)
        for name, path in files_of(data).items()
        if name != "test" or not change
    }
    settings = {**recipe_settings(recipe, defaults=defaults, change=change), **paths}
    return {**settings, "seed": seed, "logger": "none", "experiment_name": "run"}


def recipe_settings(recipe, *, defaults, change):
    """Settings of the recipe with the changes, or only its task."""
    settings = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    return merged({"task": settings["task"]} if defaults else settings, change)


def run(settings):
    """Seed, seconds, metrics and parameters of a run; in a separate process.

    The seconds are those of the processor divided by the threads, which other work on the machine
    does not lengthen; on a GPU, those of the clock.
    """
    from miniformer.training.run import train

    start_time, before = time.perf_counter(), os.times()
    with tempfile.TemporaryDirectory() as folder:
        result = train(TrainConfig.from_dict({**settings, "work_dir": folder}))
        kind, config = read_config(result.model)
        clock = time.perf_counter() - start_time
        processor = sum(os.times()[:4]) - sum(before[:4])  # of this process and its children
        seconds = clock if torch.cuda.is_available() else processor / torch.get_num_threads()
        info = {"seed": settings["seed"], "seconds": round(seconds, 1)}
        metrics = result.metrics | text_metrics(settings, result) | beam_metrics(settings, result)
    parameters = config.num_params(seq2seq=kind.startswith("Seq2Seq"))
    return {**metrics, **info, "parameters": parameters}  # the seconds of the complete run


def text_metrics(settings, result):
    """Metrics of a language model that do not depend on its tokenizer.

    nats_per_byte is a validation metric; word_perplexity is that of `miniformer score`.
    """
    metrics = {}
    if settings["task"] == "language_modeling":
        for split in [name for name in ("val", "test") if f"{name}_path" in settings]:
            nats = result.metrics[f"{split}_bits_per_byte"] * math.log(2)
            scored = load(result.model).perplexity(settings[f"{split}_path"])
            metrics[f"{split}_nats_per_byte"] = nats
            metrics[f"{split}_word_perplexity"] = scored["word_perplexity"]
    return metrics


def beam_metrics(settings, result):
    """Metrics of greedy decoding and beam search on all of val, if the recipe uses beam search.

    The validation metrics of training use greedy decoding of some examples.
    """
    beams = settings.get("task_config", {}).get("num_beams", 1)
    if beams == 1:
        return {}
    lines = Path(settings["val_path"]).read_text(encoding="utf-8").splitlines()
    records, model, metrics = [json.loads(line) for line in lines], load(result.model), {}
    targets = [record["target"].strip() for record in records]
    for name, number in (("greedy", 1), ("beams", beams)):
        outputs = model.predict([record["source"] for record in records], num_beams=number)
        outputs = [text.strip() for text in outputs]
        metrics[f"val_{name}_exact_match"] = statistics.mean(map(str.__eq__, outputs, targets))
        if importlib.util.find_spec("sacrebleu"):
            import sacrebleu

            metrics[f"val_{name}_bleu"] = sacrebleu.corpus_bleu(outputs, [targets]).score
    return metrics


def measure(recipe, data, seeds, *, jobs=1, defaults=False, change=None):
    """The entry of a recipe in results/quality.json."""
    change = change or {}
    split = "test" if "test" in files_of(data) and not change else "val"
    metric = facts()[recipe]["metric"]
    all_settings = [
        settings_of(recipe, data, seed=seed, defaults=defaults, change=change)
        for seed in range(seeds)
    ]
    threads = max(1, torch.get_num_threads() // jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the child processes
    context = multiprocessing.get_context("spawn")
    runs = []
    with concurrent.futures.ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as executor:
        for metrics in executor.map(run, all_settings):
            parameters = metrics.pop("parameters")
            runs.append({name: round(value, 4) for name, value in metrics.items()})
            print(json.dumps(runs[-1]), flush=True)
    values = [result[f"{split}_{metric}"] for result in runs]
    return {
        "recipe": recipe,
        "defaults": defaults,
        "change": change,
        "settings": recipe_settings(recipe, defaults=defaults, change=change),
        "split": split,
        "metric": metric,
        "mean": round(statistics.mean(values), 4),
        "spread": round(statistics.stdev(values), 4) if seeds > 1 else None,
        "minutes": round(statistics.mean(result["seconds"] for result in runs) / 60, 1),
        "parameters": parameters,
        "machine": machine(threads),
        "environment": environment("sacrebleu", threads=threads),
        "runs": runs,
    }


def machine(threads):
    """Description of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{threads} of {os.cpu_count()} cores, {platform.machine()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    known = [recipe for recipe in facts() if (ROOT / "recipes" / f"{recipe}.yaml").exists()]
    parser.add_argument("recipe", choices=known)
    parser.add_argument("data", type=Path, help="folder with train, val and test files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="concurrent runs")
    parser.add_argument("--defaults", action="store_true", help="omit the settings of the recipe")
    parser.add_argument("--change", type=json.loads, metavar="JSON", help="changes of the settings")
    parser.add_argument("--save", action="store_true", help="add to results/quality.json")
    options = parser.parse_args()
    missing = [name for name in ("train", "val") if name not in files_of(options.data)]
    if missing:
        parser.error(f"{options.data} has no {missing[0]}.jsonl or .txt")
    if options.defaults and options.change:
        parser.error("--change needs the settings of the recipe; leave --defaults out")
    entry = measure(
        options.recipe,
        options.data,
        options.seeds,
        jobs=options.jobs,
        defaults=options.defaults,
        change=options.change,
    )
    print(json.dumps({name: entry[name] for name in ("recipe", "mean", "spread")}))
    if options.save:  # read after the runs: another process may have added entries
        entries = [*json.loads(RESULTS.read_text(encoding="utf-8")), entry]
        opposite_settings = recipe_settings(
            options.recipe, defaults=not options.defaults, change={}
        )
        if not options.change and opposite_settings == entry["settings"]:
            # The recipe is the defaults: one measurement is that of both.
            entries.append({**entry, "defaults": not options.defaults})
        RESULTS.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        PAGE.write_text(page(entries), encoding="utf-8")


if __name__ == "__main__":
    main()
