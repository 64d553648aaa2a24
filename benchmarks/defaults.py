"""Quality of the defaults on many data sets, beside the strongest simple method on each.

    python benchmarks/defaults.py DATA [--sets NAME...] [--seeds 3] [--max_time 10m]
        [--threads 1] [--policy NAME --settings JSON] [--save]
    python benchmarks/defaults.py --compare
    python benchmarks/defaults.py --table

DATA is a folder with a folder for each data set of defaults.yaml: train, val and test files (.jsonl
or .txt). A run gets the paths and the task, no other setting. Its metric is that of the test split,
or of val if there is none. `--policy` names another policy, which has the settings of `--settings`
on every set. `--save` adds each run to results/defaults.json at once, so that a long measurement
may be continued: sets and seeds that are saved for a policy are not run again.

`--table` prints the mean over seeds for each set beside the simple method. `--compare` prints, for
each set, the policy that is best on all *other* sets (by mean rank), and its result on this one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from environment import environment

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "defaults.json"
DEFAULT_POLICY = "defaults"


def facts():
    """The data sets of defaults.yaml by name."""
    return yaml.safe_load((FOLDER / "defaults.yaml").read_text(encoding="utf-8"))


def entries():
    """The saved runs."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []


def files_of(data):
    """The train, val and test files in a folder, by split."""
    paths = {(name, suffix): data / f"{name}.{suffix}"
             for name in ("train", "val", "test") for suffix in ("jsonl", "txt")}  # fmt: skip
    return {name: path for (name, _), path in paths.items() if path.exists()}


def run_once(name, data, seed, *, policy, settings, max_time, threads):
    """One run of the command line in its own process, and its metric."""
    fact, files = facts()[name], files_of(data / name)
    split = "test" if "test" in files else "val"
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"--{part}_path={path}" for part, path in files.items()]
        arguments += [f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
                      for key, value in settings.items()]  # fmt: skip
        arguments += [
            f"--task={fact['task']}", f"--work_dir={folder}", "--experiment_name=run",
            "--logger=none", f"--seed={seed}", f"--threads={threads}",
            *([f"--max_time={max_time}"] if max_time else []),
        ]  # fmt: skip
        started = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-m", "miniformer.cli", "train", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - started
        if process.returncode:
            sys.exit(f"{name}, seed {seed}: {process.stderr[-2000:]}")
        value, parameters = result_of(Path(folder) / "run", files[split], fact, split)
    return {
        "set": name,
        "policy": policy,
        "settings": settings,
        "seed": seed,
        "split": split,
        "metric": fact["metric"],
        "value": round(value, 4),
        "minutes": round(seconds / 60, 2),
        "parameters": parameters,
        "environment": environment(threads=threads),
    }


def result_of(run, file, fact, split):
    """The metric of a run, and the parameters of its model."""
    import miniformer

    directory = run / "best" if (run / "best").exists() else run / "last"
    pipeline = miniformer.load(directory)
    parameters = sum(parameter.numel() for parameter in pipeline.model.parameters())
    if fact["task"] == "language_modeling":
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        best = min((row for row in rows if "val_loss" in row), key=lambda row: row["val_loss"])
        return best[f"val_{fact['metric']}"], parameters
    evaluation = pipeline.evaluate(file, num_resamples=0)
    name, _, label = fact["metric"].partition(":")
    if label:
        rows = {str(row.name): row for row in evaluation.classes}
        return rows[label].f1, parameters
    return evaluation.metrics[name], parameters


def means(runs):
    """Mean and standard deviation over seeds by (policy, set)."""
    values = {}
    for run in runs:
        values.setdefault((run["policy"], run["set"]), []).append(run)
    return {
        key: {
            "mean": statistics.mean(run["value"] for run in same_runs),
            "spread": statistics.stdev(run["value"] for run in same_runs)
            if len(same_runs) > 1
            else 0.0,
            "minutes": statistics.mean(run["minutes"] for run in same_runs),
            "seeds": len(same_runs),
        }
        for key, same_runs in values.items()
    }


def table(runs, policy=DEFAULT_POLICY):
    """A Markdown table of a policy beside the simple methods."""
    lines = ["| data set | metric | defaults | simple method | ratio | minutes |", "|" + "---|" * 6]
    results = means(runs)
    for name, fact in facts().items():
        result = results.get((policy, name))
        if result is None:
            continue
        simple = fact["simple"]
        quotient = "-"
        if simple is not None:
            better = simple / result["mean"] if fact.get("lower") else result["mean"] / simple
            quotient = f"{better:.3f}"
        seeds = result["seeds"]
        spread = " (1 seed)" if seeds == 1 else f" ± {result['spread']:.4f} ({seeds} seeds)"
        lines.append(
            f"| {name} | {fact['metric']} | {result['mean']:.4f}{spread} | "
            f"{'-' if simple is None else simple}: {fact['method']} | "
            f"{quotient} | {result['minutes']:.1f} |"
        )
    return "\n".join(lines)


def ranks(runs):
    """Rank of each policy on each set that all policies were run on: {set: {policy: rank}}."""
    results = means(runs)
    policies = sorted({policy for policy, _ in results})
    result = {}
    for name, fact in facts().items():
        values = {policy: results.get((policy, name)) for policy in policies}
        if all(values.values()):
            sign = 1 if fact.get("lower") else -1
            order = sorted(policies, key=lambda policy: sign * values[policy]["mean"])
            result[name] = {policy: order.index(policy) + 1 for policy in policies}
    return result


def compare(runs):
    """Leave one set out: the policy that is best on the others, and its result on this one."""
    all_ranks, results = ranks(runs), means(runs)
    lines = ["| left out | chosen on the others | rank here | result |", "|" + "---|" * 4]
    for name, own in all_ranks.items():
        others = [values for left, values in all_ranks.items() if left != name]
        chosen = min(own, key=lambda policy: statistics.mean(row[policy] for row in others))
        value = results[chosen, name]["mean"]
        lines.append(f"| {name} | {chosen} | {own[chosen]} of {len(own)} | {value:.4f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", type=Path, help="folder with the data sets")
    parser.add_argument("--sets", nargs="+", choices=list(facts()), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max_time", help="limit of each run, such as 10m")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--policy", default=DEFAULT_POLICY, help="name of a policy")
    parser.add_argument("--settings", type=json.loads, default={}, help="its settings")
    parser.add_argument("--save", action="store_true", help="add to results/defaults.json")
    parser.add_argument("--table", action="store_true", help="print the saved results")
    parser.add_argument("--compare", action="store_true", help="compare the saved policies")
    options = parser.parse_args()
    if options.table or options.compare:
        print(table(entries(), options.policy) if options.table else compare(entries()))
        return
    if options.data is None:
        parser.error("name the folder of the data sets")
    done = {(run["policy"], run["set"], run["seed"]) for run in entries()}
    for seed in range(options.seeds):
        for name in options.sets or facts():
            if (options.policy, name, seed) in done or not (options.data / name).exists():
                continue
            run = run_once(
                name, options.data, seed, policy=options.policy, settings=options.settings,
                max_time=options.max_time, threads=options.threads,
            )  # fmt: skip
            print(json.dumps(run), flush=True)
            if options.save:
                text = json.dumps([*entries(), run], indent=1)
                RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
