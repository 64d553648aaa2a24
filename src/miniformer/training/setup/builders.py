"""Builds the callbacks and the Trainer of a run."""

from __future__ import annotations

import contextlib
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console

from miniformer import registry
from miniformer.checkpoint.artifacts import MODEL_CLASSES
from miniformer.config import UserError
from miniformer.config.train_settings import OptimizationSettings
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.early_stopping import EarlyStopping
from miniformer.training.callbacks.generation_samples import SampleGeneration
from miniformer.training.callbacks.interrupt import InterruptCallback
from miniformer.training.callbacks.monitor import RunMonitor
from miniformer.training.callbacks.progress import ProgressCallback
from miniformer.training.callbacks.stop_request import StopRequests
from miniformer.training.callbacks.validation import (
    BestModelCheckpoint,
    BudgetStopping,
    ValidationSchedule,
    WeightAveraging,
)
from miniformer.training.callbacks.wide_mix import WideMix
from miniformer.training.distributed.launcher import (
    GRACE_PERIOD,
    broadcast_from_rank0,
    is_launched,
)
from miniformer.training.distributed.strategies import (
    full_state_dict,
    load_full_state_dict,
    make_strategy,
)
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.report.artifacts import RunArtifacts
from miniformer.training.resume.callback import ResumeCheckpoint
from miniformer.training.resume.config import dataset_fingerprint
from miniformer.training.setup.limits import max_total_steps
from miniformer.training.setup.run_setup import RunSetup

CallbackOrFactory = L.Callback | Callable[[], L.Callback]


class RunCallbacks:
    """The callbacks of a run.

    Args:
        run: the run.
        module: the LightningModule.
        artifacts: the files of the run.
        budget: the limits of the run.
        console: output for progress messages.
        resume_from: the checkpoint to resume from.
    """

    def __init__(
        self,
        run: RunSetup,
        module: MiniFormerLitModule,
        artifacts: RunArtifacts,
        budget: Budget,
        console: Console,
        *,
        resume_from: Path | None,
    ) -> None:
        config, folder = run.config, artifacts.folder
        self.budget = budget
        self.weight_averaging = WeightAveraging(
            run.model, ema_decay=config.ema_decay, average_checkpoints=config.average_checkpoints
        )
        self.best_checkpoint = BestModelCheckpoint(
            lambda metrics: artifacts.save_best(
                full_state_dict(run.model), metrics, module.validation_stats
            ),
            monitor=f"val_{run.metric}",
            maximize=run.metric in run.task.maximize,
        )
        self.validation_schedule = ValidationSchedule(
            budget,
            every_n_steps=config.val_check_interval,
            num_validations=run.num_validations,
            every_epoch=config.max_steps is None and config.effective_max_epochs is None,
        )
        self.early_stopping = EarlyStopping(
            budget,
            None
            if config.strategy == "deepspeed"  # its weights are copies
            else partial(load_best_weights, run, artifacts.folder, self.weight_averaging),
            monitor=f"val_{run.metric}",
            maximize=run.metric in run.task.maximize,
            patience=config.early_stopping_patience,
            cooldown=config.scheduler != "none",
            log_fn=console.print,
        )
        self.monitor = RunMonitor(run, module, folder, is_global_zero=artifacts.is_global_zero)
        self.progress = ProgressCallback(
            budget,
            folder / "metrics.jsonl",
            console,
            flops_per_batch=self.monitor.train_flops,
            peak_flops=self.monitor.peak_flops,
            extra_metrics=self.monitor.metrics,
            metric=run.metric,
            total_steps=max_total_steps(config, run.data),
            is_global_zero=artifacts.is_global_zero,
        )
        self.sample_generation = SampleGeneration(run, artifacts, console, config.sample_prompt)
        self.resume_checkpoint = ResumeCheckpoint(
            folder,
            budget,
            stateful={
                "best": self.best_checkpoint, "early_stopping": self.early_stopping,
                "validate": self.validation_schedule,
                "progress": self.progress, "averaging": self.weight_averaging,
                "watch": self.monitor, "samples": self.sample_generation,
            },
            weight_averages=self.weight_averaging.averages,
            validation_schedule=self.validation_schedule,
            interval=config.checkpoint_interval,
            fingerprint=dataset_fingerprint(getattr(run.data.chunks["train"], "records", None)),
            resume_from=resume_from,
        )  # fmt: skip
        self.interrupt = InterruptCallback(grace_period=GRACE_PERIOD if is_launched() else 0.0)
        self._first = [
            BudgetStopping(budget, console.print), self.validation_schedule, self.monitor,
            self.sample_generation, self.progress, self.best_checkpoint, self.weight_averaging,
            self.early_stopping,
        ]  # fmt: skip
        if getattr(run.model, "wide_head", None) is not None:
            self._first.append(WideMix())
        self._last = [self.resume_checkpoint, self.interrupt]
        self._stop_requests: StopRequests | None = None

    def around(self, callbacks: Sequence[L.Callback]) -> list[L.Callback]:
        """All callbacks in call order, with those of the user.

        The best model is saved while the averaged weights are in use, and early stopping comes
        after it, since it may load the best model. The checkpoint includes the
        states of the user's callbacks. The snapshot after a step precedes an interruption, which
        saves it.
        """
        if callbacks:
            self._stop_requests = StopRequests(
                self.budget, self.early_stopping, self.early_stopping.log_fn
            )
            callbacks = [*callbacks, self._stop_requests]
        return [*self._first, *callbacks, *self._last]

    @property
    def stop_reason(self) -> str | None:
        """Reason for which a callback of the user has ended the run, if any."""
        return None if self._stop_requests is None else self._stop_requests.reason


