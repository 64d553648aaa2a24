"""What the user watches: a live bar in a terminal, else plain lines; and `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from miniformer.training.budget import Budget
from miniformer.training.callbacks import check_finite, figures_of

_BAR_SECONDS = 0.5  # between two refreshes of the bar
_LINE_SECONDS = 15.0  # between two plain lines, where there is no terminal
_POINTS = 400  # training losses written to metrics.jsonl over a run, about


def make_console() -> Console:
    """A console that prints text as it is: paths keep their brackets, long lines their length."""
    return Console(soft_wrap=True, highlight=False, markup=False)


class ProgressCallback(L.Callback):
    """Shows and records loss, tokens/s and time left.

    Args:
        budget: the run's limits.
        path: file for the figures, one JSON object a line.
        console: where to show them.
    """

    def __init__(self, budget: Budget, path: Path, console: Console) -> None:
        self.budget, self.path, self.console = budget, path, console
        self.rows: list[dict[str, float]] = []
        self.tokens = self.padding = 0  # trained on so far
        self._validating = 0.0  # seconds spent in validation, which is no training time
        self._val_started = 0.0
        self._since = (0.0, 0)  # training seconds and tokens at the last refresh
        self._rate = 0.0
        self._written = -1.0
        self._val_text = ""
        self._bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]training"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self.console,
                refresh_per_second=2,
            )
            self._bar.add_task("training", total=1.0, figures="", left="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        about = batch.get("about") or {}
        self.tokens += about.get("tokens", 0)
        self.padding += about.get("padding", 0)
        seconds = self.budget.seconds - self._validating
        progress = self.budget.progress(trainer.global_step)
        if progress - self._written >= 1 / _POINTS or progress == 1.0:
            self._written = progress
            loss = float(module.train_loss)
            check_finite(loss, "training", trainer.global_step)
            self._record(trainer, train_loss=loss, lr=module.current_lr)
        wait = _BAR_SECONDS if self._bar else _LINE_SECONDS
        if seconds - self._since[0] >= wait:
            self._rate = (self.tokens - self._since[1]) / (seconds - self._since[0])
            self._since = (seconds, self.tokens)
            self._show(trainer, module, progress)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._val_started = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._validating += time.monotonic() - self._val_started
        figures = figures_of(trainer)
        self._record(trainer, **figures)
        self._val_text = f"  val {figures['val_loss']:.3f}"
        self.console.print(f"step {trainer.global_step}: validation {told(figures)}")

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        if self._bar:
            self._show(trainer, module, self.budget.progress(trainer.global_step))
            self._bar.stop()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        if self._bar:
            self._bar.stop()

    def summary(self, batches: Any) -> str:
        """A line about the whole run: tokens, padding, and how long it waited for data."""
        seconds = max(1e-9, self.budget.seconds - self._validating)
        waited = getattr(batches, "seconds", 0.0) / seconds
        return (
            f"trained on {self.tokens:,} tokens in {seconds:,.0f} s; padding "
            f"{self.padding_share:.1%}; waited for data {waited:.1%} of the time"
        )

    @property
    def padding_share(self) -> float:
        """Share of the places in batches that held no token."""
        return self.padding / max(1, self.tokens + self.padding)

    def _record(self, trainer: L.Trainer, **figures: float) -> None:
        row = {
            "step": trainer.global_step,
            "tokens": self.tokens,
            "padding": round(self.padding_share, 4),
            "seconds": round(self.budget.seconds, 3),
        }
        self.rows.append({**row, **figures})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")

    def _show(self, trainer: L.Trainer, module: Any, progress: float) -> None:
        figures = f"step {trainer.global_step}  loss {float(module.train_loss):.3f}{self._val_text}"
        figures += f"  {self._rate:,.0f} tokens/s"
        left = self.budget.seconds * (1 - progress) / progress if progress else 0.0
        ahead = f"{int(left) // 60}:{int(left) % 60:02d} left"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=progress, figures=figures, left=ahead)
        else:
            self.console.print(f"{progress:4.0%}  {figures}  {ahead}")


def told(figures: dict[str, float]) -> str:
    """Figures in a line: `loss 1.2345, accuracy 0.8120`."""
    named = ((name.removeprefix("val_"), value) for name, value in figures.items())
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in named)


@contextlib.contextmanager
def reading(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Gives what shows a bar for whatever takes its time: told its name, the part done, and all."""
    if not console.is_terminal:
        yield lambda name, done, whole: None
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        console=console, transient=True,
    ) as bar:  # fmt: skip
        known: dict[str, Any] = {}

        def show(name: str, done: int, whole: int) -> None:
            if name not in known:
                known[name] = bar.add_task(name)
            bar.update(known[name], completed=done, total=whole)

        yield show
