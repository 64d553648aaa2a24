"""Steps that Muon needs to reach the final loss of AdamW.

    python benchmarks/optimizers.py --text DIR [--pairs DIR] [--seeds 3] [--jobs 2] [--save]

DIR is a folder with train.txt and val.txt (a character language model), or with train.jsonl and
val.jsonl of sources and targets (seq2seq). Muon gets seven tenths of the steps of AdamW. Each uses
the best learning rate of its list, selected with the first seed on the validation data, and a
cosine schedule over its own steps. Results depend on steps, not on time: `--jobs` runs are
concurrent, with one thread each.
"""

import argparse
import concurrent.futures
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import environment

SHARE = 0.7
RATES = {"adamw": (1e-3, 2e-3, 4e-3, 8e-3), "muon": (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2)}
SHAPE = {"d_model": 128, "n_heads": 4, "dropout": 0.0, "max_seq_len": 128}
TEXT = {
    "steps": 2000, "files": ("train.txt", "val.txt"), "model": {**SHAPE, "n_layers": 4},
    "flags": {"tokenizer": "char", "seq_len": 64, "batch_size": 12},
}  # fmt: skip
PAIRS = {
    "steps": 300, "files": ("train.jsonl", "val.jsonl"),
    "model": {**SHAPE, "n_layers": 2, "vocab_size": 4000, "dropout": 0.1},
    "flags": {"task": "seq2seq", "tokenizer": "bpe", "seq_len": 64, "batch_size": 64},
}  # fmt: skip


def final_loss(data, kind, optimizer, steps, lr, seed):
    """Final validation loss of a run."""
    train, val = kind["files"]
    flags = {
        **kind["flags"], "train_path": data / train, "val_path": data / val, "lr": lr,
        "optimizer": optimizer, "max_steps": steps, "seed": seed, "val_check_interval": 10**6,
        "logger": "none", "model_config": json.dumps(kind["model"]),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(
            [
                sys.executable, "-m", "miniformer.trainer", "--work_dir", folder,
                *(part for key, value in flags.items() for part in (f"--{key}", str(value))),
            ],
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
    if process.returncode != 0:
        raise SystemExit(f"{optimizer}, lr {lr}: {process.stderr[-2000:]}")
    return float(re.findall(r"validation loss ([\d.]+)", process.stdout)[-1])


def compare(data, kind, seeds, executor):
    """Losses of both optimizers, each at its best learning rate."""
    steps = {"adamw": kind["steps"], "muon": round(SHARE * kind["steps"])}

    def start(name, lr, seed):
        return executor.submit(final_loss, data, kind, name, steps[name], lr, seed)

    first = {name: {lr: start(name, lr, 0) for lr in RATES[name]} for name in RATES}
    tried = {name: {lr: run.result() for lr, run in runs.items()} for name, runs in first.items()}
    best = {name: min(losses, key=losses.get) for name, losses in tried.items()}
    others = {name: [start(name, best[name], s) for s in range(1, seeds)] for name in RATES}
    result = {}
    for name in RATES:
        losses = [tried[name][best[name]], *(run.result() for run in others[name])]
        result[name] = {
            "steps": steps[name],
            "lr": best[name],
            "mean_loss": round(statistics.mean(losses), 4),
            "losses": losses,
            "tried": tried[name],
        }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="folder with train.txt and val.txt")
    parser.add_argument("--pairs", type=Path, help="folder with train.jsonl and val.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="concurrent runs")
    parser.add_argument("--steps", type=int, help="steps of AdamW; default: by task")
    parser.add_argument("--save", action="store_true", help="add to results/optimizers.json")
    options = parser.parse_args()
    path = Path(__file__).parent / "results" / "optimizers.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as executor:
        for data, kind in ((options.text, TEXT), (options.pairs, PAIRS)):
            if data is not None:
                steps = options.steps or kind["steps"]
                result[data.name] = {
                    "environment": environment(threads=1),
                    **compare(data, {**kind, "steps": steps}, options.seeds, executor),
                }
                print(json.dumps({data.name: result[data.name]}, indent=2), flush=True)
    if options.save:
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
