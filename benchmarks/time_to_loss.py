"""How soon a validation loss is reached, start-up and all, on tiny Shakespeare.

    python benchmarks/time_to_loss.py DATA [--nanogpt PATH] [--seeds 3] [--save]
    python benchmarks/time_to_loss.py DATA --seeds 1 --reference 45   # one short round

DATA is a folder with tiny Shakespeare's train.txt and val.txt (its first nine tenths and its last).
A run is a whole process, imports, data and validation included; its training time is what is left
of its share of the reference: nanoGPT's CPU recipe (4 layers x 128, context 64, batch 12, 2,000
steps), timed before each seed's runs where a checkout is named, else `--reference`: the 104 s of a
quiet machine with two cores.

Both evaluate alike: Miniformer goes over all of val once, at the end; nanoGPT, whose script
evaluates val and train at the first step and at the last, over as many batches together. Each seed
is another one for both. Miniformer's settings have been tuned for these times; nanoGPT's are its
recipe's own.
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

QUIET = 104.0  # seconds of nanoGPT's recipe
STEPS, BATCH, CONTEXT = 2000, 12, 64  # of it
# nanoGPT's script has one seed, 1337; it is run with another one added to it.
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


def run_ours(data, name, seconds, seed):
    """One run: wall-clock seconds of the process, validation loss, parameters."""
    recipe = dict(RECIPES[name])
    model = {**MODEL, "n_layers": recipe.pop("n_layers")}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable, "-m", "miniformer.trainer", "--train_path", str(data / "train.txt"),
                "--val_path", str(data / "val.txt"), "--tokenizer", "char", "--model_config",
                json.dumps(model), "--max_time", f"{seconds - OVERHEAD[name]:.1f}s",
                "--val_check_interval", "1000000", "--scheduler", "linear", "--logger", "none",
                "--work_dir", folder, "--seed", str(seed),
                *(word for key, value in recipe.items() for word in (f"--{key}", str(value))),
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        took = time.perf_counter() - began
    loss = float(re.findall(r"validation loss ([\d.]+)", done.stdout)[-1])
    size = int(re.findall(r"model: ([\d,]+) parameters", done.stdout)[0].replace(",", ""))
    steps = int(re.findall(r"step (\d+): validation", done.stdout)[-1])
    return {"seconds": round(took, 1), "loss": loss, "steps": steps, "parameters": size}


def run_nanogpt(checkout, data, seed, steps=STEPS):
    """Seconds and validation loss of its own script on the same text, cut in the same place."""
    folder = checkout / "data" / "shakespeare_char"
    texts = [(data / name).read_text(encoding="utf-8") for name in ("train.txt", "val.txt")]
    letters = sorted(set("".join(texts)))
    numbers = {letter: index for index, letter in enumerate(letters)}
    for name, text in zip(("train.bin", "val.bin"), texts, strict=True):
        np.array([numbers[letter] for letter in text], dtype=np.uint16).tofile(folder / name)
    meta = {"vocab_size": len(letters), "itos": dict(enumerate(letters)), "stoi": numbers}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    batches = math.ceil(len(texts[1]) / (BATCH * CONTEXT))  # of val, which ours goes over once
    flags = (
        f"--device=cpu --compile=False --log_interval=100 --block_size={CONTEXT} "
        f"--batch_size={BATCH} --n_layer=4 --n_head=4 --n_embd=128 --max_iters={steps} "
        f"--lr_decay_iters={steps} --dropout=0.0 "
        # Two evaluations of two splits each.
        f"--eval_interval={steps} --eval_iters={math.ceil(batches / 4)}"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable, "-c", WITH_SEED, str(seed), "config/train_shakespeare_char.py",
            *flags.split(),
        ],
        cwd=checkout, capture_output=True, text=True, check=True,
    )  # fmt: skip
    took = time.perf_counter() - began
    loss = float(re.findall(r"val loss ([\d.]+)", done.stdout)[-1])
    return {"seconds": round(took, 1), "loss": loss, "seed": seed, "steps": steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with train.txt and val.txt")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, prepared for writing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--nanogpt-steps", type=int, default=STEPS, help="of its recipe; fewer: to see that it runs"
    )
    parser.add_argument(
        "--reference", type=float, default=QUIET, help="its seconds where no checkout is named"
    )
    parser.add_argument("--save", action="store_true", help="write results/time_to_loss.json")
    given = parser.parse_args()
    result = {"environment": environment(checkouts={"nanogpt": given.nanogpt})}
    runs = {"nanogpt": [], **{name: [] for name in SHARES}}
    for seed in range(given.seeds):
        reference = given.reference
        if given.nanogpt is not None:
            run = run_nanogpt(given.nanogpt, given.data, seed, given.nanogpt_steps)
            runs["nanogpt"].append(run)
            reference = given.reference if given.nanogpt_steps < STEPS else run["seconds"]
        for name, (share, _) in SHARES.items():
            run = run_ours(given.data, name, share * reference, seed)
            runs[name].append({**run, "share_of_reference": round(run["seconds"] / reference, 3)})
        print(json.dumps({name: each[-1:] for name, each in runs.items()}), flush=True)
    for name, (share, wanted) in SHARES.items():
        result[name] = {"allowed_share": round(share, 3), "wanted_loss": wanted}
        for figure in ("seconds", "share_of_reference", "loss"):
            mean = statistics.mean(run[figure] for run in runs[name])
            result[name][f"mean_{figure}"] = round(mean, 4)
        result[name]["runs"] = runs[name]
    result["nanogpt"] = runs["nanogpt"]
    text = json.dumps(result, indent=2)
    print(text)
    if given.save:
        (Path(__file__).parent / "results" / "time_to_loss.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
