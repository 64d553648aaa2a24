"""The end of a run: evaluation of the last, averaged and best weights, and the report."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from pathlib import Path
from typing import Any, Self

import lightning as L
from rich.console import Console

from miniformer import registry
from miniformer.checkpoint.artifacts import read_artifacts, read_task
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.config.command_line import miniformer_command
from miniformer.model.config_file import read_config
from miniformer.tasks.base import Task
from miniformer.training.callbacks.validation import metrics_from_trainer
from miniformer.training.distributed.launcher import broadcast_from_rank0
from miniformer.training.distributed.strategies import full_state_dict, load_full_state_dict
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.report.artifacts import RunArtifacts
from miniformer.training.report.best_evaluation import BestEvaluation, evaluate_best
from miniformer.training.report.loggers import finish_loggers
from miniformer.training.report.verdicts import class_verdicts, data_verdicts, find_verdicts
from miniformer.training.resume.auto import RESULT_FILE
from miniformer.training.setup.builders import RunCallbacks, load_best_weights
from miniformer.training.setup.run_setup import RunSetup
from miniformer.utils.atomic import write_json
from miniformer.utils.formats import format_number, metric_label
from miniformer.utils.page import key_value_table
from miniformer.utils.units import format_bytes

ADAPTER_FOLDER = "adapter"  # in the folder of a run


@dataclasses.dataclass(frozen=True, repr=False)
class RunResult:
    """Result of `train`.

    Args:
        folder: the run folder.
        model: the model directory to use: `best`, or `last` without validation.
        task: the task, fitted to its training data.
        metrics: metrics of that model, such as val_accuracy.
        interrupted: the signal that interrupted the run; None: the run is complete.
        stop_reason: reason for which a callback has ended the run; None: no callback has.
    """

    folder: Path
    model: Path
    task: Task
    metrics: dict[str, float]
    interrupted: int | None
    stop_reason: str | None = None

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """The loaded model, with its tokenizer and task."""
        return load(self.model)

    def __repr__(self) -> str:
        metrics = [
            f"{name}={self.metrics[name]:.4g}"
            for split in ("val", "test")
            for name in (f"{split}_{metric}" for metric in self.task.metrics)
            if name in self.metrics
        ]
        status = [] if self.interrupted is None else ["interrupted"]
        return f"RunResult({', '.join([f'model={str(self.model)!r}', *metrics, *status])})"

    def _repr_html_(self) -> str:
        status = "complete" if self.interrupted is None else "interrupted"
        rows = {"model": str(self.model), "run": self.stop_reason or status}
        metrics = {
            metric_label(name): format_number(value)
            for name, value in self.metrics.items()
            if name.startswith(("val_", "test_"))
        }
        report = self.folder / "report.html"
        return key_value_table(
            rows | metrics | ({"report": str(report)} if report.is_file() else {})
        )

    def to_json(self) -> dict[str, Any]:
        """The result as JSON, without the task, which is in the model directory."""
        fields = ("folder", "model", "metrics", "interrupted", "stop_reason")
        values = {name: getattr(self, name) for name in fields}
        return {**values, "folder": str(self.folder), "model": str(self.model)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The result of another process; see `to_json`."""
        model = Path(values["model"])
        task = read_artifacts(model, *read_config(model))[1]
        paths = {"folder": Path(values["folder"]), "model": model}
        return cls(**{**values, **paths}, task=task)


def validate_last_step(
    trainer: L.Trainer, module: MiniFormerLitModule, run: RunSetup, callbacks: RunCallbacks
) -> None:
    """Validates the weights of the last step, unless that is done."""
    step = callbacks.best_checkpoint.last_validation_step
    if run.data.val_path is None or step == trainer.global_step:
        return
    averaging = callbacks.weight_averaging
    with averaging.use_averaged_weights(module):
        trainer.validate(module, run.data, verbose=False)
        if averaging.checkpoint_average is not None:
            averaging.checkpoint_average.add()


