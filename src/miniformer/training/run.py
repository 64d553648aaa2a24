"""train: from a TrainConfig to model directories on disk."""

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
    """What a run leaves.

    Args:
        folder: the run's folder.
        model: the model directory to use: `best`, or `last` where nothing was validated.
        task: what it was trained for.
        figures: figures of that model.
        interrupted: the signal that ended the run early; None: it ended by itself.
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
        console: where to tell of its progress; None: standard output.
        callbacks: more of Lightning's, or functions that make one; they are called after those of
            the run itself. Their `state_dict` is part of the run's state. On several devices each
            process has its own, made there by the function or copied with `pickle`.

    Raises:
        UserError: a setting, a path or a record is wrong, and nothing has been written; or the
            loss is no longer finite, and what was saved before stays.
    """
    console = console or make_console()
    with printable_output(console.file):
        return _launch_or_train(config, console, callbacks)


def _launch_or_train(
    config: TrainConfig, console: Console, callbacks: Sequence[CallbackOrFactory]
) -> RunResult:
    """Trains in this process, or in one for each device; see `train`."""
    config, state = resolve_resume(config)
    if config.world_size > 1 and not is_launched():
        outcome = launch(config, _worker, pickle_callbacks(callbacks))
        model = Path(outcome["model"])
        task = read_artifacts(model, *read_config(model))[1]
        return RunResult(
            Path(outcome["folder"]), model, task, outcome["figures"], outcome["interrupted"]
        )
    init_process_group(config, resolve_device_type(config))
    kept = RunFolder(config.experiment_name or config.task)
    begun = broadcast_from_rank0(kept.find_existing)
    if begun is not None and config.resume is None:  # torchrun has started the processes again
        config, state = resolve_resume(resume_config(begun, {}))
    try:
        with remove_unused_folders_on_error() as created:
            return _train(
                config,
                rank0_console(console),
                build_callbacks(callbacks),
                state,
                created=created,
                run_folder=kept,
            )
    except OSError as error:
        if error.errno not in _NO_SPACE_ERRNOS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(
            f"{where}{error.strerror}; what was written before is whole: make room and go on "
            "with --resume RUN"
        ) from None


