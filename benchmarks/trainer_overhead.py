"""What the trainer costs: the same optimizer step through `miniformer train` and in a bare loop.

    python benchmarks/trainer_overhead.py [--steps 400] [--sizes 1M 10M] [--save]

A run of the trainer as users have it, by `train(TrainConfig(...))`, with all that it switches on by
itself: Muon, progress, metrics.jsonl, gradient norms, TensorBoard, signal handling, the state of
the run, and with `--validations` of them, after each the state written, the best model kept and a
sample text decoded. The bare loop does the same steps on the same batches with the same optimizer,
clipping included, and nothing else.

The two take turns in one process, a step each, so that a slow moment of the machine meets both: the
bare loop runs within the trainer's own, while its clock stands.

- `ratio`: median over turns of (step through the trainer) / (step in the loop).
- `ratio_of_all`: time from the first step to the last through the trainer over the time of the
  bare steps. Of the validations it has all but their passes over the data, which are
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

SKIPPED = 10  # steps at the start that do not count
SIZES = {"tiny": (64, 1), "1M": (128, 5), "10M": (448, 4)}  # width, layers
RESULTS = Path(__file__).parent / "results" / "trainer_overhead.json"


def bare_loop(model, data, optimizer):
    """A function that does a step and returns its seconds."""
    task, batches = LanguageModeling(), iter(data.train_dataloader())

    def step():
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(data.train_dataloader())
            batch = next(batches)
        started = time.perf_counter()
        total, count = task.loss(model, batch)
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return step


class TakeTurns(L.Callback):
    """Times from the end of one step to the end of the next: nothing in between can hide."""

    def __init__(self, optimizer):
        self.optimizer, self.began, self.turns = optimizer, None, []
        self.validation_began, self.validated = 0.0, 0.0

    def on_train_start(self, trainer, module):
        model = copy.deepcopy(module.model)
        make = registry.get("optimizer", self.optimizer)
        self.bare = bare_loop(model, trainer.datamodule, make(model, lr=1e-3, weight_decay=0.1))

    def on_train_batch_end(self, *args):
        ended = time.perf_counter()
        if self.began is not None:
            self.turns.append((ended - self.began, self.bare(), self.validated))
        self.began, self.validated = time.perf_counter(), 0.0

    def on_validation_epoch_start(self, *args):
        self.validation_began = time.perf_counter()

    def on_validation_epoch_end(self, *args):
        self.validated += time.perf_counter() - self.validation_began


def write_text(path, letters, seed):
    draw = random.Random(seed)
    path.write_text("".join(draw.choices("abcdefghijklmnopqrstuvwxyz .,\n", k=letters)))


def measure(width, layers, *, steps, validations, optimizer, seq_len=64, batch_size=12):
    """A run; what it took beside the bare loop."""
    clock = TakeTurns(optimizer)
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
            callbacks=[clock],
        )  # fmt: skip
        turns = clock.turns[SKIPPED:]
        config = json.loads((result.model / "config.json").read_text())
        samples = result.folder / "samples.jsonl"
        written = len(samples.read_text().splitlines()) if samples.exists() else 0
    ratios = [ours / bare for ours, bare, _ in turns]
    ours, bare, validating = (sum(each) for each in zip(*turns, strict=True))
    return {
        "width": config["d_model"],
        "layers": config["n_layers"],
        "optimizer": optimizer,
        "steps": len(turns),
        "bare_step_ms": round(1e3 * statistics.median(bare for _, bare, _ in turns), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(each, 4) for each in statistics.quantiles(ratios)[::2]],
        "ratio_of_all": round((ours - validating) / bare, 4),
        "validations_between_steps": sum(seconds > 0 for *_, seconds in turns),
        "validation_seconds": round(validating, 2),
        "samples": written,
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
    given = parser.parse_args()
    result = {"environment": environment()}
    for size in given.sizes:
        for optimizer in given.optimizers:
            result[f"{size}, {optimizer}"] = measure(
                *SIZES[size], steps=given.steps, validations=given.validations, optimizer=optimizer
            )
            print(json.dumps({f"{size}, {optimizer}": result[f"{size}, {optimizer}"]}), flush=True)
    if given.save:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