def evaluate(
    trainer: L.Trainer,
    module: MiniFormerLitModule,
    run: RunSetup,
    callbacks: RunCallbacks,
    artifacts: RunArtifacts,
    console: Console,
    parent_folder: Path | None,
) -> RunResult:
    """Saves the last model, evaluates the best one, and writes the model card and the report.

    Args:
        trainer: the Trainer after `fit`.
        module: the LightningModule.
        run: the run.
        callbacks: the callbacks of the run.
        artifacts: the files of the run.
        console: output for progress messages.
        parent_folder: folder of the run that this run pretrains for.
    """
    last = {
        **({} if module.train_loss is None else {"train_loss": float(module.train_loss)}),
        "step": trainer.global_step,
        "training_tokens": module.tokens,
        "seconds": round(callbacks.budget.seconds, 1),
    }
    artifacts.save_loss_plot(callbacks.progress.rows)
    console.print(callbacks.progress.summary(trainer, module))
    weights = averaged_weights(module, run, callbacks)
    artifacts.fit_task_to_validation(module.validation_stats, "last")
    artifacts.save_model("last", weights, last, artifacts.loss_plot)
    test_metrics = {}
    if callbacks.interrupt.signal is None:
        test_metrics = _evaluate_averaged_and_best(
            trainer, module, run, callbacks, artifacts, console
        )
    finish_loggers(trainer.loggers)
    # The model card of the model to use gets the metrics of the complete run.
    name, metrics = "last", {**last, **test_metrics}
    if callbacks.best_checkpoint.best_metrics is not None:
        totals = {key: last[key] for key in ("training_tokens", "seconds")}
        metrics = {**callbacks.best_checkpoint.best_metrics, **test_metrics, **totals}
        name = "best"
    if test_metrics and artifacts.is_global_zero:
        artifacts.update_task_report("test", module.validation_stats)
    artifacts.finalize_model_card(name, metrics)
    split = "test" if test_metrics else "validation"
    best = _evaluate_for_report(run, callbacks, artifacts, console, name, split)
    verdicts = run_verdicts(run, callbacks, module, best)
    for verdict in verdicts:
        console.print(verdict)
    _write_report(
        run, callbacks, artifacts, console, metrics, trainer.global_step, parent_folder,
        verdicts, best,
    )  # fmt: skip
    result = RunResult(
        folder=artifacts.folder,
        model=artifacts.folder / name,
        task=run.task,
        metrics=metrics,
        interrupted=callbacks.interrupt.signal,
        stop_reason=callbacks.stop_reason,
    )
    if artifacts.is_global_zero and run.config.adapter is not None and run.pretrained_path:
        adapters = registry.get("adapter_format", "peft")
        out = artifacts.folder / ADAPTER_FOLDER
        console.print(adapters.write(result.model, run.pretrained_path, out))
    if artifacts.is_global_zero:
        write_json(artifacts.folder / RESULT_FILE, result.to_json())
    return result


def averaged_weights(
    module: MiniFormerLitModule, run: RunSetup, callbacks: RunCallbacks
) -> dict[str, Any]:
    """A copy of the averaged weights; the model keeps its own."""
    with callbacks.weight_averaging.use_averaged_weights(module):
        return {name: tensor.clone() for name, tensor in full_state_dict(run.model).items()}


def _evaluate_averaged_and_best(
    trainer: L.Trainer,
    module: MiniFormerLitModule,
    run: RunSetup,
    callbacks: RunCallbacks,
    artifacts: RunArtifacts,
    console: Console,
) -> dict[str, float]:
    """Validates the average of the last checkpoints; returns test metrics of the best model."""
    average = callbacks.weight_averaging.checkpoint_average
    if average is not None:
        console.print(f"averaged weights of the last {len(average)} validations:")
        load_full_state_dict(run.model, average.mean())
        with callbacks.interrupt:
            trainer.validate(module, run.data, verbose=False)
    metrics: dict[str, float] = {}
    if run.data.test_path is not None and callbacks.interrupt.signal is None:
        if callbacks.best_checkpoint.best_metrics is not None:
            load_best_weights(run, artifacts.folder, None)
            path = artifacts.folder / "best" / "task.json"
            task = broadcast_from_rank0(lambda: read_task(path, run.kind))
            artifacts.task = module.loss_module.task = task.with_helpers_of(module.task)
        with callbacks.interrupt:
            trainer.test(module, run.data, verbose=False)
            metrics = metrics_from_trainer(trainer, "test")
    return metrics


