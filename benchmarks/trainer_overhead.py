"""Overhead of the trainer: the same optimizer step in `miniformer train` and in a bare loop.

    python benchmarks/trainer_overhead.py [--steps 400] [--sizes 1M 10M] [--save]

The run uses `train(TrainConfig(...))` with its defaults: Muon, progress, metrics.jsonl, gradient
norms, TensorBoard, signal handling and checkpoints. With `--validations`, each validation saves a
checkpoint and the best model, and generates a sample text. The bare loop takes the same steps on
the same batches with the same optimizer, including clipping.

The two alternate in one process, step by step, so that load of the machine affects both: the bare
loop runs inside the loop of the trainer, and its time is not counted for the trainer.

- `ratio`: median of (step of the trainer) / (step of the bare loop).
- `ratio_of_all`: total time of the trainer from the first step to the last divided by the total
  time of the bare steps. The passes of validations over the data are excluded; they are
  `validation_seconds`.
"""

import argparse
import copy
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import lightning as L
import torch
from rich.console import Console

from environment import environment
from miniformer import TrainConfig, registry
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.training.run import train

SKIPPED = 10  # first steps, which are not timed
SIZES = {"tiny": (64, 1), "1M": (128, 5), "10M": (448, 4)}  # width, layers
RESULTS = Path(__file__).parent / "results" / "trainer_overhead.json"


def bare_loop(model, data, optimizer):
    """Returns a function that takes a step and returns its seconds."""
    task, batches = LanguageModeling(), iter(data.train_dataloader())

    def step():
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(data.train_dataloader())
            batch = next(batches)
        start_time = time.perf_counter()
        total, count = task.loss(model, batch)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start_time

    return step


class AlternatingTimer(L.Callback):
    """Times each step from the end of the step before, so that all overhead counts."""

    def __init__(self, optimizer):
        self.optimizer, self.start_time, self.turns = optimizer, None, []
        self.validation_start, self.validation_seconds = 0.0, 0.0

    def on_train_start(self, trainer, module):
        model = copy.deepcopy(module.model)
        make = registry.get("optimizer", self.optimizer)
        self.bare = bare_loop(model, trainer.datamodule, make(model, lr=1e-3, weight_decay=0.1))

    def on_train_batch_end(self, *args):
        seconds = time.perf_counter() - (self.start_time or 0.0)
        if self.start_time is not None:
            self.turns.append((seconds, self.bare(), self.validation_seconds))
        self.start_time, self.validation_seconds = time.perf_counter(), 0.0

    def on_validation_epoch_start(self, *args):
        self.validation_start = time.perf_counter()

    def on_validation_epoch_end(self, *args):
        self.validation_seconds += time.perf_counter() - self.validation_start


def write_text(path, letters, seed):
    rng = random.Random(seed)
    path.write_text("".join(rng.choices("abcdefghijklmnopqrstuvwxyz .,\n", k=letters)))


def measure(width, layers, *, steps, validations, optimizer, seq_len=64, batch_size=12):
    """Runs the trainer and returns its overhead over the bare loop."""
    timer = AlternatingTimer(optimizer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "train.txt", 300_000, 0)
        write_text(folder / "val.txt", 20_000, 1)
        every = max(1, (SKIPPED + steps) // validations) if validations else None
        result = train(
            TrainConfig(
                train_path=str(folder / "train.txt"),
                val_path=str(folder / "val.txt") if validations else None,
                tokenizer="char", seq_len=seq_len, batch_size=batch_size,
                max_steps=SKIPPED + steps, val_check_interval=every, optimizer=optimizer,
                precision="float32", work_dir=name, experiment_name="run",
                model_config={
                    "d_model": width, "n_heads": max(1, width // 32), "n_layers": layers,
                    "max_seq_len": seq_len, "dropout": 0.0,
                },
            ),
            console=Console(quiet=True),
            callbacks=[timer],
        )  # fmt: skip
        turns = timer.turns[SKIPPED:]
        config = json.loads((result.model / "config.json").read_text())
        samples = result.folder / "samples.jsonl"
        num_samples = len(samples.read_text().splitlines()) if samples.exists() else 0
    ratios = [trainer / bare for trainer, bare, _ in turns]
    trainer, bare, validation = (sum(column) for column in zip(*turns, strict=True))
    return {
        "width": config["d_model"],
        "layers": config["n_layers"],
        "optimizer": optimizer,
        "steps": len(turns),
        "bare_step_ms": round(1e3 * statistics.median(bare for _, bare, _ in turns), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(ratio, 4) for ratio in statistics.quantiles(ratios)[::2]],
        "ratio_of_all": round((trainer - validation) / bare, 4),
        "validations_between_steps": sum(seconds > 0 for *_, seconds in turns),
        "validation_seconds": round(validation, 2),
        "samples": num_samples,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1M", "10M"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--validations", type=int, default=4)
    parser.add_argument("--optimizers", nargs="+", default=["muon", "adamw"])
    parser.add_argument("--save", action="store_true", help=f"write results/{RESULTS.name}")
    parser.add_argument("--out", type=Path, help="write the result to this file instead")
    options = parser.parse_args()
    result = {"environment": environment()}
    for size in options.sizes:
        for optimizer in options.optimizers:
            result[f"{size}, {optimizer}"] = measure(
                *SIZES[size],
                steps=options.steps,
                validations=options.validations,
                optimizer=optimizer,
            )
            print(json.dumps({f"{size}, {optimizer}": result[f"{size}, {optimizer}"]}), flush=True)
    if options.save or options.out:
        (options.out or RESULTS).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
