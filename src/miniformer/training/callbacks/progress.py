"""Training progress: live in a terminal or notebook, else plain lines; and `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from miniformer.data.batching.length_bucketing import Batch
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.progress_line import (
    TrainingStatus,
    fit_line,
    format_status,
)
from miniformer.training.callbacks.validation import metrics_from_trainer
from miniformer.training.report.notebook_progress import NotebookProgress, is_notebook
from miniformer.utils.formats import metric_label
from miniformer.utils.jsonl import append_row, is_due, read_rows

_BAR_REFRESH_SECONDS = 0.5  # between two refreshes of the bar
_LINE_INTERVAL_SECONDS = 15.0  # between two plain lines, without a terminal
_MAX_TRAIN_ROWS = 400  # approximate number of training rows in metrics.jsonl
_LOGGED_BY_MODULE = ("train_", "val_", "lr", "grad_norm")  # metrics that the module logs


class ProgressCallback(L.Callback):
    """Prints and records loss, throughput, model FLOPs utilization (MFU) and remaining time.

    Args:
        budget: the run's limits.
        path: JSON Lines file for the metrics; None: they are not written.
        console: prints the progress.
        flops_per_batch: training FLOPs of a batch; None: unknown.
        peak_flops: peak FLOP/s of all devices; None: not measured.
        extra_metrics: further metrics of a training step, such as memory.
        is_global_zero: rank 0, which writes the file.
        metric: the metric of the best model, without the prefix `val_`.
        total_steps: optimizer steps of the run; None: unknown.
    """

    def __init__(
        self,
        budget: Budget,
        path: Path | None,
        console: Console,
        *,
        flops_per_batch: Callable[[Batch], float] | None = None,
        peak_flops: float | None = None,
        extra_metrics: Callable[[], dict[str, float]] | None = None,
        is_global_zero: bool = True,
        metric: str = "loss",
        total_steps: int | None = None,
    ) -> None:
        self.budget, self.path, self.console = budget, path, console
        self.flops_per_batch, self.peak_flops = flops_per_batch, peak_flops
        self.extra_metrics, self.is_global_zero = extra_metrics, is_global_zero
        self.metric, self.total_steps = metric, total_steps
        self.rows: list[dict[str, float]] = []
        self._local_work = [0, 0.0]  # of this rank: tokens, FLOPs
        self._first: _Snapshot | None = None  # after the first step of this process
        self._final: _Snapshot | None = None
        self._last_refresh = self._last_recorded = _Snapshot()
        self._throughput: dict[str, float] = {}
        self._recorded_progress = -1.0
        self._bar: Progress | None = None
        self._notebook: NotebookProgress | None = None

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.budget.measure_pace(self.budget.progress(trainer.global_step))
        if self.console.is_terminal:
            self._bar = Progress(
                BarColumn(),
                TextColumn("{task.fields[line]}", table_column=Column(no_wrap=True)),
                console=self.console,
                refresh_per_second=2,
            )
            self._bar.add_task("training", total=1.0, line="")
            self._bar.start()
        elif is_notebook(self.console):
            self._notebook = NotebookProgress()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        if self.flops_per_batch is not None and "about" in batch:
            self._local_work[0] += batch["about"]["tokens"]
            self._local_work[1] += self.flops_per_batch(batch)
        if not module.between_steps:
            return
        if self._first is None:
            self._first = self._last_refresh = self._last_recorded = self._snapshot(trainer, module)
        progress = self.budget.progress(trainer.global_step)
        if is_due(progress, self._recorded_progress, _MAX_TRAIN_ROWS) or progress == 1.0:
            self._recorded_progress = progress
            self._record(trainer, module, **self._train_metrics(trainer, module))
        now = self._snapshot(trainer, module)
        is_live = self._bar is not None or self._notebook is not None
        interval = _BAR_REFRESH_SECONDS if is_live else _LINE_INTERVAL_SECONDS
        if now.seconds - self._last_refresh.seconds >= interval:
            self._throughput = self._throughput_since(self._last_refresh, now)
            self._last_refresh = now
            self._render(trainer, module, progress)

    def _train_metrics(self, trainer: L.Trainer, module: Any) -> dict[str, float]:
        now = self._snapshot(trainer, module)
        metrics: dict[str, float] = module.train_metrics()
        metrics |= self._throughput_since(self._last_recorded, now)
        self._last_recorded = now
        return metrics | (self.extra_metrics() if self.extra_metrics is not None else {})

    def _snapshot(self, trainer: L.Trainer, module: Any) -> _Snapshot:
        waited = getattr(trainer.train_dataloader, "load_seconds", 0.0)
        return _Snapshot(self.budget.training_seconds, module.tokens, waited, *self._local_work)

    def _throughput_since(self, previous: _Snapshot, current: _Snapshot) -> dict[str, float]:
        """Tokens/s, MFU, and the fraction of time spent waiting for data."""
        delta = _Snapshot(*(b - a for a, b in zip(previous, current, strict=True)))
        if delta.seconds <= 0:
            return {}
        rate = delta.tokens / delta.seconds  # of all ranks
        throughput = {
            "tokens_per_second": round(rate, 1),
            "waiting": round(delta.data_wait_seconds / delta.seconds, 4),
        }
        if self.peak_flops and self.flops_per_batch is not None and delta.local_tokens:
            per_token = delta.local_flops / delta.local_tokens
            throughput["mfu"] = round(rate * per_token / self.peak_flops, 4)
        return throughput

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        metrics = metrics_from_trainer(trainer)
        self._record(trainer, module, **metrics)
        if self._notebook is not None:  # its table has the metrics
            self._render(trainer, module, self.budget.progress(trainer.global_step))
            return
        self.console.print(f"step {trainer.global_step}: validation {format_metrics(metrics)}")

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self._final = self._snapshot(trainer, module)  # a validation to come is no training
        if self._bar or self._notebook:
            self._render(trainer, module, self.budget.progress(trainer.global_step))
        if self._bar:
            self._bar.stop()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        if self._bar:
            self._bar.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.rows), "written": self._recorded_progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recorded_progress = state["written"]
        if self.path is not None:
            self.rows = read_rows(self.path, state["rows"], truncate=self.is_global_zero)

    def summary(self, trainer: L.Trainer, module: Any) -> str:
        """One line about the run: tokens, seconds, padding and time waiting for data."""
        now, first = self._final or self._snapshot(trainer, module), self._first or _Snapshot()
        seconds = max(1e-9, now.seconds - first.seconds)
        waited = (now.data_wait_seconds - first.data_wait_seconds) / seconds
        return (
            f"trained on {module.tokens:,} tokens in {now.seconds:,.0f} s; padding "
            f"{_padding_fraction(module):.1%}; waited for data {waited:.1%} of the time"
        )

    def _record(self, trainer: L.Trainer, module: Any, **metrics: float) -> None:
        row = {
            "step": trainer.global_step,
            "tokens": module.tokens,
            "padding": round(_padding_fraction(module), 4),
            "seconds": round(self.budget.seconds, 3),
        }
        self.rows.append({**row, **metrics})
        if not self.is_global_zero:
            return
        if self.path is not None:
            append_row(self.path, self.rows[-1])
        extra = {n: value for n, value in metrics.items() if not n.startswith(_LOGGED_BY_MODULE)}
        for logger in trainer.loggers if extra else ():
            logger.log_metrics(extra, step=trainer.global_step)

    def _render(self, trainer: L.Trainer, module: Any, progress: float) -> None:
        status = self._status(trainer, module, progress)
        if self._notebook is not None:
            self._notebook.update(status, progress, self.rows)
        elif self._bar:
            columns = self._bar.columns
            columns[0].bar_width, line = fit_line(status, self.console.width)  # type: ignore[union-attr]
            self._bar.update(self._bar.task_ids[0], completed=progress, line=line)
        else:
            self.console.print(f"{progress:4.0%}  {format_status(status)}")

    def _status(self, trainer: L.Trainer, module: Any, progress: float) -> TrainingStatus:
        budget, cooldown = self.budget, self.budget.cooldown
        total = self.total_steps if cooldown is None else cooldown.start_step + cooldown.num_steps
        values = [row for row in self.rows if f"val_{self.metric}" in row][-1:]
        name = "val loss" if self.metric == "loss" else metric_label(self.metric)
        epochs = budget.max_epochs
        return TrainingStatus(
            epoch=math.ceil(budget.epochs - 1e-9),
            max_epochs=None if epochs is None or cooldown is not None else math.ceil(epochs),
            step=trainer.global_step,
            total_steps=total,
            loss=float(module.train_loss),
            metric=(name, values[0][f"val_{self.metric}"]) if values else None,
            elapsed=budget.seconds,
            left=budget.remaining_seconds(progress),
            tokens_per_second=self._throughput.get("tokens_per_second", 0.0),
            padding=_padding_fraction(module),
        )


class _Snapshot(NamedTuple):
    """Totals so far: training seconds, tokens, data wait seconds, and the work of this rank."""

    seconds: float = 0.0
    tokens: float = 0
    data_wait_seconds: float = 0.0
    local_tokens: float = 0
    local_flops: float = 0.0


def _padding_fraction(module: Any) -> float:
    """Fraction of the positions in batches that are padding."""
    return float(module.padding / max(1, module.tokens + module.padding))


def format_metrics(metrics: dict[str, float]) -> str:
    """Metrics in one line: `loss 1.2345, accuracy 0.8120`."""
    named = ((name.removeprefix("val_"), value) for name, value in metrics.items())
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in named)
