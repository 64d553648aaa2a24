"""The line of a terminal about a running training, fitted to its width."""

from __future__ import annotations

import dataclasses

MIN_BAR_WIDTH, MAX_BAR_WIDTH = 8, 40  # characters
# Parts of the line, the most important first; those that do not fit are left out.
_PRIORITY = ("step", "loss", "left", "epoch", "metric", "elapsed", "speed", "padding")
_ORDER = ("epoch", "step", "loss", "metric", "elapsed", "left", "speed", "padding")


@dataclasses.dataclass(frozen=True)
class TrainingStatus:
    """State of a run for its line.

    Args:
        epoch: passes over the training data, with the current one; 0: unknown.
        max_epochs: passes of the whole run; None: unknown.
        step: optimizer steps done.
        total_steps: optimizer steps of the whole run; None: unknown.
        loss: training loss of the last step.
        metric: name and value of the metric of the best model at the last validation.
        elapsed: seconds of the run.
        left: estimated seconds to its end; 0: unknown.
        tokens_per_second: throughput.
        padding: padded fraction of the positions in batches.
    """

    epoch: int
    max_epochs: int | None
    step: int
    total_steps: int | None
    loss: float
    metric: tuple[str, float] | None
    elapsed: float
    left: float
    tokens_per_second: float
    padding: float

    def parts(self) -> dict[str, str]:
        """Parts of the line by name; those that are unknown are missing."""
        of_epochs = "" if self.max_epochs is None else f"/{self.max_epochs}"
        of_steps = "" if self.total_steps is None else f"/{self.total_steps}"
        parts = {
            "epoch": f"epoch {self.epoch}{of_epochs}" if self.epoch else "",
            "step": f"step {self.step}{of_steps}",
            "loss": f"loss {self.loss:.3f}",
            "metric": "" if self.metric is None else f"{self.metric[0]} {self.metric[1]:.3f}",
            "elapsed": f"elapsed {format_clock(self.elapsed)}",
            "left": f"left {format_clock(self.left)}" if self.left > 0 else "",
            "speed": f"{self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else "",
            "padding": f"padding {self.padding:.0%}" if self.padding else "",
        }
        return {name: text for name, text in parts.items() if text}


def format_status(status: TrainingStatus, width: int | None = None) -> str:
    """The parts of a status that fit, two spaces apart.

    Args:
        status: the state of the run.
        width: columns for the text; None: no limit.
    """
    parts, chosen = status.parts(), set[str]()
    used = 0
    for name in _PRIORITY:
        size = len(parts[name]) + 2 if name in parts else 0
        if size and (width is None or used + size - 2 <= width or not chosen):
            chosen.add(name)
            used += size
    return "  ".join(parts[name] for name in _ORDER if name in chosen)


def fit_line(status: TrainingStatus, width: int) -> tuple[int, str]:
    """The width of the bar and the text beside it, in a terminal of `width` columns."""
    text = format_status(status, max(0, width - MIN_BAR_WIDTH - 2))
    return max(MIN_BAR_WIDTH, min(MAX_BAR_WIDTH, width - len(text) - 2)), text


def format_clock(seconds: float) -> str:
    """A duration as minutes and seconds, `3:07`, with hours, `1:02:33`, where there are any."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
