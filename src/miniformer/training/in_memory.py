"""Training in memory: from given weights and optimizer state to a result, without files.

    start -> copy of its model, or a new model -> optimizer steps -> InMemoryResult -> next start

For programs that train many times: clients of federated learning, inner loops of meta-learning,
searches over settings.
"""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from rich.console import Console
from torch import Tensor

from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import UserError
from miniformer.config.train_settings import OptimizationSettings
from miniformer.train_config import TrainConfig
from miniformer.training.callbacks.early_stopping import EarlyStopping
from miniformer.training.callbacks.interrupt import InterruptCallback
from miniformer.training.callbacks.progress import ProgressCallback
from miniformer.training.callbacks.stop_request import StopRequests
from miniformer.training.callbacks.validation import (
    BestModelCheckpoint,
    BudgetStopping,
    ValidationSchedule,
    WeightAveraging,
    metrics_from_trainer,
)
from miniformer.training.callbacks.wide_mix import WideMix
from miniformer.training.distributed.strategies import full_state_dict, load_full_state_dict
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.resume.optimizer_state import OptimizerState
from miniformer.training.setup import builders, limits
from miniformer.training.setup.auto_tune import auto_tune
from miniformer.training.setup.prepare import prepare
from miniformer.training.setup.prepare_start import prepare_start
from miniformer.training.setup.run_setup import RunSetup
from miniformer.training.tuning.hardware import cpu_threads

# Settings of files, and of what only a run with a folder does.
_FOLDER_SETTINGS = (
    "work_dir", "experiment_name", "resume", "checkpoint_interval", "logger", "test_path",
    "sample_prompt", "pretrain", "auto", "folds", "fold", "streaming", "compile",
)  # fmt: skip
# Settings of a new model.
_MODEL_SETTINGS = (
    "task", "task_config", "model", "model_config", "model_size", "init_from", "tokenizer",
    "source_tokenizer", "transforms", "quantize_aware", "wide_head",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, repr=False)
class InMemoryResult:
    """Result of `train` in memory.

    Args:
        pipeline: the trained model with its tokenizer and task. With validation data it has the
            weights of the best validation, otherwise those of the last step.
        optimizer_state: state of the optimizer after the last step.
        metrics: `train_loss` of the last step, and the validation metrics of the weights.
        validations: metrics of each validation, with its `step`, in order.
        steps: optimizer steps.
        tokens: training tokens.
        stop_reason: reason for which a callback has ended training; None: no callback has.
    """

    pipeline: Pipeline
    optimizer_state: OptimizerState
    metrics: dict[str, float]
    validations: list[dict[str, float]]
    steps: int
    tokens: int
    stop_reason: str | None = None

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name}={value:.4g}" for name, value in self.metrics.items())
        return f"InMemoryResult(steps={self.steps}, {metrics})"


def train_in_memory(
    config: TrainConfig,
    *,
    start: Pipeline | InMemoryResult | None = None,
    optimizer_state: OptimizerState | None = None,
    console: Console | None = None,
    callbacks: Sequence[builders.CallbackOrFactory] = (),
    records: Mapping[str, Any] | None = None,
) -> InMemoryResult:
    """Trains a copy of a model, or a new model, on one device, and writes nothing.

    The result depends on the arguments only, and not on earlier calls. Ctrl-C ends the call with
    KeyboardInterrupt.

    Args:
        config: the settings; those of files have no place in memory.
        start: model, tokenizer and task to start from, which stay as they are; or an earlier
            result, with its optimizer state. None: a new model.
        optimizer_state: state of an optimizer with the same parameters; None: that of `start`.
        console: output for messages and progress; None: no output.
        callbacks: additional Lightning callbacks, or functions that return one.
        records: records in memory by the name of the path that they replace.

    Raises:
        UserError: a setting or a record is invalid, or the optimizer state is of another model.
    """
    if isinstance(start, InMemoryResult):
        optimizer_state = optimizer_state or start.optimizer_state
        start = start.pipeline
    if not isinstance(start, Pipeline | None):
        raise UserError(
            "train: start must be a pipeline or a result of train(in_memory=True), not a "
            f"{type(start).__name__}; miniformer.load gives the pipeline of a model directory"
        )
    _check_settings(config, start)
    console = console or Console(file=io.StringIO(), quiet=True)
    if config.val_path is None and config.val_share is None:
        config = dataclasses.replace(config, val_share=0.0)  # no data is set aside
    with cpu_threads(config.threads):
        L.seed_everything(config.seed, verbose=False)
        if start is None:
            run = prepare(config, console, in_memory=records)
        else:
            run = prepare_start(config, console, _copy_pipeline(start), records or {})
        auto_tune(run, console)
        console.print(run.summary())
        trained = _Training(run, console, callbacks, optimizer_state)
        return trained.result(trained.fit(), start)