def _worker(settings: dict[str, Any], outcome_path: str, callbacks: bytes) -> None:
    """One of the processes of a run on several devices."""
    with worker_context(outcome_path) as tell:
        result = train(TrainConfig.from_dict(settings), callbacks=pickle.loads(callbacks))
        if rank() == 0:
            figures, interrupted = result.metrics, result.interrupted
            told = {"folder": str(result.folder), "model": str(result.model)}
            tell({**told, "figures": figures, "interrupted": interrupted})


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
        console: where to tell of it.
        callbacks: more of Lightning's.
        state: that it goes on from.
        whole: the folder of the run that this one is the warm start of.
        created: folder that this run makes is added here.
        kept: is told of the folder.
    """
    L.seed_everything(config.seed, verbose=False)
    resumed = None if config.resume is None else Path(config.resume)
    run = prepare(config, console, resume_dir=resumed)
    if checkpoint is None:
        run = auto_tune(run, console)
    config = run.config
    budget = Budget(
        max_steps=config.max_steps,
        max_epochs=config.effective_max_epochs,
        max_seconds=config.max_seconds,
    )
    steps = max_total_steps(config, run.data)
    warn_unreached_limits(config, steps)
    module = make_module(run, budget)
    warm = None
    if config.pretrain is not None and checkpoint is None:
        warm = pretrain_config(run)
    name = config.experiment_name or config.task

    def create_folder() -> Path:
        made = create_run_folder(Path(config.work_dir), name, created)
        return made if run_folder is None else run_folder.register(made)

    folder = resumed or broadcast_from_rank0(create_folder)
    console.print(f"run folder: {folder}" if checkpoint is None else f"going on from {checkpoint}")
    outputs = RunArtifacts(folder, run, is_global_zero=rank() == 0)
    outputs.save_run_config()
    if run.lr_search is not None and outputs.is_global_zero:
        run.lr_search.plot(folder / "lr.png", unit=run.task.loss_unit)
    if warm is not None:
        begun = _pretrain(run, warm, folder, console)
        if begun.interrupted is not None:
            return dataclasses.replace(begun, folder=folder)
    if config.compile:
        console.print(compile_layers(run, config.max_steps))
    parts = RunCallbacks.build(run, module, outputs, budget, console, resume_from=checkpoint)
    with suppress_lightning_hints():
        trainer = make_trainer(
            config, folder, [*parts.callbacks, *callbacks, *parts.final_callbacks]
        )
        last = _fit(trainer, module, run, parts)
        if steps is None and parts.interrupt.signal is None:
            warn_unreached_limits(config, int(last["step"]))
        outputs.save_loss_plot(parts.progress.rows)
        console.print(parts.progress.summary(trainer, module))
        outputs.save_model("last", _averaged_weights(module, run, parts), last, outputs.loss_plot)
        tests = _evaluate(trainer, module, run, parts, folder, console)
    finish_loggers(trainer.loggers)

    # Now that the run is over, the card of the model to use can tell the whole story.
    which, figures = "last", {**last, **tests}
    if parts.best_checkpoint.best_metrics is not None:
        times = {key: last[key] for key in ("training_tokens", "seconds")}
        which, figures = "best", {**parts.best_checkpoint.best_metrics, **tests, **times}
    if tests and outputs.is_global_zero:
        outputs.update_task_report("test", module.validation_stats)
    outputs.finalize_model_card(which, figures)
    _write_report(
        run,
        parts,
        outputs,
        console,
        figures,
        last_step=int(last["step"]),
        parent_folder=parent_folder,
    )
    return RunResult(folder, folder / which, run.task, figures, parts.interrupt.signal)


def _pretrain(run: RunSetup, settings: TrainConfig, folder: Path, console: Console) -> RunResult:
    """Trains the model on its texts first, or goes on with that; returns what it left."""
    config, state = broadcast_from_rank0(lambda: resume_pretraining(settings, folder))
    console.print("warm start: hidden tokens of the texts")
    result = _train(config, console, (), state, parent_folder=folder)
    if result.interrupted is None:
        new = load_pretrained_weights(run.model, result.model, run.kind)
        console.print(f"warm start done; new: {', '.join(new)}")
    L.seed_everything(run.config.seed, verbose=False)  # as after a resumption
    return result


def _fit(
    trainer: L.Trainer, module: MiniFormerLitModule, run: RunSetup, callbacks: RunCallbacks
) -> dict[str, float]:
    """Trains, and validates what came out; returns figures of it."""
    try:
        with callbacks.interrupt:
            trainer.fit(module, run.data)
            if (
                run.config.val_path
                and callbacks.best_checkpoint.last_validation_step != trainer.global_step
            ):
                with callbacks.weight_averaging.use_averaged_weights(module):
                    trainer.validate(module, run.data, verbose=False)
        module.nan_check.check(trainer.global_step, now=True)
    except NonFiniteLossError as error:
        raise UserError(_nan_error_message(error, run, callbacks.resume_checkpoint)) from None
    losses = {"train_loss": float(module.train_loss)} if module.train_loss is not None else {}
    return {
        **losses,
        "step": trainer.global_step,
        "training_tokens": module.tokens,
        "seconds": round(callbacks.budget.seconds, 1),
    }


def _averaged_weights(
    module: MiniFormerLitModule, run: RunSetup, callbacks: RunCallbacks
) -> dict[str, torch.Tensor]:
    """Copies of them: the model gets its own weights back."""
    with callbacks.weight_averaging.use_averaged_weights(module):
        return {name: each.clone() for name, each in full_state_dict(run.model).items()}


def _evaluate(
    trainer: L.Trainer,
    module: MiniFormerLitModule,
    run: RunSetup,
    callbacks: RunCallbacks,
    folder: Path,
    console: Console,
) -> dict[str, float]:
    """Offers the mean of the last weights as the best; returns test figures of the best."""
    last, tests = callbacks.weight_averaging.checkpoint_average, {}
    if last is not None and callbacks.interrupt.signal is None:
        console.print(f"the mean of the weights at the last {len(last)} validations:")
        load_full_state_dict(run.model, last.mean())
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
            tests = metrics_from_trainer(trainer, "test")
    return tests


def _write_report(
    run: RunSetup,
    callbacks: RunCallbacks,
    artifacts: RunArtifacts,
    console: Console,
    metrics: dict[str, float],
    last_step: int,
    parent_folder: Path | None,
) -> None:
    """Writes the report and says how to go on."""
    facts, notes = callbacks.monitor.system_info(), []
    if callbacks.interrupt.signal is not None:
        notes.append(f"The run was stopped early, after step {last_step}.")
        if run.config.test_path:
            notes.append("The test data was not evaluated.")
    if run.predicted_memory is not None:
        used, predicted = callbacks.monitor.peak_memory_bytes(), run.predicted_memory
        facts["memory"] = f"{format_bytes(used)} at most, {format_bytes(predicted)} predicted"
        console.print(f"memory: {facts['memory']}")
    rows = (callbacks.progress.rows, callbacks.monitor.rows, callbacks.sample_generation.rows)
    report = artifacts.write_html_report(*rows, metrics, run_info=facts, notes=notes)
    console.print(f"report: {report}")
    if (
        callbacks.interrupt.signal is not None
        and callbacks.resume_checkpoint.last_checkpoint is not None
    ):
        console.print(
            f"go on from step {last_step} with: --resume {parent_folder or artifacts.folder}"
        )
        if run.config.test_path:
            folder = shlex.quote(str(artifacts.folder))
            console.print(
                "test_path was not evaluated, for the run was stopped; to test its model as it is: "
                f"{python_command()} -m miniformer.trainer --resume {folder} --max_steps {last_step}"
            )


def _nan_error_message(
    error: NonFiniteLossError, run: RunSetup, resume_checkpoint: ResumeCheckpoint
) -> str:
    """What a user should know of a loss that is no number: the records, and the way back."""
    lines = [str(error)]
    numbers: list[int] = []
    batches = run.data.train_dataloader()
    for place in error.batch_positions:
        numbers += batches.record_indices(place) or []
    records = getattr(run.data.chunks["train"], "records", None)
    if numbers and records is not None:
        shown = ", ".join(records.location(number) for number in numbers[:5])
        more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
        lines.append(f"records of that batch: {shown}{more}")
    if resume_checkpoint.last_checkpoint is not None:
        lines.append(
            f"the last good state is {resume_checkpoint.last_checkpoint}; --resume {resume_checkpoint.run} with a lower lr "
            "goes on from it"
        )
    return "; ".join(lines)
