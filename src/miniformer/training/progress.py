"""What the user watches: a live bar in a terminal, else plain lines; and `metrics.jsonl`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from miniformer.data.buckets import Batch
from miniformer.training.budget import Budget
from miniformer.training.callbacks import figures_of
from miniformer.training.rows import append_row, is_due, read_rows

_BAR_SECONDS = 0.5  # between two refreshes of the bar
_LINE_SECONDS = 15.0  # between two plain lines, where there is no terminal
_POINTS = 400  # training losses written to metrics.jsonl over a run, about
_LOGGED = ("train_loss", "lr", "grad_norm")  # by the module


def make_console() -> Console:
    """A console that prints text as it is: paths keep their brackets, long lines their length."""
    return Console(soft_wrap=True, highlight=False, markup=False)


class TimeValidation(L.Callback):
    """Counts the seconds of a validation, and of what follows it, as no training.

    It comes after all other callbacks, whose `on_validation_end` belongs to that: the best model
    and the run's state are saved there.

    Args:
        budget: has the clock.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.budget.validation_begins()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.budget.validation_ends()


class ProgressCallback(L.Callback):
    """Shows and records loss, speed, share of the machine's peak, and time left.

    Args:
        budget: the run's limits.
        path: file for the figures, one JSON object a line.
        console: where to show them.
        flops: training FLOPs of a batch; None: not known.
        peak: FLOP/s that the devices can do together; None: not measured.
        watch: more figures of a training step, such as memory.
        writes: whether this device writes the file.
    """

    def __init__(
        self,
        budget: Budget,
        path: Path,
        console: Console,
        *,
        flops: Callable[[Batch], float] | None = None,
        peak: float | None = None,
        watch: Callable[[], dict[str, float]] | None = None,
        writes: bool = True,
    ) -> None:
        self.budget, self.path, self.console = budget, path, console
        self.flops, self.peak, self.watch = flops, peak, watch
        self.rows: list[dict[str, float]] = []
        self.writes = writes
        self._own = [0, 0.0]  # of this device: tokens, FLOPs
        self._began: _Moment | None = None  # after the first step of this process
        self._ended: _Moment | None = None
        self._since = self._point = _Moment()  # the last refresh, the last figures recorded
        self._speed: dict[str, float] = {}
        self._written = -1.0
        self._val_text = ""
        self._step = 0
        self._bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
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
        if self.flops is not None and "about" in batch:
            self._own[0] += batch["about"]["tokens"]
            self._own[1] += self.flops(batch)
        if trainer.global_step == self._step:  # in the middle of a step
            return
        self._step = trainer.global_step
        if self._began is None:
            self._began = self._since = self._point = self._now(trainer, module)
        progress = self.budget.progress(self._step)
        if is_due(progress, self._written, _POINTS) or progress == 1.0:
            self._written = progress
            self._record(trainer, module, **self._training_figures(trainer, module))
        now = self._now(trainer, module)
        wait = _BAR_SECONDS if self._bar else _LINE_SECONDS
        if now.seconds - self._since.seconds >= wait:
            self._speed = self._speed_since(self._since, now)
            self._since = now
            self._show(trainer, module, progress)

    def _training_figures(self, trainer: L.Trainer, module: Any) -> dict[str, float]:
        figures = {"train_loss": float(module.train_loss), "lr": module.current_lr}
        if module.gradient_norm is not None:
            figures["grad_norm"] = float(module.gradient_norm)
        now = self._now(trainer, module)
        figures |= self._speed_since(self._point, now)
        self._point = now
        return figures | (self.watch() if self.watch is not None else {})

    def _now(self, trainer: L.Trainer, module: Any) -> _Moment:
        waited = getattr(trainer.train_dataloader, "seconds", 0.0)
        return _Moment(self.budget.training_seconds, module.tokens, waited, *self._own)

    def _speed_since(self, before: _Moment, now: _Moment) -> dict[str, float]:
        """Tokens/s, share of the peak, and share of the time spent waiting for data."""
        spent = _Moment(*(b - a for a, b in zip(before, now, strict=True)))
        if spent.seconds <= 0:
            return {}
        rate = spent.tokens / spent.seconds  # of all devices
        speed = {
            "tokens_per_second": round(rate, 1),
            "waiting": round(spent.waited / spent.seconds, 4),
        }
        if self.peak and self.flops is not None and spent.own_tokens:
            per_token = spent.own_flops / spent.own_tokens
            speed["mfu"] = round(rate * per_token / self.peak, 4)
        return speed

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        figures = figures_of(trainer)
        self._record(trainer, module, **figures)
        self._val_text = f"  val {figures['val_loss']:.3f}"
        self.console.print(f"step {trainer.global_step}: validation {told(figures)}")

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self._ended = self._now(trainer, module)  # a validation to come is no training
        if self._bar:
            self._show(trainer, module, self.budget.progress(trainer.global_step))
            self._bar.stop()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        if self._bar:
            self._bar.stop()

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": len(self.rows),
            "written": self._written,
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._written, self._step = state["written"], state["step"]
        self.rows = read_rows(self.path, state["rows"], writes=self.writes)

    def summary(self, trainer: L.Trainer, module: Any) -> str:
        """A line about this run: tokens, padding, and how long it waited for data."""
        now, began = self._ended or self._now(trainer, module), self._began or _Moment()
        waited = (now.waited - began.waited) / max(1e-9, now.seconds - began.seconds)
        return (
            f"trained on {module.tokens:,} tokens in {now.seconds:,.0f} s; padding "
            f"{_padding_share(module):.1%}; waited for data {waited:.1%} of the time"
        )

    def _record(self, trainer: L.Trainer, module: Any, **figures: float) -> None:
        row = {
            "step": trainer.global_step,
            "tokens": module.tokens,
            "padding": round(_padding_share(module), 4),
            "seconds": round(self.budget.seconds, 3),
        }
        self.rows.append({**row, **figures})
        if not self.writes:
            return
        append_row(self.path, self.rows[-1])
        more = {name: value for name, value in figures.items() if name not in _LOGGED}
        if more and not any(name.startswith("val_") for name in more):  # these are logged already
            for logger in trainer.loggers:
                logger.log_metrics(more, step=trainer.global_step)

    def _show(self, trainer: L.Trainer, module: Any, progress: float) -> None:
        figures = f"step {trainer.global_step}  loss {float(module.train_loss):.3f}{self._val_text}"
        figures += f"  {self._speed.get('tokens_per_second', 0.0):,.0f} tokens/s"
        if "mfu" in self._speed:
            figures += f" ({self._speed['mfu']:.0%} of peak)"
        if padding := _padding_share(module):
            figures += f"  padding {padding:.0%}"
        left = int(self.budget.seconds_left(progress))
        ahead = f"{left // 60}:{left % 60:02d} left"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=progress, figures=figures, left=ahead)
        else:
            self.console.print(f"{progress:4.0%}  {figures}  {ahead}")


class _Moment(NamedTuple):
    """Training seconds, tokens, seconds spent waiting for data, and this device's work, so far."""

    seconds: float = 0.0
    tokens: float = 0
    waited: float = 0.0
    own_tokens: float = 0
    own_flops: float = 0.0


def _padding_share(module: Any) -> float:
    """Share of the places in batches that held no token."""
    return float(module.padding / max(1, module.tokens + module.padding))


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