def load_best_weights(run: RunSetup, folder: Path, averaging: WeightAveraging | None) -> None:
    """Loads the weights of the best model into the model of a run, and into its averages."""
    path, model_class = folder / "best", MODEL_CLASSES[run.kind]
    with torch.random.fork_rng(devices=[]):  # a new model draws random weights first
        weights = broadcast_from_rank0(lambda: model_class.from_pretrained(path).state_dict())
    load_full_state_dict(run.model, weights)
    if averaging is not None and averaging.ema is not None:
        averaging.ema.reset()


def make_module(run: RunSetup, budget: Budget) -> MiniFormerLitModule:
    """Creates the Lightning module of a run.

    Args:
        run: the prepared run.
        budget: the end of the run, which the learning rate follows.
    """
    options = run.config.part(OptimizationSettings).module_options()
    return MiniFormerLitModule(
        run.model, task=run.task, tokenizer=run.tokenizer, budget=budget, **options
    )


def make_trainer(run: RunSetup, folder: Path | None, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """Builds the Trainer; the callbacks decide when to validate and when to stop.

    Args:
        run: the run.
        folder: folder of the loggers; None: no loggers.
        callbacks: in call order.
    """
    config, hardware = run.config, run.hardware
    # Lightning refuses two callbacks with one key: the keys of its own checkpoints.
    distinct = {callback.state_key: callback for callback in reversed(callbacks)}
    trainer = L.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=make_strategy(
            hardware, config.part(OptimizationSettings), run.device_type, config.batch_size
        ),
        precision={"float32": "32-true", "bf16": "bf16-mixed"}[run.precision],  # type: ignore[arg-type]
        deterministic=hardware.deterministic,
        logger=folder is not None and registry.get("logger", config.logger)(folder),
        callbacks=[callback for callback in callbacks if distinct[callback.state_key] is callback],
        max_epochs=-1,  # BudgetStopping ends the run
        check_val_every_n_epoch=None,
        val_check_interval=1,  # ValidationSchedule decides
        limit_val_batches=None if run.num_validations else 0,
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


def build_callbacks(
    callbacks: Sequence[CallbackOrFactory], settings: Sequence[Any] | None = None
) -> list[L.Callback]:
    """Returns the callbacks of `TrainConfig.callbacks` and then the given ones, or their results.

    Raises:
        UserError: an item is neither a callback nor a function that returns one.
    """
    built = _build_named_callbacks(settings) if settings else []
    for item in callbacks:
        callback: Any = item if isinstance(item, L.Callback) or not callable(item) else item()
        if not isinstance(callback, L.Callback):
            raise UserError(
                f"callbacks: {item!r} is no lightning.Callback, nor a function that returns one"
            )
        built.append(callback)
    return built


def _build_named_callbacks(settings: Sequence[Any]) -> list[L.Callback]:
    """The callbacks of `TrainConfig.callbacks`.

    Raises:
        UserError: a callback cannot be imported, or refuses an option, or is none.
    """
    built = []
    for index, setting in enumerate(settings):
        label, name = (
            f"callbacks[{index}]",
            setting if isinstance(setting, str) else setting["type"],
        )
        component = registry.resolve("callback", name)
        is_class = isinstance(component, type) and issubclass(component, L.Callback)
        # A path may lead anywhere, so what it leads to is not called to find out.
        callback = None
        if is_class or name in registry.names("callback"):
            callback = registry.build("callback", setting, label=label, paths=True)
        if not isinstance(callback, L.Callback):
            raise UserError(f"{label}: {name} is no lightning.Callback: {component!r}")
        built.append(callback)
    return built


def pickle_callbacks(callbacks: Sequence[CallbackOrFactory]) -> bytes:
    """Pickles callbacks for other processes.

    Pickling by torch would share the memory of tensors between processes.

    Raises:
        UserError: a callback cannot be pickled.
    """
    for item in callbacks:
        try:
            pickle.dumps(item)
        except Exception as error:
            name = getattr(item, "__qualname__", type(item).__qualname__)
            raise UserError(
                f"callbacks: {name} cannot be copied to the processes of several devices: "
                f"{error}; pass a class or function of a module that returns it, or start your "
                "own script with torchrun"
            ) from None
    return pickle.dumps(list(callbacks))
