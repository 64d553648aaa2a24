"""`train`: trains a model from a `TrainConfig` and writes model directories."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console

from miniformer.config import UserError
from miniformer.config.train_settings import HardwareSettings
from miniformer.train_config import TrainConfig
from miniformer.training.callbacks.nan_check import explain_nan_errors
from miniformer.training.distributed import launcher
from miniformer.training.evaluate import RunResult, evaluate, validate_last_step
from miniformer.training.pretrain import pretrain
from miniformer.training.report.artifacts import RunArtifacts
from miniformer.training.resume.auto import resume_auto
from miniformer.training.resume.config import AUTO, complete_config, resolve_resume
from miniformer.training.resume.restart_folder import RunFolder
from miniformer.training.setup import builders, limits, pretraining, run_folder
from miniformer.training.setup.auto_tune import auto_tune
from miniformer.training.setup.prepare import prepare
from miniformer.training.setup.resolve import resolve_device_type
from miniformer.training.tuning.compile import compile_layers
from miniformer.training.tuning.hardware import cpu_threads
from miniformer.utils.streams import make_console, printable_output


def train(
    config: TrainConfig,
    *,
    console: Console | None = None,
    callbacks: Sequence[builders.CallbackOrFactory] = (),
    records: Mapping[str, Any] | None = None,
) -> RunResult:
    """Trains a model and writes it to `<work_dir>/<experiment_name>/best` and `last`.

    Args:
        config: the run.
        console: output for progress messages; None: standard output.
        callbacks: additional Lightning callbacks, or functions that return one. They are called
            after the run's own callbacks. Checkpoints include their `state_dict`. With several
            devices, each process has its own, returned by the function or copied with `pickle`.
        records: records in memory, by the name of the path that they replace, such as train_path.

    Raises:
        UserError: a setting, a path or a record is invalid, and nothing was written; or the loss
            is NaN or infinite, and earlier files remain.
    """
    console = console or make_console()
    config = complete_config(config)
    if config.folds is not None and config.fold is None:
        raise UserError("train trains one model; for all folds call miniformer.train, or set fold")
    hardware = config.part(HardwareSettings)
    with printable_output(console.file), cpu_threads(hardware.threads):
        if hardware.world_size > 1 and not launcher.is_launched():  # each process calls `train`
            args = (config.given_fields(), builders.pickle_callbacks(callbacks), records)
            return RunResult.from_json(launcher.launch(hardware, _train_in_worker, *args))
        launcher.init_process_group(hardware, resolve_device_type(hardware))
        name = config.experiment_name or config.task
        attempts = RunFolder(name)
        earlier = launcher.broadcast_from_rank0(attempts.find_existing)
        if config.resume == AUTO:
            config = launcher.broadcast_from_rank0(partial(resume_auto, config, earlier, console))
        config, checkpoint = resolve_resume(config, earlier)
        with run_folder.folder_errors(config) as created, run_folder.RunLock(config.resume) as lock:

            def create_folder() -> Path:
                new = run_folder.create_run_folder(Path(config.work_dir), name, created)
                return attempts.register(lock.acquire(new))

            own = builders.build_callbacks(callbacks, config.all_callbacks())
            console = launcher.rank0_console(console)
            return _train(config, own, checkpoint, create_folder, console=console, records=records)


def _train_in_worker(
    settings: dict[str, Any], outcome_path: str, callbacks: bytes, records: Any
) -> None:
    """Runs one process of a run on several devices."""
    with launcher.worker_context(outcome_path) as write_outcome:
        config = TrainConfig.from_dict(settings)
        result = train(config, callbacks=pickle.loads(callbacks), records=records)
        if launcher.rank() == 0:
            write_outcome(result.to_json())


def _train(
    config: TrainConfig,
    callbacks: Sequence[L.Callback],
    checkpoint: Path | None,
    create_folder: Callable[[], Path],
    *,
    console: Console,
    parent_folder: Path | None = None,
    records: Mapping[str, Any] | None = None,
) -> RunResult:
    """Prepares, trains and evaluates a run in this process; see `train`.

    Args:
        config, callbacks, console, records: see `train`.
        checkpoint: the checkpoint to resume from.
        create_folder: creates the folder of a new run.
        parent_folder: folder of the run that this run pretrains for.
    """
    L.seed_everything(config.seed, verbose=False)
    run = prepare(config, console, checkpoint, records)
    if config.auto not in (None, "off") and checkpoint is None and config.resume is None:
        from miniformer.training.trials.auto import choose_settings

        run = choose_settings(run, config, console, records)
    if checkpoint is None:
        auto_tune(run, console)
    console.print(run.summary("given" if parent_folder is None else "of the run and its pretrain"))
    config = run.config
    budget, total_steps = limits.make_budget(config, run.data, run.num_validations)
    module = builders.make_module(run, budget)
    pretrains = config.pretrain is not None and checkpoint is None
    pretrain_config = pretraining.pretrain_config(run) if pretrains else None
    folder = Path(config.resume or launcher.broadcast_from_rank0(create_folder))
    console.print(f"run folder: {folder}" if checkpoint is None else f"resuming from {checkpoint}")
    artifacts = RunArtifacts(folder, run, is_global_zero=launcher.rank() == 0)
    if artifacts.is_global_zero:
        run_folder.save_setup(folder, run)
    if pretrain_config is not None:
        train_part = partial(_train, console=console, parent_folder=folder, records=records)
        result = pretrain(run, pretrain_config, folder, console, train_part)
        if result.interrupted is not None:
            return dataclasses.replace(result, folder=folder)
    if config.compile:
        console.print(compile_layers(run, config.accumulate_grad_batches, config.max_steps))
    own = builders.RunCallbacks(run, module, artifacts, budget, console, resume_from=checkpoint)
    with builders.suppress_lightning_hints():
        trainer = builders.make_trainer(run, folder, own.around(callbacks))
        with explain_nan_errors(run.data, lambda: own.resume_checkpoint.last_checkpoint):
            with own.interrupt:
                trainer.fit(module, run.data)
                validate_last_step(trainer, module, run, own)
            module.nan_check.check(trainer.global_step, now=True)
        if total_steps is None and own.interrupt.signal is None and own.stop_reason is None:
            limits.warn_unreached_limits(config, trainer.global_step, run.num_validations)
        return evaluate(trainer, module, run, own, artifacts, console, parent_folder)