class _Training:
    """The optimizer steps of a run in memory.

    Args:
        run: the run.
        console: output for messages.
        callbacks: callbacks of the user.
        optimizer_state: initial state of the optimizer; None: a new one.
    """

    def __init__(
        self,
        run: RunSetup,
        console: Console,
        callbacks: Sequence[builders.CallbackOrFactory],
        optimizer_state: OptimizerState | None,
    ) -> None:
        self.run, self.task = run, run.task
        self.best_weights: dict[str, Tensor] | None = None
        self.validations: list[dict[str, float]] = []
        config, maximize = run.config, run.metric in run.task.maximize
        budget, _ = limits.make_budget(config, run.data, run.num_validations)
        options = config.part(OptimizationSettings).module_options()
        self.module = MiniFormerLitModule(
            run.model, task=run.task, tokenizer=run.tokenizer, budget=budget, **options
        )
        self.averaging = WeightAveraging(
            run.model, ema_decay=config.ema_decay, average_checkpoints=config.average_checkpoints
        )
        self.best = BestModelCheckpoint(
            self._keep_best, monitor=f"val_{run.metric}", maximize=maximize
        )
        stopping = EarlyStopping(
            budget,
            self._restore_best,
            monitor=f"val_{run.metric}",
            maximize=maximize,
            patience=config.early_stopping_patience,
            cooldown=config.scheduler != "none",
            log_fn=console.print,
        )
        schedule = ValidationSchedule(
            budget,
            every_n_steps=config.val_check_interval,
            num_validations=run.num_validations,
            every_epoch=config.max_steps is None and config.effective_max_epochs is None,
        )
        self.stop_requests = StopRequests(budget, stopping, console.print)
        self.interrupt = InterruptCallback()
        own = [_OptimizerStart(optimizer_state), BudgetStopping(budget, console.print), schedule]
        own += [_History(self.validations), self.best, self.averaging, stopping]
        if not console.quiet:
            steps = limits.max_total_steps(config, run.data)
            own.append(
                ProgressCallback(budget, None, console, metric=run.metric, total_steps=steps)
            )
        own += [WideMix()] if getattr(run.model, "wide_head", None) is not None else []
        users = builders.build_callbacks(callbacks, config.all_callbacks())
        with builders.suppress_lightning_hints():
            self.trainer = builders.make_trainer(
                run, None, [*own, *users, self.stop_requests, self.interrupt]
            )

    def fit(self) -> OptimizerState:
        """Trains, and loads the weights of the result into the model.

        Returns:
            The state of the optimizer after the last step.
        """
        run, module, trainer = self.run, self.module, self.trainer
        with builders.suppress_lightning_hints(), self.interrupt:
            trainer.fit(module, run.data)
            module.nan_check.check(trainer.global_step, now=True)
            with self.averaging.use_averaged_weights(module):
                # Of the mode of these weights: an optimizer may average them.
                state = OptimizerState.of(run.model, trainer.optimizers[0])
                if run.num_validations and self.best.last_validation_step != trainer.global_step:
                    trainer.validate(module, run.data, verbose=False)
                weights = _copy_weights(run.model)
            average = self.averaging.checkpoint_average
            if average is not None:
                load_full_state_dict(run.model, average.mean())
                trainer.validate(module, run.data, verbose=False)
        if self.interrupt.signal is not None:
            raise KeyboardInterrupt
        load_full_state_dict(run.model, self.best_weights or weights)
        return state

    def result(self, state: OptimizerState, start: Pipeline | None) -> InMemoryResult:
        """The result, whose model is on the device of the model that training started from."""
        run, module = self.run, self.module
        device = "cpu" if start is None else next(start.model.parameters()).device
        model = run.model.eval().to(device)
        generation = None if start is None else start.generation
        pipeline = Pipeline(model, run.tokenizer, task=self.task, generation=generation)
        pipeline.data_settings = run.data_settings
        loss = {} if module.train_loss is None else {"train_loss": float(module.train_loss)}
        return InMemoryResult(
            pipeline=pipeline,
            optimizer_state=state,
            metrics={**loss, **(self.best.best_metrics or {})},
            validations=self.validations,
            steps=self.trainer.global_step,
            tokens=module.tokens,
            stop_reason=self.stop_requests.reason,
        )

    def _keep_best(self, metrics: dict[str, float]) -> None:
        self.best_weights = _copy_weights(self.run.model)
        self.task = self.run.task.fit_to_validation(self.module.validation_stats)

    def _restore_best(self) -> None:
        assert self.best_weights is not None
        load_full_state_dict(self.run.model, self.best_weights)
        if self.averaging.ema is not None:
            self.averaging.ema.reset()


class _OptimizerStart(L.Callback):
    """Loads the state of an optimizer before the first step; None: a new one."""

    def __init__(self, state: OptimizerState | None) -> None:
        self.state = state

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        if self.state is not None:
            self.state.load_into(module.model, trainer.optimizers[0])


class _History(L.Callback):
    """Appends the metrics of each validation to a list."""

    def __init__(self, validations: list[dict[str, float]]) -> None:
        self.validations = validations

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        metrics = metrics_from_trainer(trainer)
        self.validations.append({**metrics, "step": trainer.global_step})


def _check_settings(config: TrainConfig, start: Pipeline | None) -> None:
    """Refuses settings that have no effect in memory.

    Raises:
        UserError: names the setting and the fix.
    """
    given = config.given_fields()
    for name in _FOLDER_SETTINGS:
        if name in given:
            raise UserError(
                f"train: {name} has no effect with in_memory=True, which trains one model and "
                "writes no files; leave it out"
            )
    if config.world_size > 1:
        raise UserError("train: in_memory=True trains on one device; set devices=1")
    for name in () if start is None else _MODEL_SETTINGS:
        if name in given:
            raise UserError(
                f"train: {name} has no effect with start, which has a model, its tokenizer and its "
                "task; leave it out"
            )


def _copy_pipeline(start: Pipeline) -> Pipeline:
    """A pipeline with a copy of the model, whose weights training changes."""
    result = copy.copy(start)
    result.model = copy.deepcopy(start.model)
    return result


def _copy_weights(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in full_state_dict(model).items()}