def _evaluate_for_report(
    run: RunSetup,
    callbacks: RunCallbacks,
    artifacts: RunArtifacts,
    console: Console,
    name: str,
    split: str,
) -> BestEvaluation | None:
    """Results by record of the model `name`, on rank 0; None: interrupted, or no data."""
    interrupt = callbacks.interrupt
    if not artifacts.is_global_zero or interrupt.signal is not None or run.data.val_path is None:
        return None
    try:
        return evaluate_best(run, artifacts.folder / name, split)
    except KeyboardInterrupt:
        console.print("the evaluation for the report was interrupted")
        return None


def run_verdicts(
    run: RunSetup,
    callbacks: RunCallbacks,
    module: MiniFormerLitModule,
    evaluation: BestEvaluation | None,
) -> list[str]:
    """Findings about a run, each with what to try next."""
    store = getattr(run.data.chunks["train"], "in_memory", None)
    cut = None if store is None else store.columns.get("cut")
    verdicts = find_verdicts(
        callbacks.progress.rows,
        metric=run.metric,
        maximize=run.metric in run.task.maximize,
        stop_step=callbacks.early_stopping.stop_step,
        max_epochs=run.config.effective_max_epochs,
        max_steps=run.config.max_steps if run.config.max_time is None else None,
        interrupted=callbacks.interrupt.signal is not None or callbacks.stop_reason is not None,
    )
    if evaluation is not None:
        verdicts += class_verdicts(
            evaluation.evaluation.classes,
            evaluation.split,
            has_weights=hasattr(run.task, "class_weights"),
        )
    verdicts += data_verdicts(
        padding=module.padding / max(1, module.tokens + module.padding),
        num_cut=0 if cut is None else int((cut > 0).sum()),
        num_examples=0 if cut is None else len(cut),
        max_seq_len=run.seq_len,
    )
    return [verdict.text for verdict in verdicts]


def _write_report(
    run: RunSetup,
    callbacks: RunCallbacks,
    artifacts: RunArtifacts,
    console: Console,
    metrics: dict[str, float],
    last_step: int,
    parent_folder: Path | None,
    verdicts: list[str],
    evaluation: BestEvaluation | None,
) -> None:
    """Writes the HTML report and prints the command that resumes an interrupted run."""
    run_info, notes = callbacks.monitor.system_info(), []
    if callbacks.interrupt.signal is not None:
        notes.append(f"The run was interrupted after step {last_step}.")
        if run.data.test_path is not None:
            notes.append("The test data was not evaluated.")
    if callbacks.stop_reason is not None:
        notes.append(f"A callback stopped the run at step {last_step}: {callbacks.stop_reason}")
    if run.predicted_memory is not None:
        used, predicted = callbacks.monitor.peak_memory_bytes(), run.predicted_memory
        run_info["memory"] = f"{format_bytes(used)} at most, {format_bytes(predicted)} predicted"
        console.print(f"memory: {run_info['memory']}")
    rows = (callbacks.progress.rows, callbacks.monitor.rows, callbacks.sample_generation.rows)
    report = artifacts.write_html_report(
        *rows, metrics, run_info=run_info, notes=notes, verdicts=verdicts, evaluation=evaluation
    )
    console.print(f"report: {report}")
    if (
        callbacks.interrupt.signal is not None
        and callbacks.resume_checkpoint.last_checkpoint is not None
    ):
        folder = shlex.quote(str(parent_folder or artifacts.folder))
        console.print(
            f"resume from step {last_step} with: {miniformer_command()} train --resume {folder}"
        )
        if run.data.test_path is not None:
            arguments = f"--resume {shlex.quote(str(artifacts.folder))} --max_steps {last_step}"
            console.print(
                "test_path was not evaluated: the run was interrupted; to test the model: "
                f"{miniformer_command()} train {arguments}"
            )
