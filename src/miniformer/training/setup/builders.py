"""Builds the LightningModule, the callbacks and the Trainer of a run from its config."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import lightning as L
from rich.console import Console

from miniformer import registry
from miniformer.train_config import TrainConfig
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.generation_samples import SampleGeneration
from miniformer.training.callbacks.interrupt import InterruptCallback
from miniformer.training.callbacks.monitor import RunMonitor
from miniformer.training.callbacks.progress import ProgressCallback, ValidationTimer
from miniformer.training.callbacks.validation import (
    BestModelCheckpoint,
    BudgetStopping,
    ValidationSchedule,
    WeightAveraging,
)
from miniformer.training.distributed.launcher import GRACE_PERIOD, is_launched
from miniformer.training.distributed.strategies import full_state_dict, make_strategy
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.report.artifacts import RunArtifacts
from miniformer.training.resume.callback import RestoreCheckpoint, ResumeCheckpoint
from miniformer.training.resume.config import dataset_fingerprint
from miniformer.training.setup.limits import DEFAULT_NUM_VALIDATIONS
from miniformer.training.setup.prepare import RunSetup, resolve_device_type, resolve_precision


@dataclasses.dataclass(frozen=True)
class RunCallbacks:
    """The callbacks of a run."""

    budget_stopping: BudgetStopping
    budget: Budget
    validation_schedule: ValidationSchedule
    monitor: RunMonitor
    sample_generation: SampleGeneration
    progress: ProgressCallback
    best_checkpoint: BestModelCheckpoint
    weight_averaging: WeightAveraging
    interrupt: InterruptCallback
    resume_checkpoint: ResumeCheckpoint
    restore_state: RestoreCheckpoint
    validation_timer: ValidationTimer

    @classmethod
    def build(
        cls,
        run: RunSetup,
        module: MiniFormerLitModule,
        artifacts: RunArtifacts,
        budget: Budget,
        console: Console,
        *,
        resume_from: Path | None,
    ) -> Self:
        """Builds the callbacks of a run.

        Args:
            run: the run.
            module: the LightningModule.
            artifacts: the files of the run.
            budget: the limits of the run.
            console: output for progress messages.
            resume_from: the checkpoint to resume from.
        """
        config, folder = run.config, artifacts.folder
        averaging = WeightAveraging(
            run.model, ema_decay=config.ema_decay, average_checkpoints=config.average_checkpoints
        )
        best_checkpoint = BestModelCheckpoint(
            lambda metrics: artifacts.save_best(
                full_state_dict(run.model), metrics, module.validation_stats
            ),
            monitor=f"val_{run.metric}",
            maximize=run.metric in run.task.maximize,
            patience=config.early_stopping_patience,
        )
        validation_schedule = ValidationSchedule(
            budget,
            every_n_steps=config.val_check_interval,
            num_validations=DEFAULT_NUM_VALIDATIONS if config.val_path else 0,
        )
        monitor = RunMonitor(
            run,
            module,
            folder,
            precision=resolve_precision(config),
            is_global_zero=artifacts.is_global_zero,
        )
        progress = ProgressCallback(
            budget,
            folder / "metrics.jsonl",
            console,
            flops_per_batch=monitor.train_flops,
            peak_flops=monitor.peak_flops,
            extra_metrics=monitor.metrics,
            is_global_zero=artifacts.is_global_zero,
        )
        samples = SampleGeneration(run, artifacts, console)
        resume_checkpoint = ResumeCheckpoint(
            folder,
            budget,
            stateful={
                "best": best_checkpoint, "validate": validation_schedule, "progress": progress,
                "averaging": averaging, "watch": monitor, "samples": samples,
            },
            weight_averages=averaging.averages,
            validation_schedule=validation_schedule,
            interval=config.checkpoint_interval,
            fingerprint=dataset_fingerprint(run.data),
            resume_from=resume_from,
        )  # fmt: skip
        interrupt = InterruptCallback(grace_period=GRACE_PERIOD if is_launched() else 0.0)
        return cls(
            BudgetStopping(budget, console.print), budget, validation_schedule, monitor, samples,
            progress, best_checkpoint, averaging, interrupt, resume_checkpoint,
            RestoreCheckpoint(resume_checkpoint), ValidationTimer(budget),
        )  # fmt: skip

    @property
    def callbacks(self) -> list[L.Callback]:
        """Callbacks in call order, before those of the user and `final_callbacks`.

        The checkpoint is restored before the later callbacks start. The best model is saved while
        the averaged weights are in use.
        """
        return [
            self.budget_stopping, self.restore_state, self.validation_schedule, self.monitor,
            self.sample_generation, self.progress, self.best_checkpoint, self.weight_averaging,
        ]  # fmt: skip

    @property
    def final_callbacks(self) -> list[L.Callback]:
        """Callbacks after those of the user, whose states the checkpoint includes.

        The snapshot after a step precedes an interruption, which saves it.
        """
        return [self.resume_checkpoint, self.interrupt, self.validation_timer]


def make_module(run: RunSetup, budget: Budget) -> MiniFormerLitModule:
    """Builds the LightningModule of a run."""
    config = run.config
    return MiniFormerLitModule(
        run.model,
        task=run.task,
        tokenizer=run.tokenizer,
        optimizer=config.optimizer,
        optimizer_config=config.optimizer_config,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_lr_decay=config.layer_lr_decay,
        scheduler=config.scheduler,
        warmup_steps=config.warmup_steps,
        warmup_ratio=config.warmup_ratio,
        gradient_clip_val=config.gradient_clip_val,
        accumulate_grad_batches=config.accumulate_grad_batches,
        budget=budget,
    )


def make_trainer(config: TrainConfig, folder: Path, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """Builds the Trainer; the callbacks decide when to validate and when to stop."""
    # Lightning refuses two callbacks with one key: the keys of its own checkpoints.
    distinct = {callback.state_key: callback for callback in reversed(callbacks)}
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=make_strategy(config, resolve_device_type(config)),
        precision={"float32": "32-true", "bf16": "bf16-mixed"}[resolve_precision(config)],  # type: ignore[arg-type]
        deterministic=config.deterministic,
        logger=registry.get("logger", config.logger)(folder),
        callbacks=[callback for callback in callbacks if distinct[callback.state_key] is callback],
        max_epochs=-1,  # BudgetStopping ends the run
        check_val_every_n_epoch=None,
        val_check_interval=1,  # ValidationSchedule decides
        limit_val_batches=None if config.val_path else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,  # BatchLoader distributes batches among devices
        inference_mode=False,  # weight averages are updated later
        default_root_dir=folder,
    )
    trainer.callbacks = list(callbacks)  # type: ignore[attr-defined]
    return trainer


@contextlib.contextmanager
def suppress_lightning_hints() -> Iterator[None]:
    """Suppresses hints of Lightning to authors of training code."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)
