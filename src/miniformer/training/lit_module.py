"""MiniFormerLitModule: one optimiser step, exactly.

The gradient of a step is the gradient of the summed loss of all its batches, divided once by what
it sums over (tokens, or the weight of records). So accumulating N batches is the same as one batch
N times as large, however unevenly their tokens are spread; averaging the averages, as a `loss / N`
would, is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn

from miniformer import registry
from miniformer.config import UserError
from miniformer.data.batches import Batches
from miniformer.data.buckets import Batch
from miniformer.data.tokenizer import Tokenizer
from miniformer.tasks.task import Measured, Task
from miniformer.training.budget import Budget

_WARMUP_SHARE = 0.05
_NOTHING = 1e-12  # what a loss that sums over nothing is divided by


class MiniFormerLitModule(L.LightningModule):
    """Lightning wrapper that trains a model on a task.

    It optimises by hand (Lightning's `automatic_optimization` is off), so clipping and accumulation
    are its own arguments, not the `Trainer`'s. One device for each process.

    Args:
        model: what to train: a Transformer, a Seq2SeqTransformer, or what `task` can use as one.
        task: a task's registered name, or a task that knows its training data (`Task.fit`).
        tokenizer: for figures of written text; None: they are left out.
        optimizer: an optimiser's registered name.
        lr: learning rate at its highest.
        weight_decay: decoupled decay of weight matrices.
        scheduler: a schedule's registered name.
        warmup_steps: steps in which the learning rate first goes up; None: 5 % of the run.
        gradient_clip_val: longest gradient (its norm); 0: any.
        accumulate_grad_batches: batches in one optimiser step.
        budget: the run's limits, by which the schedule goes; None: the `Trainer`'s own max_steps,
            max_epochs or max_time, whichever comes first.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        task: str | Task = "language_modeling",
        tokenizer: Tokenizer | None = None,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        scheduler: str = "cosine",
        warmup_steps: int | None = None,
        gradient_clip_val: float = 1.0,
        accumulate_grad_batches: int = 1,
        budget: Budget | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model.train()  # a loaded one is in eval mode, in which dropout is off
        self.task: Task = registry.get("task", task)() if isinstance(task, str) else task
        self.tokenizer = tokenizer
        self._make_optimizer = registry.get("optimizer", optimizer)
        self.scheduler = scheduler
        self._schedule: Callable[[float], float] = registry.get("scheduler", scheduler)
        self._warms_up_itself = scheduler in ("onecycle", "none") and warmup_steps is None
        self.lr, self.weight_decay, self.warmup_steps = lr, weight_decay, warmup_steps
        self.gradient_clip_val, self.accumulate_grad_batches = (
            gradient_clip_val,
            accumulate_grad_batches,
        )
        self.budget = budget
        self._budget = budget or Budget()  # the one in use
        self.step_count: Tensor | float = 0.0  # what the loss of the step under way sums over
        self.current_lr = 0.0  # of the last step
        self.train_loss: Tensor | None = None  # of the last batch
        self.measured: list[Measured] = []  # of the last validation or test

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's own `forward`."""
        out: Tensor = self.model(*args, **kwargs)
        return out

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self._make_optimizer(
            self.model, lr=self.lr, weight_decay=self.weight_decay
        )
        return optimizer

    def on_fit_start(self) -> None:
        if self.trainer.world_size > 1:
            raise UserError(
                f"MiniFormerLitModule trains on one device, not {self.trainer.world_size}; "
                "use devices=1"
            )
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UserError(
                f"precision={self.trainer.precision} scales the loss, and clipping would clip the "
                "scaled gradient; use precision='bf16-mixed' or '32-true'"
            )

    def on_train_start(self) -> None:
        if self.budget is None:
            self._budget = self._trainer_budget()
            self._budget.start()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        loss_sum, count = self.task.loss(self.model, batch)
        self.manual_backward(loss_sum)
        self.train_loss = loss_sum.detach() / count.float().clamp_min(_NOTHING)
        self.step_count = self.step_count + count
        if (batch_idx + 1) % self.accumulate_grad_batches == 0 or self.trainer.is_last_batch:
            self._step(batch.get("about", {}).get("epochs", 0.0))
            if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self._log()

    def _step(self, epochs: float) -> None:
        """A step of the optimiser, at whose end `epochs` are done."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        count = torch.as_tensor(self.step_count).float().clamp_min(_NOTHING)
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.div_(count)
        if self.gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip_val)
        self.current_lr = self.lr * self._factor(self.trainer.global_step, epochs)
        for group in optimizer.param_groups:
            group["lr"] = self.current_lr
        optimizer.step()
        optimizer.zero_grad()
        self.step_count, self._budget.epochs = 0.0, epochs

    def _factor(self, step: int, epochs: float = 0.0) -> float:
        """Share of `lr` for the optimiser step after `step` others; `epochs` are done after it."""
        factor = self._schedule(self._budget.progress(step))
        if self._warms_up_itself:
            return factor
        if self.warmup_steps is None:
            after = self._budget.progress(step + 1, epochs)
            return factor * min(1.0, max(after, 1e-3) / _WARMUP_SHARE)
        return factor * min(1.0, (step + 1) / max(1, self.warmup_steps))

    def _log(self) -> None:
        # Lightning's own step counts batches, so loggers are told the optimiser step here.
        self.log("train_loss", self.train_loss, logger=False, prog_bar=True)  # type: ignore[arg-type]
        figures = {"train_loss": float(self.train_loss), "lr": self.current_lr}  # type: ignore[arg-type]
        for logger in self.loggers:
            logger.log_metrics(figures, step=self.trainer.global_step)

    def _trainer_budget(self) -> Budget:
        """The limits of a `Trainer` that the user made."""
        trainer = self.trainer
        steps = [trainer.max_steps] if trainer.max_steps > 0 else []
        batches, epochs = trainer.num_training_batches, trainer.max_epochs or 0
        if epochs > 0 and math.isfinite(batches):
            steps.append(epochs * math.ceil(batches / self.accumulate_grad_batches))
        loader = trainer.train_dataloader
        # Batches of a length not known yet tell themselves how far they are.
        counted = isinstance(loader, Batches) and loader.pools.count is not None
        limit = epochs if epochs > 0 and counted and not math.isfinite(batches) else None
        timers = [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
        seconds = [left for left in (timer.time_remaining() for timer in timers) if left]
        if not (steps or limit or seconds or self.scheduler == "none"):
            raise UserError(
                f"scheduler={self.scheduler} needs to know when training ends; give the Trainer "
                "max_steps, max_time, or max_epochs over data of known length, or use "
                "scheduler='none'"
            )
        return Budget(
            max_steps=min(steps, default=None),
            max_epochs=limit,
            max_seconds=min(seconds, default=None),
        )

    def on_validation_epoch_start(self) -> None:
        self.measured = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.measured.append(self.task.measure(self.model, batch))

    def on_validation_epoch_end(self) -> None:
        self._tell("val")

    def on_test_epoch_start(self) -> None:
        self.measured = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.measured.append(self.task.measure(self.model, batch))

    def on_test_epoch_end(self) -> None:
        self._tell("test")

    def _tell(self, kind: str) -> None:
        if self.measured:
            figures = self.task.figures(self.measured, self.tokenizer)
            self.log_dict({f"{kind}_{name}": value for name, value in figures.items()})
