"""`train`: trains a model from a `TrainConfig` and writes model directories."""

from __future__ import annotations

import dataclasses
import errno
import pickle
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console

from miniformer.checkpoint.artifacts import MODEL_CLASSES, read_artifacts
from miniformer.config import UserError
from miniformer.config.command_line import python_command
from miniformer.model.pretrained import read_config
from miniformer.tasks.base import Task
from miniformer.train_config import TrainConfig
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.nan_check import NonFiniteLossError
from miniformer.training.callbacks.progress import make_console
from miniformer.training.callbacks.validation import metrics_from_trainer
from miniformer.training.distributed.launcher import (
    broadcast_from_rank0,
    init_process_group,
    is_launched,
    launch,
    rank,
    rank0_console,
    worker_context,
)
from miniformer.training.distributed.strategies import full_state_dict, load_full_state_dict
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.report.artifacts import RunArtifacts
from miniformer.training.report.loggers import finish_loggers
from miniformer.training.resume.callback import ResumeCheckpoint
from miniformer.training.resume.config import resolve_resume, resume_config
from miniformer.training.resume.restart_folder import RunFolder
from miniformer.training.setup.builders import (
    RunCallbacks,
    make_module,
    make_trainer,
    suppress_lightning_hints,
)
from miniformer.training.setup.given import CallbackOrFactory, build_callbacks, pickle_callbacks
from miniformer.training.setup.init_from import load_pretrained_weights
from miniformer.training.setup.limits import max_total_steps, warn_unreached_limits
from miniformer.training.setup.prepare import RunSetup, prepare, resolve_device_type
from miniformer.training.setup.pretraining import pretrain_config, resume_pretraining
from miniformer.training.setup.run_folder import create_run_folder, remove_unused_folders_on_error
from miniformer.training.tuning.auto_tune import auto_tune
from miniformer.training.tuning.compile import compile_layers
from miniformer.utils.streams import printable_output
from miniformer.utils.units import format_bytes

_NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Result of `train`.

    Args:
        folder: the run folder.
        model: the model directory to use: `best`, or `last` without validation.
        task: the task, fitted to its training data.
        metrics: metrics of that model.
        interrupted: the signal that interrupted the run; None: the run is complete.
    """

    folder: Path
    model: Path
    task: Task
    metrics: dict[str, float]
    interrupted: int | None


def train(
    config: TrainConfig,
    *,
    console: Console | None = None,
    callbacks: Sequence[CallbackOrFactory] = (),
) -> RunResult:
    """Trains a model and writes it to `<work_dir>/<experiment_name>/best` and `last`.

    Args:
        config: the run.
        console: output for progress messages; None: standard output.
        callbacks: additional Lightning callbacks, or functions that return one. They are called
            after the run's own callbacks. Checkpoints include their `state_dict`. With several
            devices, each process has its own, returned by the function or copied with `pickle`.

    Raises:
        UserError: a setting, a path or a record is invalid, and nothing was written; or the loss
            is NaN or infinite, and earlier files remain.
    """
    console = console or make_console()
    with printable_output(console.file):
        return _launch_or_train(config, console, callbacks)


def _launch_or_train(
    config: TrainConfig, console: Console, callbacks: Sequence[CallbackOrFactory]
) -> RunResult:
    """Trains in this process, or in one process per device; see `train`."""
    config, checkpoint = resolve_resume(config)
    if config.world_size > 1 and not is_launched():
        outcome = launch(config, _worker, pickle_callbacks(callbacks))
        model = Path(outcome["model"])
        task = read_artifacts(model, *read_config(model))[1]
        return RunResult(
            Path(outcome["folder"]), model, task, outcome["metrics"], outcome["interrupted"]
        )
    init_process_group(config, resolve_device_type(config))
    run_folder = RunFolder(config.experiment_name or config.task)
    existing = broadcast_from_rank0(run_folder.find_existing)
    if existing is not None and config.resume is None:  # torchrun restarted the processes
        config, checkpoint = resolve_resume(resume_config(existing, {}))
    try:
        with remove_unused_folders_on_error() as created:
            return _train(
                config,
                rank0_console(console),
                build_callbacks(callbacks),
                checkpoint,
                created=created,
                run_folder=run_folder,
            )
    except OSError as error:
        if error.errno not in _NO_SPACE_ERRNOS:
            raise
        path = f"{error.filename}: " if error.filename else ""
        raise UserError(
            f"{path}{error.strerror}; earlier files are complete: free disk space, then continue "
            "with --resume RUN"
        ) from None


def _worker(settings: dict[str, Any], outcome_path: str, callbacks: bytes) -> None:
    """Runs one process of a run on several devices."""
    with worker_context(outcome_path) as write_outcome:
        result = train(TrainConfig.from_dict(settings), callbacks=pickle.loads(callbacks))
        if rank() == 0:
            paths = {"folder": str(result.folder), "model": str(result.model)}
            write_outcome({**paths, "metrics": result.metrics, "interrupted": result.interrupted})


def _train(
    config: TrainConfig,
    console: Console,
    callbacks: Sequence[L.Callback],
    checkpoint: Path | None,
    parent_folder: Path | None = None,
    created: list[Path] | None = None,
    run_folder: RunFolder | None = None,
) -> RunResult:
    """See `train`.

    Args:
        config: the run.
        console: output for progress messages.
        callbacks: additional Lightning callbacks.
        checkpoint: the checkpoint to resume from.
        parent_folder: folder of the run that this run pretrains for.
        created: the new run folder is added here.
        run_folder: registers the new run folder.
    """
    L.seed_everything(config.seed, verbose=False)
    resume_dir = None if config.resume is None else Path(config.resume)
    run = prepare(config, console, resume_dir=resume_dir)
    if checkpoint is None:
        run = auto_tune(run, console)
    config = run.config
    budget = Budget(
        max_steps=config.max_steps,
        max_epochs=config.effective_max_epochs,
        max_seconds=config.max_seconds,
    )
    total_steps = max_total_steps(config, run.data)
    warn_unreached_limits(config, total_steps)
    module = make_module(run, budget)
    pretraining = None
    if config.pretrain is not None and checkpoint is None:
        pretraining = pretrain_config(run)
    name = config.experiment_name or config.task

    def create_folder() -> Path:
        new = create_run_folder(Path(config.work_dir), name, created)
        return new if run_folder is None else run_folder.register(new)

    folder = resume_dir or broadcast_from_rank0(create_folder)
    console.print(f"run folder: {folder}" if checkpoint is None else f"resuming from {checkpoint}")
    artifacts = RunArtifacts(folder, run, is_global_zero=rank() == 0)
    artifacts.save_run_config()
    if run.lr_search is not None and artifacts.is_global_zero:
        run.lr_search.plot(folder / "lr.png", unit=run.task.loss_unit)
    if pretraining is not None:
        result = _pretrain(run, pretraining, folder, console)
        if result.interrupted is not None:
            return dataclasses.replace(result, folder=folder)
    if config.compile:
        console.print(compile_layers(run, config.max_steps))
    own = RunCallbacks.build(run, module, artifacts, budget, console, resume_from=checkpoint)
    with suppress_lightning_hints():
        trainer = make_trainer(config, folder, [*own.callbacks, *callbacks, *own.final_callbacks])
        last = _fit(trainer, module, run, own)
        if total_steps is None and own.interrupt.signal is None:
            warn_unreached_limits(config, int(last["step"]))
        artifacts.save_loss_plot(own.progress.rows)
        console.print(own.progress.summary(trainer, module))
        artifacts.save_model("last", _averaged_weights(module, run, own), last, artifacts.loss_plot)
        test_metrics = _evaluate(trainer, module, run, own, folder, console)
    finish_loggers(trainer.loggers)

    # The model card of the model to use gets the metrics of the complete run.
    model_name, metrics = "last", {**last, **test_metrics}
    if own.best_checkpoint.best_metrics is not None:
        totals = {key: last[key] for key in ("training_tokens", "seconds")}
        metrics = {**own.best_checkpoint.best_metrics, **test_metrics, **totals}
        model_name = "best"
    if test_metrics and artifacts.is_global_zero:
        artifacts.update_task_report("test", module.validation_stats)
    artifacts.finalize_model_card(model_name, metrics)
    _write_report(
        run,
        own,
        artifacts,
        console,
        metrics,
        last_step=int(last["step"]),
        parent_folder=parent_folder,
    )
    return RunResult(folder, folder / model_name, run.task, metrics, own.interrupt.signal)


def _pretrain(run: RunSetup, settings: TrainConfig, folder: Path, console: Console) -> RunResult:
    """Pretrains the model on its texts, or resumes that, and loads the weights."""
    config, checkpoint = broadcast_from_rank0(lambda: resume_pretraining(settings, folder))
    console.print("pretraining: masked language modeling on the input texts")
    result = _train(config, console, (), checkpoint, parent_folder=folder)
    if result.interrupted is None:
        new = load_pretrained_weights(run.model, result.model, run.kind)
        console.print(f"pretraining complete; newly initialized: {', '.join(new)}")
    L.seed_everything(run.config.seed, verbose=False)  # as after resuming
    return result


def _fit(
    trainer: L.Trainer, module: MiniFormerLitModule, run: RunSetup, callbacks: RunCallbacks
) -> dict[str, float]:
    """Trains and validates; returns metrics of the last step."""
    try:
        with callbacks.interrupt:
            trainer.fit(module, run.data)
            if (
                run.config.val_path
                and callbacks.best_checkpoint.last_validation_step != trainer.global_step
            ):
                averaging = callbacks.weight_averaging
                with averaging.use_averaged_weights(module):
                    trainer.validate(module, run.data, verbose=False)
                    if averaging.checkpoint_average is not None:
                        averaging.checkpoint_average.add()
        module.nan_check.check(trainer.global_step, now=True)
    except NonFiniteLossError as error:
        raise UserError(_nan_error_message(error, run, callbacks.resume_checkpoint)) from None
    loss = {"train_loss": float(module.train_loss)} if module.train_loss is not None else {}
    return {
        **loss,
        "step": trainer.global_step,
        "training_tokens": module.tokens,
        "seconds": round(callbacks.budget.seconds, 1),
    }


def _averaged_weights(
    module: MiniFormerLitModule, run: RunSetup, callbacks: RunCallbacks
) -> dict[str, torch.Tensor]:
    """Returns a copy of the averaged weights; the model keeps its own."""
    with callbacks.weight_averaging.use_averaged_weights(module):
        return {name: tensor.clone() for name, tensor in full_state_dict(run.model).items()}


def _evaluate(
    trainer: L.Trainer,
    module: MiniFormerLitModule,
    run: RunSetup,
    callbacks: RunCallbacks,
    folder: Path,
    console: Console,
) -> dict[str, float]:
    """Validates the average of the last checkpoints; returns test metrics of the best model."""
    average, metrics = callbacks.weight_averaging.checkpoint_average, {}
    if average is not None and callbacks.interrupt.signal is None:
        console.print(f"averaged weights of the last {len(average)} validations:")
        load_full_state_dict(run.model, average.mean())
        with callbacks.interrupt:
            trainer.validate(module, run.data, verbose=False)
    if run.config.test_path and callbacks.interrupt.signal is None:
        if callbacks.best_checkpoint.best_metrics is not None:
            best = broadcast_from_rank0(
                lambda: MODEL_CLASSES[run.kind].from_pretrained(folder / "best").state_dict()
            )
            load_full_state_dict(run.model, best)
        with callbacks.interrupt:
            trainer.test(module, run.data, verbose=False)
            metrics = metrics_from_trainer(trainer, "test")
    return metrics


def _write_report(
    run: RunSetup,
    callbacks: RunCallbacks,
    artifacts: RunArtifacts,
    console: Console,
    metrics: dict[str, float],
    last_step: int,
    parent_folder: Path | None,
) -> None:
    """Writes the HTML report and prints the command that resumes an interrupted run."""
    run_info, notes = callbacks.monitor.system_info(), []
    if callbacks.interrupt.signal is not None:
        notes.append(f"The run was interrupted after step {last_step}.")
        if run.config.test_path:
            notes.append("The test data was not evaluated.")
    if run.predicted_memory is not None:
        used, predicted = callbacks.monitor.peak_memory_bytes(), run.predicted_memory
        run_info["memory"] = f"{format_bytes(used)} at most, {format_bytes(predicted)} predicted"
        console.print(f"memory: {run_info['memory']}")
    rows = (callbacks.progress.rows, callbacks.monitor.rows, callbacks.sample_generation.rows)
    report = artifacts.write_html_report(*rows, metrics, run_info=run_info, notes=notes)
    console.print(f"report: {report}")
    if (
        callbacks.interrupt.signal is not None
        and callbacks.resume_checkpoint.last_checkpoint is not None
    ):
        console.print(
            f"resume from step {last_step} with: --resume {parent_folder or artifacts.folder}"
        )
        if run.config.test_path:
            arguments = f"--resume {shlex.quote(str(artifacts.folder))} --max_steps {last_step}"
            console.print(
                "test_path was not evaluated: the run was interrupted; to test the model: "
                f"{python_command()} -m miniformer.trainer {arguments}"
            )


def _nan_error_message(
    error: NonFiniteLossError, run: RunSetup, resume_checkpoint: ResumeCheckpoint
) -> str:
    """Returns the error message: the records of the batch and the checkpoint before it."""
    lines = [str(error)]
    indices: list[int] = []
    batches = run.data.train_dataloader()
    for position in error.batch_positions:
        indices += batches.record_indices(position) or []
    records = getattr(run.data.chunks["train"], "records", None)
    if indices and records is not None:
        locations = ", ".join(records.location(index) for index in indices[:5])
        more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
        lines.append(f"records of that batch: {locations}{more}")
    if resume_checkpoint.last_checkpoint is not None:
        lines.append(
            f"the last finite checkpoint is {resume_checkpoint.last_checkpoint}; resume from it "
            f"with --resume {resume_checkpoint.run} and a lower lr"
        )
    return "; ".join(lines)
