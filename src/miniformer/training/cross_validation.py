"""Cross-validation (`folds`): one run for each fold, a table of metrics, out-of-fold predictions.

<run folder>/fold-1 ... fold-K   complete runs; `fold.json` marks a fold as complete
             folds.json          metrics of each fold, their mean and standard deviation
             oof.jsonl           each training record with the prediction of its fold's model
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniformer.checkpoint.artifacts import MODEL_CLASSES, get_model_kind, read_artifacts
from miniformer.config import UserError
from miniformer.config.command_line import miniformer_command
from miniformer.data.folds import fold_numbers
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.mixture import as_mixture
from miniformer.data.reading.records import as_records
from miniformer.data.selection import RecordSubset
from miniformer.evaluation.run_batches import BatchSettings, run_batches
from miniformer.model.config_file import read_config
from miniformer.tasks.base import Task
from miniformer.training.distributed import launcher
from miniformer.training.resume.config import AUTO, CONFIG_FILE, resume_config
from miniformer.training.resume.storage import latest_checkpoint
from miniformer.training.run import train
from miniformer.training.setup.run_folder import create_run_folder
from miniformer.utils.atomic import write_json, write_text
from miniformer.utils.streams import make_console

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from miniformer.data.reading.records import Records
    from miniformer.train_config import TrainConfig

RESULT_FILE, TABLE_FILE, PREDICTIONS_FILE = "fold.json", "folds.json", "oof.jsonl"


@dataclasses.dataclass(frozen=True, repr=False)
class CrossValidationResult:
    """Result of `cross_validate`.

    Args:
        folder: the run folder.
        models: model directory of each complete fold.
        metrics: metrics of each complete fold, such as `val_accuracy`.
        task: the task of the last complete fold; None: no fold is complete.
        interrupted: the signal that interrupted the run; None: all folds are complete.
    """

    folder: Path
    models: list[Path]
    metrics: list[dict[str, float]]
    task: Task | None
    interrupted: int | None = None

    def mean(self) -> dict[str, float]:
        """Mean of each metric over folds."""
        return {name: statistics.fmean(values) for name, values in self._columns()}

    def std(self) -> dict[str, float]:
        """Standard deviation of each metric between folds, with n - 1."""
        return {
            name: statistics.stdev(values) if len(values) > 1 else math.nan
            for name, values in self._columns()
        }

    def predictions(self) -> list[dict[str, Any]]:
        """Out-of-fold predictions: lines of `oof.jsonl`; [] if a fold or the task has none."""
        path = self.folder / PREDICTIONS_FILE
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, without the prefix of their split; the first ones matter most."""
        return () if self.task is None else self.task.metrics

    def __repr__(self) -> str:
        mean, std = self.mean(), self.std()
        names = [f"{split}_{name}" for split in ("val", "test") for name in self.metric_names()]
        metrics = [f"{name}={mean[name]:.4g}±{std[name]:.2g}" for name in names if name in mean]
        status = [] if self.interrupted is None else ["interrupted"]
        parts = [f"folder={str(self.folder)!r}", f"folds={len(self.models)}", *metrics, *status]
        return f"CrossValidationResult({', '.join(parts)})"

    def _columns(self) -> Iterator[tuple[str, list[float]]]:
        for name in self.metrics[0] if self.metrics else ():
            if name.startswith(("val_", "test_")):
                yield name, [metrics[name] for metrics in self.metrics]


def cross_validate(
    config: TrainConfig, *, console: Console | None = None, **options: Any
) -> CrossValidationResult:
    """Trains a model for each fold of `config.folds`, which validates on that fold.

    Complete folds of a resumed run are not repeated; the interrupted one resumes from its
    checkpoint.

    Args:
        config: the run, with `folds` and without `fold`; to resume, with `resume`.
        console: output for progress messages; None: standard output.
        **options: of `train`.

    Raises:
        UserError: see `train`; or a setting of a resumed run is changed.
    """
    console = console or make_console()
    if launcher.is_launched():
        raise UserError("folds run in processes of their own; start the command without torchrun")
    config, folder = _open_folder(config)
    num_folds = config.folds or 0
    results, interrupted = [], None
    for fold in range(1, num_folds + 1):
        path = folder / f"fold-{fold}" / RESULT_FILE
        if not path.is_file():
            console.print(f"fold {fold} of {num_folds}")
            interrupted = _train_fold(config, folder, fold, console, options)
            if interrupted is not None:
                break
        results.append(json.loads(path.read_text(encoding="utf-8")))
    models = [folder / f"fold-{n}" / result["model"] for n, result in enumerate(results, 1)]
    task = read_artifacts(models[-1], *read_config(models[-1]))[1] if models else None
    metrics = [result["metrics"] for result in results]
    result = CrossValidationResult(folder, models, metrics, task, interrupted)
    if interrupted is not None:
        console.print(f"{len(results)} of {num_folds} folds are complete")
        console.print(
            f"resume with: {miniformer_command()} train --resume {shlex.quote(str(folder))}"
        )
        return result
    _write_table(result, [int(item["records"]) for item in results])
    for line in format_table(result):
        console.print(line)
    if _join_predictions(folder, num_folds):
        console.print(f"out-of-fold predictions: {folder / PREDICTIONS_FILE}")
    console.print(f"table: {folder / TABLE_FILE}")
    return result


