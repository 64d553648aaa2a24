"""`miniformer.compare`: size, metric, speed and memory of models on the same data.

model directories -> a paired difference of the metric, records evaluated one model after another
                  -> speed and memory, each model in its own process, in turns
                  -> a verdict on each model compared with the first one
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.compression.comparison.speeds import Speed, measure_speeds
from miniformer.compression.comparison.workload import make_workload
from miniformer.config import UserError
from miniformer.config.command_line import resolve_model
from miniformer.data.reading.files import DataFiles
from miniformer.data.reading.records import RecordSequence, as_records
from miniformer.evaluation.comparison import Difference
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.utils.formats import format_number, metric_label

_SAME_SPEED = 0.03  # relative difference of speeds that is called the same
_LABEL_WIDTH, _COLUMN_WIDTH = 22, 19  # three models fit 80 columns


@dataclasses.dataclass(frozen=True)
class ComparedModel:
    """Measurements of a model.

    Args:
        directory: of the model.
        num_bytes: of its weight files.
        metrics: by name, on the data; empty: the task has none.
        difference: of the compared metric from the first model; None: of the first model, or the
            task has no results by record.
        speed: speed and memory.
        weight_dtype: stored types of the matrices.
    """

    directory: Path
    num_bytes: int
    metrics: dict[str, float]
    difference: Difference | None
    speed: Speed
    weight_dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class ModelComparison:
    """Result of `compare`; its text is a table with a verdict on each model.

    Args:
        data: name of the data.
        num_records: number of its records.
        metric: the compared metric; None: the task has none.
        unit: tokens or records, of the speeds.
        models: the first one is what the others are compared with.
    """

    data: str
    num_records: int
    metric: str | None
    unit: str
    models: tuple[ComparedModel, ...]

    def __str__(self) -> str:
        rows = [self._heading(), *self._rows()]
        lines = [
            (label[:_LABEL_WIDTH].ljust(_LABEL_WIDTH) + "".join(_cell(x) for x in cells)).rstrip()
            for label, *cells in rows
        ]
        return "\n".join([*lines, "", *self.verdicts()])

    def verdicts(self) -> list[str]:
        """One line on each model but the first, and one on the fastest."""
        return [*(self._verdict(model) for model in self.models[1:]), self._fastest()]

    def _fastest(self) -> str:
        """The fastest model with its type of weights; others that are as fast are named, too."""
        size = max(self.models[0].speed.rates)
        rates = [model.speed.ratios[size] for model in self.models]
        limit = max(rates) * (1 - _SAME_SPEED)
        models = [x for x, rate in zip(self.models, rates, strict=True) if rate >= limit]
        names = [f"{_short_name(model.directory)} ({model.weight_dtype})" for model in models]
        return "\n  ".join(wrap(f"fastest at batch {size}: {', '.join(names)}", 78))

    def to_json(self) -> str:
        """All measurements as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, default=str)

    def _heading(self) -> list[str]:
        return [f"{self.num_records:,} records", *(_short_name(x.directory) for x in self.models)]

    def _rows(self) -> list[list[str]]:
        first = self.models[0]
        rows = [["weights, MB", *(f"{model.num_bytes / 1e6:,.2f}" for model in self.models)]]
        names = dict.fromkeys([self.metric or "loss", "loss"])
        for name in (x for x in names if all(x in model.metrics for model in self.models)):
            values = [format_number(model.metrics[name]) for model in self.models]
            rows.append([metric_label(name), *values])
            if name == self.metric and any(model.difference for model in self.models):
                cells = [_format_difference(model.difference) for model in self.models]
                rows.append(["  difference, 95 %", *cells])
        result = "first token" if self.unit == "tokens" else "one prediction"
        rows.append(
            [f"{result}, ms", *(f"{1000 * model.speed.first_seconds:.1f}" for model in self.models)]
        )
        for size in first.speed.rates:
            cells = [_format_rate(model, size, model is first) for model in self.models]
            rows.append([f"{self.unit}/s, batch {size}", *cells])
        memory = [f"{model.speed.memory / 1e6:,.0f}" for model in self.models]
        rows.append(["memory, MB", *memory])
        return rows

    def _verdict(self, model: ComparedModel) -> str:
        first = self.models[0]
        facts = [f"{model.num_bytes / max(1, first.num_bytes):.2f} of the bytes"]
        facts += [f"{_describe_speed(x)} at batch {n}" for n, x in model.speed.ratios.items()]
        if self.metric is not None:
            facts.append(self._describe_metric(model))
        return "\n  ".join(wrap(f"{_short_name(model.directory)}: {', '.join(facts)}", 78))

    def _describe_metric(self, model: ComparedModel) -> str:
        label, change = metric_label(str(self.metric)), model.difference
        if change is None:
            before = self.models[0].metrics[str(self.metric)]
            return f"{label} {model.metrics[str(self.metric)] - before:+.4g}"
        text = f"{label} {change.difference:+.4g}"
        is_clear = change.low > 0 or change.high < 0
        return text if is_clear else f"{text} (within the interval of no difference)"


