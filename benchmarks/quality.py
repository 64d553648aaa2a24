"""What a recipe gives: its figure over seeds, on the test split, with time and size.

    python benchmarks/quality.py RECIPE DATA [--seeds 3] [--jobs 1] [--defaults | --change JSON]
        [--save]

RECIPE is the name of a file in recipes/; DATA is a folder with train, val and test files (.jsonl or
.txt; without a test file the figure is of val). Each run is a process of its own; `--jobs 2` has
two of them at once, with half of the cores each. `--defaults` leaves the recipe's settings out:
only paths and task are said. `--change JSON` changes some of them, such as {"task_config":
{"r_drop": 0}}, to see on val what they are worth; nothing is tested. `--save` adds the result to
results/quality.json and writes docs/recipes.md from it (`quality_page.py`).
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
from miniformer.model.pretrained import read_config
from quality_page import PAGE, RESULTS, ROOT, facts, merged, page


def files_of(data):
    """The train, val and test files in a folder, by split."""
    ends = ("jsonl", "txt")
    found = {(n, e): data / f"{n}.{e}" for n in ("train", "val", "test") for e in ends}
    return {name: path for (name, _), path in found.items() if path.exists()}


def settings_of(recipe, data, *, seed, defaults, change):
    """Settings of a run: the recipe's, changed, or only its task; and the paths.

    What is changed is not tested: that would be a choice made on the test split.
    """
    paths = {
        f"{name}_path": str(path)
        for name, path in files_of(data).items()
        if name != "test" or not change
    }
    settings = {**chosen(recipe, defaults=defaults, change=change), **paths}
    return {**settings, "seed": seed, "logger": "none", "experiment_name": "run"}


def chosen(recipe, *, defaults, change):
    """The recipe's settings, changed, or only its task."""
    settings = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())
    return merged({"task": settings["task"]} if defaults else settings, change)


def run(settings):
    """A run's seed, wall-clock seconds, figures and parameters; in a process of its own."""
    from miniformer.training.run import train

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = train(TrainConfig.from_dict({**settings, "work_dir": folder}))
        kind, config = read_config(result.model)
        about = {"seed": settings["seed"], "seconds": round(time.perf_counter() - began, 1)}
        figures = result.metrics | of_text(settings, result) | of_beams(settings, result)
    parameters = config.num_params(seq2seq=kind.startswith("Seq2Seq"))
    return {**figures, **about, "parameters": parameters}  # whose seconds are those of all


def of_text(settings, result):
    """Figures of a language model that mean the same whatever its tokens are.

    nats_per_byte is what a validation measures; word_perplexity, what `miniformer score` does.
    """
    found = {}
    if settings["task"] == "language_modeling":
        for split in [name for name in ("val", "test") if f"{name}_path" in settings]:
            nats = result.metrics[f"{split}_bits_per_byte"] * math.log(2)
            scored = load(result.model).perplexity(settings[f"{split}_path"])
            found[f"{split}_nats_per_byte"] = nats
            found[f"{split}_word_perplexity"] = scored["word_perplexity"]
    return found


def of_beams(settings, result):
    """What a search is worth where there is one: figures of all of val, greedy and with its beams.

    The val figures of training are greedy, and of some examples only.
    """
    beams = settings.get("task_config", {}).get("num_beams", 1)
    if beams == 1:
        return {}
    lines = Path(settings["val_path"]).read_text(encoding="utf-8").splitlines()
    records, model, found = [json.loads(line) for line in lines], load(result.model), {}
    wanted = [record["target"].strip() for record in records]
    for name, number in (("greedy", 1), ("beams", beams)):
        written = model.predict([record["source"] for record in records], num_beams=number)
        written = [text.strip() for text in written]
        found[f"val_{name}_exact_match"] = statistics.mean(map(str.__eq__, written, wanted))
        if importlib.util.find_spec("sacrebleu"):
            import sacrebleu

            found[f"val_{name}_bleu"] = sacrebleu.corpus_bleu(written, [wanted]).score
    return found


def measure(recipe, data, seeds, *, jobs=1, defaults=False, change=None):
    """The entry of a recipe in results/quality.json."""
    change = change or {}
    split = "test" if "test" in files_of(data) and not change else "val"
    metric = facts()[recipe]["figure"]
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
        "settings": chosen(recipe, defaults=defaults, change=change),
        "split": split,
        "metric": metric,
        "mean": round(statistics.mean(found), 4),
        "spread": round(statistics.stdev(found), 4) if seeds > 1 else None,
        "minutes": round(statistics.mean(each["seconds"] for each in runs) / 60, 1),
        "parameters": parameters,
        "machine": machine(threads),
        "environment": environment("sacrebleu", threads=threads),
        "runs": runs,
    }


def machine(threads):
    """Where a run is, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{threads} of {os.cpu_count()} cores, {platform.machine()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    known = [recipe for recipe in facts() if (ROOT / "recipes" / f"{recipe}.yaml").exists()]
    parser.add_argument("recipe", choices=known)
    parser.add_argument("data", type=Path, help="folder with train, val and test files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--defaults", action="store_true", help="only paths and task are said")
    parser.add_argument(
        "--change", type=json.loads, metavar="JSON", help="of the recipe's settings"
    )
    parser.add_argument("--save", action="store_true", help="add to results/quality.json")
    given = parser.parse_args()
    missing = [name for name in ("train", "val") if name not in files_of(given.data)]
    if missing:
        parser.error(f"{given.data} has no {missing[0]}.jsonl or .txt")
    if given.defaults and given.change:
        parser.error("--change is of the recipe's settings; leave --defaults out")
    entry = measure(
        given.recipe,
        given.data,
        given.seeds,
        jobs=given.jobs,
        defaults=given.defaults,
        change=given.change,
    )
    print(json.dumps({name: entry[name] for name in ("recipe", "mean", "spread")}))
    if given.save:  # read only now: another run may have added to it
        entries = json.loads(RESULTS.read_text(encoding="utf-8"))
        RESULTS.write_text(json.dumps([*entries, entry], indent=2) + "\n", encoding="utf-8")
        PAGE.write_text(page([*entries, entry]), encoding="utf-8")


if __name__ == "__main__":
    main()