def _open_folder(config: TrainConfig) -> tuple[TrainConfig, Path]:
    """The config of a new or resumed run, and its folder."""
    if config.resume is None:
        name = config.experiment_name or config.task
        folder = create_run_folder(Path(config.work_dir), name)
        write_json(folder / CONFIG_FILE, config.to_dict())
        return config, folder
    if config.resume == AUTO:
        raise UserError("resume=auto is for one run; name the folder of the folds instead of auto")
    folder = Path(config.resume)
    saved = resume_config(folder, {})
    given = config.to_dict() if config.train_path else {}
    changed = [name for name, value in given.items() if value != getattr(saved, name)]
    if changed:
        raise UserError(
            f"resume: all folds of {folder} have the same settings; leave {changed[0]} out, or "
            "start a new run"
        )
    return dataclasses.replace(saved, resume=None), folder


def _train_fold(
    config: TrainConfig, folder: Path, fold: int, console: Console, options: dict[str, Any]
) -> int | None:
    """Trains a fold or resumes it; returns the signal that interrupted it, if any."""
    fold_folder = folder / f"fold-{fold}"
    if latest_checkpoint(fold_folder) is not None:
        fold_config = resume_config(fold_folder, {})
    else:
        shutil.rmtree(fold_folder, ignore_errors=True)
        fold_config = dataclasses.replace(
            config, fold=fold, work_dir=str(folder), experiment_name=fold_folder.name
        )
    result = train(fold_config, console=console, **options)
    if result.interrupted is not None:
        return result.interrupted
    records, numbers = _read_records(config, result.task, options.get("records"))
    rows = numbers == fold
    val = RecordSubset(records, rows.nonzero()[0])
    lines = list(_predict(fold_config, result.model, val, fold))
    if lines:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(fold_folder / PREDICTIONS_FILE, text)
    write_json(
        fold_folder / RESULT_FILE,
        {"model": result.model.name, "records": int(rows.sum()), "metrics": result.metrics},
    )
    return None


def _read_records(
    config: TrainConfig, task: Task, in_memory: Mapping[str, Any] | None
) -> tuple[Records, np.ndarray]:
    """All training records, and the fold of each; see `train` for records in memory."""
    mapping = FieldMapping.from_settings(config)
    source = as_mixture((in_memory or {}).get("train_path", config.train_path))
    records = as_records(source, task.schema, mapping=mapping)
    return records, fold_numbers(records, config.folds or 0, config.seed)


def _predict(
    config: TrainConfig, model: Path, records: RecordSubset, fold: int
) -> Iterator[dict[str, Any]]:
    """Records of a fold with their predictions and `index` in the data; none for some tasks."""
    architecture, model_config = read_config(model)
    tokenizer, task, _ = read_artifacts(model, architecture, model_config)
    kind = get_model_kind(model, architecture)
    settings = BatchSettings(config.seq_len, config.batch_size or 16, config.batch_tokens)
    network = MODEL_CLASSES[kind].from_pretrained(model)
    _, results = run_batches(network, task, tokenizer, records, settings)
    if results is None or not any(item is not None for item in results.predictions):
        return
    for row, local in enumerate(results.records.tolist()):
        line = {**records[local], "prediction": results.predictions[row], "fold": fold}
        if results.scores is not None:
            line["score"] = float(results.scores[row])
        if results.class_scores is not None and results.classes is not None:
            scores = results.class_scores[row].tolist()
            line["scores"] = dict(zip(map(str, results.classes), scores, strict=True))
        yield {**line, "index": int(records.indices[local])}


def _join_predictions(folder: Path, num_folds: int) -> bool:
    """Writes the predictions of all folds in the order of the data; returns whether there are."""
    paths = [folder / f"fold-{fold}" / PREDICTIONS_FILE for fold in range(1, num_folds + 1)]
    if not all(path.is_file() for path in paths):
        return False
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    lines.sort(key=lambda line: int(json.loads(line)["index"]))
    write_text(folder / PREDICTIONS_FILE, "".join(f"{line}\n" for line in lines))
    return True


def _write_table(result: CrossValidationResult, sizes: Sequence[int]) -> None:
    folds = [
        {"fold": fold, "records": size, "metrics": metrics}
        for fold, (size, metrics) in enumerate(zip(sizes, result.metrics, strict=True), 1)
    ]
    table = {"folds": folds, "mean": result.mean(), "std": result.std()}
    write_json(result.folder / TABLE_FILE, table)


def format_table(result: CrossValidationResult) -> Iterator[str]:
    """Lines of a table for each split: a row for each fold, their mean and standard deviation."""
    mean, std = result.mean(), result.std()
    for split, title in (("val", "validation"), ("test", "test")):
        names = [name for name in result.metric_names() if f"{split}_{name}" in mean]
        if not names:
            continue
        widths = [max(8, len(name)) for name in names]
        titles = [name.replace("_", " ") for name in names]
        rows = [(f"fold {n}", metrics) for n, metrics in enumerate(result.metrics, 1)]
        yield f"{title:<10}" + "".join(
            f"  {name:>{width}}" for name, width in zip(titles, widths, strict=True)
        )
        for label, metrics in [*rows, ("mean", mean), ("std", std)]:
            yield f"{label:<10}" + "".join(
                f"  {metrics[f'{split}_{name}']:>{width}.4f}"
                for name, width in zip(names, widths, strict=True)
            )
