"""The parts of a run that Lightning calls, made from its settings, and Lightning's Trainer."""

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
from miniformer.config.train_checks import VALIDATIONS
from miniformer.train_config import TrainConfig
from miniformer.training.budget import Budget
from miniformer.training.callbacks import Averaging, KeepBest, StopAtBudget, ValidateInTime
from miniformer.training.engines import full_weights, strategy_of
from miniformer.training.interrupt import InterruptCallback
from miniformer.training.launch import GRACE, is_launched
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.outputs import Outputs
from miniformer.training.preparation import Prepared, device_type, precision
from miniformer.training.progress import ProgressCallback, TimeValidation
from miniformer.training.resuming import facts_of
from miniformer.training.run_state import KeepState, RestoreState
from miniformer.training.samples import WriteSamples
from miniformer.training.watching import Watch


@dataclasses.dataclass(frozen=True)
class Parts:
    """What ends a run, judges, watches, averages, keeps and tells."""

    stop: StopAtBudget
    budget: Budget
    validate: ValidateInTime
    watch: Watch
    samples: WriteSamples
    progress: ProgressCallback
    keep: KeepBest
    averaging: Averaging
    interrupt: InterruptCallback
    states: KeepState
    restore: RestoreState
    timing: TimeValidation

    @classmethod
    def of(
        cls,
        run: Prepared,
        module: MiniFormerLitModule,
        outputs: Outputs,
        budget: Budget,
        console: Console,
        *,
        start: Path | None,
    ) -> Self:
        """The parts of a run.

        Args:
            run: the run.
            module: what trains.
            outputs: of the run.
            budget: of the run.
            console: where to tell of it.
            start: the state that it goes on from.
        """
        config, folder = run.config, outputs.folder
        averaging = Averaging(
            run.model, ema_decay=config.ema_decay, last=config.average_checkpoints
        )
        keep = KeepBest(
            lambda figures: outputs.save_best(full_weights(run.model), figures, module.measured),
            metric=f"val_{run.metric}",
            larger=run.metric in run.task.larger_is_better,
            patience=config.early_stopping_patience,
        )
        validate = ValidateInTime(
            budget, interval=config.val_interval, times=VALIDATIONS if config.val_path else 0
        )
        watch = Watch(run, module, folder, kind=precision(config), writes=outputs.writes)
        progress = ProgressCallback(
            budget,
            folder / "metrics.jsonl",
            console,
            flops=watch.flops,
            peak=watch.peak,
            watch=watch.figures,
            writes=outputs.writes,
        )
        samples = WriteSamples(run, outputs, console)
        states = KeepState(
            folder,
            budget,
            remembering={
                "best": keep, "validate": validate, "progress": progress, "averaging": averaging,
                "watch": watch, "samples": samples,
            },
            averages=averaging.kept,
            validate=validate,
            interval=config.checkpoint_interval,
            facts=facts_of(run.data),
            start=start,
        )  # fmt: skip
        interrupt = InterruptCallback(grace=GRACE if is_launched() else 0.0)
        stop = StopAtBudget(budget, console.print)
        return cls(
            stop, budget, validate, watch, samples, progress, keep, averaging, interrupt, states,
            RestoreState(states), TimeValidation(budget),
        )  # fmt: skip

    @property
    def callbacks(self) -> list[L.Callback]:
        """In the order in which they have their say; a user's own and `closing` come behind them.

        What a run goes on from is restored before the others begin. The best model is kept while
        averages are in use.
        """
        return [
            self.stop, self.restore, self.validate, self.watch, self.samples, self.progress,
            self.keep, self.averaging,
        ]  # fmt: skip

    @property
    def closing(self) -> list[L.Callback]:
        """Those that come behind a user's own callbacks, whose states belong to the run.

        The state after a step is noted before an interruption ends the run with it.
        """
        return [self.states, self.interrupt, self.timing]


def make_module(run: Prepared, budget: Budget) -> MiniFormerLitModule:
    """What Lightning trains."""
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
        warmup_share=config.warmup_share,
        gradient_clip_val=config.gradient_clip_val,
        accumulate_grad_batches=config.accumulate_grad_batches,
        budget=budget,
    )


def make_trainer(config: TrainConfig, folder: Path, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """Lightning's Trainer, of which the callbacks decide when to validate and when to end."""
    # Lightning refuses several callbacks of one key, since its own checkpoints know them by it.
    distinct = {callback.state_key: callback for callback in reversed(callbacks)}
    trainer = L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy_of(config, device_type(config)),
        precision={"float32": "32-true", "bf16": "bf16-mixed"}[precision(config)],  # type: ignore[arg-type]
        deterministic=config.deterministic,
        logger=registry.get("logger", config.logger)(folder),
        callbacks=[each for each in callbacks if distinct[each.state_key] is each],
        max_epochs=-1,  # StopAtBudget ends the run
        check_val_every_n_epoch=None,
        val_check_interval=1,  # ValidateInTime decides
        limit_val_batches=None if config.val_path else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,  # batches share themselves among devices
        inference_mode=False,  # in which averages could not be changed again
        default_root_dir=folder,
    )
    trainer.callbacks = list(callbacks)  # type: ignore[attr-defined]
    return trainer


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's hints, which are for authors of training code, from users of this one."""
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
