"""MiniFormerLitModule: one optimiser step, exactly.

The gradient of a step is the gradient of the summed loss of all its batches, divided once by the
number of tokens summed over. So accumulating N batches is the same as one batch N times as large,
however unevenly their tokens are spread; averaging the averages, as a `loss / N` would, is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from miniformer import registry
from miniformer.model.transformer import Transformer
from miniformer.training.budget import Budget

_WARMUP_SHARE = 0.05
Batch = dict[str, Tensor]


class MiniFormerLitModule(L.LightningModule):
    """Lightning wrapper that trains a model on a task.

    It optimises by hand (Lightning's `automatic_optimization` is off), so clipping and accumulation
    are its own arguments, not the `Trainer`'s. One device for each process.

    Args:
        model: what to train.
        task: a task's registered name, or a task.
        optimizer: an optimiser's registered name.
        lr: learning rate at its highest.
        weight_decay: decoupled decay of weight matrices.
        scheduler: a schedule's registered name.
        warmup_steps: steps in which the learning rate first goes up; None: 5 % of the run.
        gradient_clip_val: longest gradient (its norm); 0: any.
        accumulate_grad_batches: batches in one optimiser step.
        budget: the run's limits, by which the schedule goes; None: the `Trainer`'s own number of
            steps.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        task: Any = "language_modeling",
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
        self.task = registry.get("task", task)() if isinstance(task, str) else task
        self._make_optimizer = registry.get("optimizer", optimizer)
        self._schedule: Callable[[float], float] = registry.get("scheduler", scheduler)
        self._warms_up_itself = scheduler in ("onecycle", "none") and warmup_steps is None
        self.lr, self.weight_decay, self.warmup_steps = lr, weight_decay, warmup_steps
        self.gradient_clip_val, self.accumulate_grad_batches = (
            gradient_clip_val,
            accumulate_grad_batches,
        )
        self.budget = budget
        self.step_tokens: Tensor | float = 0.0  # labels in the step under way
        self.current_lr = 0.0  # of the last step
        self.train_loss: Tensor | None = None  # of the last batch, nats a token
        self.grad_norm: Tensor | None = None  # of the last step, before clipping
        self._val_sum, self._val_tokens = 0.0, 0.0

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
            raise ValueError(
                f"MiniFormerLitModule trains on one device, not {self.trainer.world_size}; "
                "use devices=1"
            )
        if self.budget is None:
            self.budget = Budget(max_steps=int(self.trainer.estimated_stepping_batches))
            self.budget.start()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        loss_sum, tokens = self.task.loss(self.model, batch)
        self.manual_backward(loss_sum)
        self.train_loss = loss_sum.detach() / tokens
        self.step_tokens = self.step_tokens + tokens
        if (batch_idx + 1) % self.accumulate_grad_batches == 0 or self.trainer.is_last_batch:
            self._step()
            if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self.log("train_loss", self.train_loss)
                self.log("lr", self.current_lr)

    def _step(self) -> None:
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.div_(self.step_tokens)
        limit = self.gradient_clip_val or float("inf")
        self.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        self.current_lr = self.lr * self._factor(self.trainer.global_step)
        for group in optimizer.param_groups:
            group["lr"] = self.current_lr
        optimizer.step()
        optimizer.zero_grad()
        self.step_tokens = 0.0

    def _factor(self, step: int) -> float:
        """Share of `lr` for the optimiser step after `step` others."""
        assert self.budget is not None
        factor = self._schedule(self.budget.progress(step))
        if self._warms_up_itself:
            return factor
        if self.warmup_steps is None:
            return factor * min(1.0, max(self.budget.progress(step + 1), 1e-3) / _WARMUP_SHARE)
        return factor * min(1.0, (step + 1) / max(1, self.warmup_steps))

    def on_validation_epoch_start(self) -> None:
        self._val_sum, self._val_tokens = 0.0, 0.0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss_sum, tokens = self.task.loss(self.model, batch)
        self._val_sum += float(loss_sum)
        self._val_tokens += float(tokens)

    def on_validation_epoch_end(self) -> None:
        dataset = getattr(self.trainer.val_dataloaders, "dataset", None)
        bytes_per_token = getattr(dataset, "bytes_per_token", None)
        figures = self.task.metrics(self._val_sum, self._val_tokens, bytes_per_token)
        for name, value in figures.items():
            self.log(f"val_{name}", value)
