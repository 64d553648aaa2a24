"""MiniFormerLitModule: a model and its task as a LightningModule with an exact optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import BatchStats, Task
from miniformer.training.callbacks.budget import Budget, budget_from_trainer
from miniformer.training.callbacks.nan_check import NaNCheck
from miniformer.training.distributed import strategies
from miniformer.training.optim.optimizers import default_lr
from miniformer.training.optim.roles import freeze_parameters

if TYPE_CHECKING:
    from miniformer.training.loss.passes import TrainingPasses
    from miniformer.training.loss.terms import LossTerms

DEFAULT_WARMUP_RATIO = 0.05
_MIN_COUNT = 1e-12  # divisor of a loss without labels


class MiniFormerLitModule(L.LightningModule):
    """Lightning wrapper that trains a model on a task.

    Optimization is manual (`automatic_optimization` is off). Gradient clipping and accumulation
    are arguments of this module, not of the `Trainer`. The loss of a step is one sum over all its
    batches and devices, divided once by its count.

    Args:
        model: a Transformer, a Seq2SeqTransformer, or another model that `task` can use.
        task: registered name of a task, or a task fitted to its training data (`Task.fit`).
        tokenizer: decodes generated text for metrics; None: these metrics are omitted.
        optimizer: registered name of an optimizer.
        optimizer_config: options of the optimizer.
        lr: peak learning rate; None: default of the optimizer.
        weight_decay: decoupled decay of weight matrices.
        layer_lr_decay: factor on the learning rate from each layer to the one below it.
        scheduler: registered name of a schedule.
        scheduler_config: options of the schedule.
        warmup_steps: optimizer steps of linear warmup; None: see `warmup_ratio`.
        warmup_ratio: fraction of the run for warmup; None: 5 %, or the schedule's own warmup.
        gradient_clip_val: maximum gradient norm; 0: no clipping.
        accumulate_grad_batches: batches in one optimizer step.
        budget: the run's limits, which the schedule follows; None: the first of max_steps,
            max_epochs and max_time of the `Trainer`.
        loss_terms: further terms of the objective, see `TrainConfig`.
        early_exit: losses of exits and layer dropout, see `TrainConfig`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        task: str | Task = "language_modeling",
        tokenizer: Tokenizer | None = None,
        optimizer: str = "muon",
        optimizer_config: dict[str, Any] | None = None,
        lr: float | None = None,
        weight_decay: float = 0.1,
        layer_lr_decay: float = 1.0,
        scheduler: str = "cosine",
        scheduler_config: dict[str, Any] | None = None,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        gradient_clip_val: float = 1.0,
        accumulate_grad_batches: int = 1,
        budget: Budget | None = None,
        loss_terms: Sequence[str | Mapping[str, Any]] = (),
        early_exit: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        task = registry.get("task", task)() if isinstance(task, str) else task
        freeze_parameters(model)
        self.loss_module = LossModule(model.train(), task)  # a loaded model is in eval mode
        self.tokenizer = tokenizer
        needs_passes = loss_terms or early_exit is not None or task.has_own_passes
        self.passes = self._make_passes(loss_terms, early_exit) if needs_passes else None
        self._make_optimizer = registry.get("optimizer", optimizer)
        lr = default_lr(optimizer) if lr is None else lr
        options = {"lr": lr, "weight_decay": weight_decay, **(optimizer_config or {})}
        self._optimizer_options: dict[str, Any] = options
        if layer_lr_decay != 1.0:
            self._optimizer_options["layer_lr_decay"] = layer_lr_decay
        schedule: Callable[..., float] = registry.get("scheduler", scheduler)
        self.scheduler, self._schedule = scheduler, partial(schedule, **(scheduler_config or {}))
        self.lr, self.warmup_steps, self.warmup_ratio = lr, warmup_steps, warmup_ratio
        if warmup_steps is None and warmup_ratio is None:
            # onecycle has its own warmup; without a schedule the length of the run is unknown.
            self.warmup_ratio = None if scheduler in ("onecycle", "none") else DEFAULT_WARMUP_RATIO
        self.gradient_clip_val = gradient_clip_val
        self.accumulate_grad_batches = accumulate_grad_batches
        self.budget, self._budget = budget, budget or Budget()  # the given one, the one in use
        self._micro_batches = 0  # batches of the current step
        self._loss_and_count: Tensor | None = None  # of the current step: summed loss, its count
        self._token_counts = [0, 0]  # of the current step: tokens, padding
        self.tokens = self.padding = 0  # trained on so far, on all devices
        self.current_lr = 0.0  # of the last step
        self.gradient_norm: Tensor | None = None  # of the last step, before clipping
        self.train_loss: Tensor | None = None  # of the last step
        self.nan_check = NaNCheck()
        self.stop_requested = False  # by some rank; all ranks know it after the next step
        self.validation_stats: list[BatchStats] = []  # of the last validation or test

    def _make_passes(
        self,
        loss_terms: Sequence[str | Mapping[str, Any]],
        early_exit: Mapping[str, Any] | None,
    ) -> TrainingPasses:
        from miniformer.training.loss.passes import TrainingPasses

        passes = TrainingPasses(self, loss_terms, early_exit)
        self.loss_module.terms = passes.terms
        return passes

    @property
    def model(self) -> Any:
        """The model that is trained."""
        return self.loss_module.model

    @property
    def task(self) -> Task:
        """The task that is trained."""
        return self.loss_module.task

    @property
    def progress(self) -> float:
        """Completed fraction of the run, in [0, 1]."""
        return self._budget.progress(self.trainer.global_step)

    @property
    def between_steps(self) -> bool:
        """True if the next step has no batch yet."""
        return self._micro_batches == 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's own `forward`."""
        return cast(Tensor, self.model(*args, **kwargs))

    def configure_callbacks(self) -> list[L.Callback]:
        return [] if self.passes is None else [self.passes.callback]

    def configure_model(self) -> None:
        strategies.apply_fsdp(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        try:
            optimizer = self._make_optimizer(self.model, **self._optimizer_options)
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer_config: {error}") from error
        return cast(torch.optim.Optimizer, optimizer)

    def on_fit_start(self) -> None:
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UserError(
                f"precision={self.trainer.precision} scales the loss, so that clipping would apply "
                "to the scaled gradient; use precision='bf16-mixed' or '32-true'"
            )

    def on_train_start(self) -> None:
        if self.budget is None:
            options = (self.scheduler, self.accumulate_grad_batches)
            self._budget = budget_from_trainer(self.trainer, *options)
            self._budget.start()
        self._micro_batches, self._loss_and_count, self._token_counts = 0, None, [0, 0]
        self.set_optimizer_mode(True)

    def on_validation_model_zero_grad(self) -> None:
        """Keeps gradients: they may belong to an unfinished step."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self._micro_batches += 1
        is_full = self._micro_batches == self.accumulate_grad_batches
        completes_step = is_full or self.trainer.is_last_batch
        if self.passes is not None:
            loss, count = self.passes.run(batch, completes_step)
        else:
            with strategies.grad_sync(self, completes_step):
                loss, count = self.loss_module(batch)
                self.manual_backward(strategies.backward_loss(self, loss, count))
        about = batch.get("about", {})
        sums = torch.stack([loss.detach().float(), count.to(loss).float()])
        sums = sums if loss.device.type == "mps" else sums.double()  # mps has no float64
        self._loss_and_count = sums if self._loss_and_count is None else self._loss_and_count + sums
        self._token_counts[0] += about.get("tokens", 0)
        self._token_counts[1] += about.get("padding", 0)
        self.nan_check.record(loss.detach(), about.get("place"))
        if completes_step:
            self._optimizer_step(about.get("epochs", 0.0))
            if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self._log_train_metrics()

    def _optimizer_step(self, epochs: float) -> None:
        """Takes an optimizer step, after which `epochs` are complete."""
        optimizer: Any = self.optimizers()
        assert self._loss_and_count is not None
        sums, self._token_counts, self.stop_requested = strategies.all_reduce_step_stats(
            self, self._loss_and_count, self._token_counts, self._budget, self.stop_requested
        )
        step = self.trainer.global_step
        self.nan_check.check(step + 1)  # before weights become NaN
        count = sums[1].clamp_min(_MIN_COUNT)
        self.train_loss = (sums[0] / count).float()
        if self.passes is not None:
            self.passes.finish_step(count)
        self.gradient_norm = strategies.normalize_and_clip_grads(
            self, count.float(), self.gradient_clip_val
        )
        self.current_lr = self.lr * self._lr_factor(step, epochs)
        for group in optimizer.param_groups:
            group["lr"] = self.current_lr * group.get("lr_scale", 1.0)
        optimizer.step()
        if self.passes is not None:
            self.passes.after_optimizer_step()
        optimizer.zero_grad()
        self._budget.epochs = epochs
        self.tokens += self._token_counts[0]
        self.padding += self._token_counts[1]
        self._micro_batches, self._loss_and_count, self._token_counts = 0, None, [0, 0]

    def _lr_factor(self, step: int, epochs: float = 0.0) -> float:
        """Factor on `lr` for optimizer step `step` + 1; `epochs` are complete after it."""
        if self._budget.cooldown is not None:
            return self._budget.cooldown.lr_factor(step)
        factor = self._schedule(self._budget.progress(step))
        if self.warmup_steps is not None:
            return factor * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.warmup_ratio:
            after = self._budget.progress(step + 1, epochs)
            return factor * min(1.0, max(after, 1e-3) / self.warmup_ratio)
        return factor

    def _log_train_metrics(self) -> None:
        self.log("train_loss", self.train_loss, logger=False, prog_bar=True)  # type: ignore[arg-type]
        self._log_to_loggers(self.train_metrics())

    def train_metrics(self) -> dict[str, float]:
        """Metrics of the last step: the loss and its terms, learning rate, gradient norm."""
        metrics = {"train_loss": float(self.train_loss), "lr": self.current_lr}  # type: ignore[arg-type]
        if self.gradient_norm is not None:
            metrics["grad_norm"] = float(self.gradient_norm)
        if self.passes is not None:
            metrics |= {f"train_{name}": value for name, value in self.passes.metrics().items()}
        return metrics

    def _log_to_loggers(self, metrics: dict[str, float]) -> None:
        # The step is the optimizer step: Lightning's own step counts batches.
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)

    def set_optimizer_mode(self, training: bool) -> None:
        """Switches an optimizer that averages weights between training and evaluation weights."""
        for optimizer in self.trainer.optimizers:
            getattr(optimizer, "train" if training else "eval", lambda: None)()

    def on_validation_start(self) -> None:
        self._budget.start_validation()

    def on_validation_end(self) -> None:
        self._budget.end_validation()  # after the callbacks, which save the model

    def on_validation_epoch_start(self) -> None:
        self.validation_stats = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._eval_step(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_eval_metrics("val")

    def on_test_epoch_start(self) -> None:
        self.validation_stats = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        # In float32, as the saved model is used: its evaluation has the same metrics.
        with torch.autocast(self.device.type, enabled=False):
            self._eval_step(batch, test=True)

    def on_test_epoch_end(self) -> None:
        self._log_eval_metrics("test")

    def _eval_step(self, batch: Batch, *, test: bool = False) -> None:
        with strategies.unsharded_params(self.loss_module):
            stats = self.loss_module.eval_step(batch, test=test)
        if not is_duplicate_batch(batch):
            self.validation_stats.append(stats)

    def _log_eval_metrics(self, stage: str) -> None:
        self.validation_stats = strategies.all_gather_stats(self, self.validation_stats)
        if self.validation_stats:
            fits = stage == "val"  # test data decides nothing
            task = self.task.fit_to_validation(self.validation_stats) if fits else self.task
            metrics = task.compute_metrics(self.validation_stats, self.tokenizer)
            if self.passes is not None:
                metrics |= self.passes.terms.eval_metrics(self.validation_stats)
            metrics = {f"{stage}_{name}": value for name, value in metrics.items()}
            self.log_dict(metrics, logger=False)
            if not self.trainer.sanity_checking:
                self._log_to_loggers(metrics)


class LossModule(nn.Module):
    """Loss of a batch.

    A task calls the parts of its model separately. The hooks around a pass (gradient reduction of
    DDP, weight gathering of FSDP) need one `forward`, which is that of this module.

    Args:
        model: a model that `task` can use.
        task: computes the loss and the evaluation statistics.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.terms: LossTerms | None = None  # of the run

    def forward(self, batch: Batch) -> Any:
        """`Task.loss`, and further terms; 0 for a batch that only keeps ranks synchronized."""
        if self.terms is not None:
            return self.terms.loss(self.task, self.model, batch)
        loss, count, *undeclared = self.task.loss(self.model, batch)
        if undeclared:
            raise ValueError(f"{self.task.name}: loss_terms does not list the terms of its loss")
        if is_duplicate_batch(batch):
            return loss * 0.0, count * 0
        return loss, count

    def eval_step(self, batch: Batch, *, test: bool) -> BatchStats:
        """Statistics of a validation or test batch for `Task.compute_metrics`."""
        step = self.task.test_step if test else self.task.eval_step
        stats = step(self.model, batch)
        if self.terms is not None:
            with _unrecorded(self.model):
                stats = {**stats, **self.terms.eval_stats(self.task, self.model, batch)}
        if "fields" in batch:  # see `Task.extra_fields`
            stats = {**stats, "records": batch["records"], "fields": batch["fields"]}
        return stats


@contextmanager
def _unrecorded(model: Any) -> Iterator[None]:
    """Keeps the outputs of passes from `WideMix`, which has those of the statistics of the task."""
    head: Any = getattr(model, "wide_head", None)
    recorded = getattr(head, "recorded", None)
    if recorded is not None:
        head.recorded = None
    try:
        yield
    finally:
        if recorded is not None:
            head.recorded = recorded


def is_duplicate_batch(batch: Batch) -> bool:
    """Returns whether another rank has this batch already."""
    return bool(batch.get("about", {}).get("repeated", False))
