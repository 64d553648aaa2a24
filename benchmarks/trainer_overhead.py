"""What the trainer costs: the same optimiser step through Lightning and in a bare loop.

    python benchmarks/trainer_overhead.py [--save]

The two take turns in one process, a step each, so that a slow moment of the machine meets both: the
bare loop runs within the trainer's own, while its clock stands. The figure is the median over turns
of (step through the trainer) / (step in the loop), with everything on that `miniformer train`
switches on: progress, metrics.jsonl, gradient norms, TensorBoard, signal handling, the state of the
run (noted at each step; none is written in so short a time).
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import lightning as L
import numpy as np
import torch

from miniformer import MiniFormerLitModule, Transformer, TransformerConfig
from miniformer.data.batches import Batches
from miniformer.data.packing import PackedWindows
from miniformer.data.table import Table
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.training.budget import Budget
from miniformer.training.callbacks import StopAtBudget, ValidateInTime
from miniformer.training.gradients import GradientNorms
from miniformer.training.interrupt import InterruptCallback
from miniformer.training.loggers import tensorboard
from miniformer.training.optimizers import adamw
from miniformer.training.parts import quiet_lightning
from miniformer.training.progress import ProgressCallback, make_console
from miniformer.training.rows import append_row
from miniformer.training.run_state import KeepState

SKIPPED = 10  # steps at the start that do not count
SIZES = {"1M": (128, 5, 400), "10M": (448, 4, 500)}  # width, layers, steps


def loader_of(config, seq_len, batch_size):
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, 1_000_000).astype(np.uint16)
    pool = Table.of([{"ids": tokens, "bytes": len(tokens)}])
    cutter = PackedWindows(seq_len=seq_len, batch_size=batch_size, boundary_id=0, endless=True)
    return Batches(Kept(pool), cutter, seed=0)


class Kept:
    """One pool, in memory."""

    count = 1

    def __init__(self, pool):
        self.kept = pool

    def epoch(self, random, first=0):
        return iter([self.kept][first:])


def bare_loop(model, loader):
    """A function that does a step and returns its seconds."""
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1)
    task, batches = LanguageModeling(), iter(loader)

    def step():
        started = time.perf_counter()
        total, count = task.loss(model, next(batches))
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return step


class TakeTurns(L.Callback):
    """Times from the end of one step to the end of the next: nothing in between can hide."""

    def __init__(self, other):
        self.other, self.began, self.turns = other, None, []

    def on_train_batch_end(self, *args):
        ended = time.perf_counter()
        if self.began is not None:
            self.turns.append((ended - self.began, self.other()))
        self.began = time.perf_counter()


class Gradients(L.Callback):
    """Norms of all layers at each 20th step, as `Watch` measures them in a run of 2,000."""

    def __init__(self, path, model):
        self.path, self.norms = path, GradientNorms(model)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step % 20 == 0:
            append_row(self.path, self.norms.measure())


def through_trainer(model, loader, steps, clock):
    """Trains with the callbacks of a run, and with the clock last."""
    budget = Budget(max_steps=steps)
    module = MiniFormerLitModule(model, budget=budget, optimizer="adamw")
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        progress = ProgressCallback(budget, Path(folder) / "metrics.jsonl", make_console())
        watch = Gradients(Path(folder) / "gradients.jsonl", model)
        states = KeepState(
            Path(folder),
            budget,
            remembering={},
            averages={},
            validate=ValidateInTime(budget, times=0),
        )
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_epochs=-1, logger=tensorboard(Path(folder)),
            callbacks=[StopAtBudget(budget), watch, progress, InterruptCallback(), states, clock],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, log_every_n_steps=10,
        )  # fmt: skip
        trainer.fit(module, loader)


def measure(width, layers, steps, seq_len=64, batch_size=12):
    config = TransformerConfig(
        vocab_size=68, d_model=width, n_heads=width // 32, n_layers=layers, max_seq_len=seq_len,
        dropout=0.0, causal=True,
    )  # fmt: skip
    torch.manual_seed(0)
    loader = loader_of(config, seq_len, batch_size)
    clock = TakeTurns(bare_loop(Transformer(config), loader))
    through_trainer(Transformer(config), loader, SKIPPED + steps, clock)
    pairs = clock.turns[SKIPPED:]
    ratios = sorted(ours / bare for ours, bare in pairs)
    step = statistics.median(bare for _, bare in pairs)
    flops = 3 * config.flops_per_token(seq_len) * seq_len * batch_size
    return {
        "parameters": config.num_params(),
        "steps": len(pairs),
        "bare_step_ms": round(1e3 * step, 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(each, 4) for each in statistics.quantiles(ratios)[::2]],
        "gflops": round(flops / step / 1e9),
    }


def gemm_peak():
    """GFLOP/s of the best of 20 large float32 products on this machine."""
    a, b, best = torch.randn(1536, 1536), torch.randn(1536, 1536), 1e9
    for _ in range(20):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return round(2 * 1536**3 / best / 1e9)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/trainer_overhead.json"
    )
    save = parser.parse_args().save
    result = {
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}, no GPU",
        "torch": torch.__version__.split("+")[0],
        "gemm_peak_gflops": gemm_peak(),
        **{name: measure(*size) for name, size in SIZES.items()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if save:
        (Path(__file__).parent / "results" / "trainer_overhead.json").write_text(text + "\n")