def compare(
    models: Sequence[str | Path],
    data: DataFiles | RecordSequence,
    *,
    tokens: int = 32,
    rounds: int = 3,
    threads: int = 0,
    num_resamples: int = 1000,
    progress: Callable[[int, int], None] | None = None,
    **fields: Any,
) -> ModelComparison:
    """Compares model directories for the same task: size, metric, speed, memory.

    Args:
        models: two or more directories or run folders; the first one is what the others are
            compared with.
        data: labeled records, in files or in memory.
        tokens: tokens to generate for each input, if the models generate.
        rounds: measurements of the speed of each model.
        threads: of each measured process; 0: as many as torch chooses.
        num_resamples: of the paired interval of the metric.
        progress: called with (models done, all models).
        **fields: fields of `FieldSettings`, such as input_field="text".

    Raises:
        UserError: the models are for different tasks, or an argument is out of range.
    """
    for name, value in (("tokens", tokens), ("rounds", rounds), ("num_resamples", num_resamples)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    if threads < 0:
        raise UserError(f"threads must be at least 0, not {threads}")
    if len(models) < 2:
        raise UserError("compare needs two models or more")
    paths = [Path(resolve_model(str(path))) for path in models]
    first = load(paths[0])
    mapping = first.data_settings.override(fields)
    records = as_records(data, first.task.schema, mapping=mapping)
    report = progress or (lambda done, total: None)
    metrics, differences, types = _evaluate(first, paths, data, num_resamples, report, fields)
    workload = make_workload(first.task, records, tokens)
    speeds = measure_speeds(paths, workload, rounds=rounds, threads=threads)
    metric = next((name for name in metrics[0] if _is_compared(name, differences, metrics)), None)
    items = zip(paths, metrics, differences, speeds, types, strict=True)
    return ModelComparison(
        data=records.name,
        num_records=len(records),
        metric=metric,
        unit=workload.unit,
        models=tuple(
            ComparedModel(path, _num_bytes(path), values, changes.get(metric or ""), speed, dtype)
            for path, values, changes, speed, dtype in items
        ),
    )


def _evaluate(
    first: Pipeline,
    paths: Sequence[Path],
    data: Any,
    num_resamples: int,
    report: Callable[[int, int], None],
    fields: dict[str, Any],
) -> tuple[list[dict[str, float]], list[dict[str, Difference]], list[str]]:
    """Metrics of each model, their differences from the first one, and its type of weights.

    Raises:
        UserError: the models are for different tasks.
    """
    metrics: list[dict[str, float]] = []
    differences: list[dict[str, Difference]] = []
    types, baseline = [], None
    for number, path in enumerate(paths):
        pipeline = first if number == 0 else load(path)
        if pipeline.task.name != first.task.name:
            raise UserError(
                f"{path}: a model for {pipeline.task.name} cannot be compared with one for "
                f"{first.task.name}"
            )
        types.append(_weight_dtype(pipeline.model))
        metrics.append({})
        differences.append({})
        if not isinstance(pipeline.task, EmbeddingTask):
            from miniformer.evaluation.evaluation import with_comparison

            evaluation = pipeline.evaluate(  # as the measured predictions are computed
                data, num_resamples=num_resamples, weight_dtype="stored", **fields
            )
            metrics[-1] = evaluation.metrics
            if baseline is None:
                baseline = evaluation
            elif evaluation.results is not None:
                comparison = with_comparison(evaluation, baseline, str(paths[0])).comparison
                assert comparison is not None
                differences[-1] = comparison.differences
        report(number + 1, len(paths))
    return metrics, differences, types


def _weight_dtype(model: Any) -> str:
    """The stored type of most matrices."""
    types = [
        str(item.get("form") or (f"int{item['bits']}" if "bits" in item else item["type"]))
        for item in model.weight_storage.values()
    ]
    return max(types, key=types.count, default="float32")


def _is_compared(
    name: str, differences: Sequence[dict[str, Difference]], metrics: Sequence[dict[str, float]]
) -> bool:
    """True if all models have a metric, with a difference where there are differences."""
    has_results = any(differences[1:])
    return all(name in values for values in metrics) and (
        not has_results or all(name in changes for changes in differences[1:])
    )


def _num_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def _short_name(path: Path) -> str:
    """The last parts of a path, which differ between models."""
    parts = path.parts[-2:] if path.name in ("best", "last", "model") else path.parts[-1:]
    name = "/".join(parts)
    return name if len(name) < _COLUMN_WIDTH else "…" + name[-(_COLUMN_WIDTH - 2) :]


def _cell(text: str) -> str:
    return text.rjust(_COLUMN_WIDTH)


def _format_difference(change: Difference | None) -> str:
    if change is None:
        return ""
    limits = [format_number(x) if math.isfinite(x) else "?" for x in (change.low, change.high)]
    return f"{limits[0]} to {limits[1]}"


def _format_rate(model: ComparedModel, size: int, is_first: bool) -> str:
    rate = f"{model.speed.rates[size]:,.0f}"
    return rate if is_first else f"{rate} ({model.speed.ratios[size]:.2f}x)"


def _describe_speed(ratio: float) -> str:
    """Description of a ratio of speeds; below 1 it begins with `slower`."""
    if abs(ratio - 1) <= _SAME_SPEED:
        return "as fast"
    return f"{ratio:.2f}x as fast" if ratio > 1 else f"slower ({ratio:.2f}x)"
