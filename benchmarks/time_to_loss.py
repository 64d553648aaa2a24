"""Wall-clock time to a validation loss on tiny Shakespeare, including start-up.

    python benchmarks/time_to_loss.py DATA [--nanogpt PATH] [--seeds 3] [--save]
    python benchmarks/time_to_loss.py DATA --seeds 1 --reference 45   # one short round

DATA is a folder with train.txt and val.txt of tiny Shakespeare (first nine tenths and the rest).
A run is a complete process, including imports, data and validation. Its time limit is a fraction
of the reference: the time of nanoGPT's CPU recipe (4 layers x 128, context 64, batch 12, 2,000
steps), timed before the runs of each seed with `--nanogpt`, else `--reference`: 104 s on an idle
machine with two cores.

The evaluation cost is equal. Miniformer evaluates all of val once, at the end. The script of
nanoGPT evaluates val and train at the first and the last step, with as many batches in total. The
seeds differ for both. Miniformer's settings are tuned for these times; nanoGPT's are its recipe.
"""

import argparse
import json
import math
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from environment import environment

REFERENCE_SECONDS = 104.0  # of nanoGPT's recipe on an idle machine
STEPS, BATCH, CONTEXT = 2000, 12, 64  # of nanoGPT's recipe
# The script of nanoGPT has a fixed seed, 1337, to which a number is added.
WITH_SEED = """
import runpy, sys, torch
plain, added = torch.manual_seed, int(sys.argv.pop(1))
torch.manual_seed = lambda seed: plain(seed + added)
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""
SHARES = {"a third": (1 / 3, 1.88), "the whole": (1.0, 1.65)}
# Seconds for imports, data, the last validation and the report.
OVERHEAD = {"a third": 13.0, "the whole": 17.0}
RECIPES = {
    "a third": {"n_layers": 3, "seq_len": 64, "batch_size": 12, "lr": 1.5e-2},
    "the whole": {"n_layers": 4, "seq_len": 128, "batch_size": 8, "lr": 1.2e-2},
}
MODEL = {
    "d_model": 128, "n_heads": 4, "norm": "rmsnorm", "bias": False, "activation": "relu",
    "dropout": 0.0, "max_seq_len": 256,
}  # fmt: skip


def run_miniformer(data, name, time_limit, seed):
    """Runs Miniformer: wall-clock seconds of the process, validation loss, parameters."""
    recipe = dict(RECIPES[name])
    model = {**MODEL, "n_layers": recipe.pop("n_layers")}
    with tempfile.TemporaryDirectory() as folder:
        start_time = time.perf_counter()
        process = subprocess.run(
            [
                sys.executable, "-m", "miniformer.trainer", "--train_path", str(data / "train.txt"),
                "--val_path", str(data / "val.txt"), "--tokenizer", "char", "--model_config",
                json.dumps(model), "--max_time", f"{time_limit - OVERHEAD[name]:.1f}s",
                "--val_check_interval", "1000000", "--scheduler", "linear", "--logger", "none",
                "--work_dir", folder, "--seed", str(seed),
                *(part for key, value in recipe.items() for part in (f"--{key}", str(value))),
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - start_time
    loss = float(re.findall(r"validation loss ([\d.]+)", process.stdout)[-1])
    size = int(re.findall(r"model: ([\d,]+) parameters", process.stdout)[0].replace(",", ""))
    steps = int(re.findall(r"step (\d+): validation", process.stdout)[-1])
    return {"seconds": round(seconds, 1), "loss": loss, "steps": steps, "parameters": size}


def run_nanogpt(checkout, data, seed, steps=STEPS):
    """Runs the script of nanoGPT on the same split: seconds, validation loss."""
    folder = checkout / "data" / "shakespeare_char"
    texts = [(data / name).read_text(encoding="utf-8") for name in ("train.txt", "val.txt")]
    letters = sorted(set("".join(texts)))
    numbers = {letter: index for index, letter in enumerate(letters)}
    for name, text in zip(("train.bin", "val.bin"), texts, strict=True):
        np.array([numbers[letter] for letter in text], dtype=np.uint16).tofile(folder / name)
    meta = {"vocab_size": len(letters), "itos": dict(enumerate(letters)), "stoi": numbers}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    batches = math.ceil(
        len(texts[1]) / (BATCH * CONTEXT)
    )  # of val, which Miniformer evaluates once
    flags = (
        f"--device=cpu --compile=False --log_interval=100 --block_size={CONTEXT} "
        f"--batch_size={BATCH} --n_layer=4 --n_head=4 --n_embd=128 --max_iters={steps} "
        f"--lr_decay_iters={steps} --dropout=0.0 "
        # Two evaluations of two splits each.
        f"--eval_interval={steps} --eval_iters={math.ceil(batches / 4)}"
    )
    start_time = time.perf_counter()
    process = subprocess.run(
        [
            sys.executable, "-c", WITH_SEED, str(seed), "config/train_shakespeare_char.py",
            *flags.split(),
        ],
        cwd=checkout, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start_time
    loss = float(re.findall(r"val loss ([\d.]+)", process.stdout)[-1])
    return {"seconds": round(seconds, 1), "loss": loss, "seed": seed, "steps": steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train.txt and val.txt")
    parser.add_argument("--nanogpt", type=Path, help="a writable checkout of nanoGPT")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--nanogpt-steps", type=int, default=STEPS, help="steps of nanoGPT; fewer for a test"
    )
    parser.add_argument(
        "--reference",
        type=float,
        default=REFERENCE_SECONDS,
        help="seconds of nanoGPT without --nanogpt",
    )
    parser.add_argument("--save", action="store_true", help="write results/time_to_loss.json")
    options = parser.parse_args()
    result = {"environment": environment(checkouts={"nanogpt": options.nanogpt})}
    runs = {"nanogpt": [], **{name: [] for name in SHARES}}
    for seed in range(options.seeds):
        reference = options.reference
        if options.nanogpt is not None:
            run = run_nanogpt(options.nanogpt, options.data, seed, options.nanogpt_steps)
            runs["nanogpt"].append(run)
            reference = options.reference if options.nanogpt_steps < STEPS else run["seconds"]
        for name, (share, _) in SHARES.items():
            run = run_miniformer(options.data, name, share * reference, seed)
            runs[name].append({**run, "share_of_reference": round(run["seconds"] / reference, 3)})
        print(json.dumps({name: results[-1:] for name, results in runs.items()}), flush=True)
    for name, (share, target_loss) in SHARES.items():
        result[name] = {"allowed_share": round(share, 3), "wanted_loss": target_loss}
        for key in ("seconds", "share_of_reference", "loss"):
            mean = statistics.mean(run[key] for run in runs[name])
            result[name][f"mean_{key}"] = round(mean, 4)
        result[name]["runs"] = runs[name]
    result["nanogpt"] = runs["nanogpt"]
    text = json.dumps(result, indent=2)
    print(text)
    if options.save:
        (Path(__file__).parent / "results" / "time_to_loss.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
