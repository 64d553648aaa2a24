"""MiniFormerLitModule: a model and its task as a LightningModule with an exact optimiser step."""

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
from miniformer.training import engines
from miniformer.training.budget import Budget
from miniformer.training.finite import FiniteCheck
from miniformer.training.objective import Objective, repeated
from miniformer.training.optimizers import own_lr

WARMUP_SHARE = 0.05
_NOTHING = 1e-12  # what a loss that sums over nothing is divided by


class MiniFormerLitModule(L.LightningModule):
    """Lightning wrapper that trains a model on a task.

    It optimises by hand (Lightning's `automatic_optimization` is off), so clipping and accumulation
    are its own arguments, not the `Trainer`'s. The loss of a step is one sum over all its batches
    and all devices, divided once by what it sums over.

    Args:
        model: what to train: a Transformer, a Seq2SeqTransformer, or what `task` can use as one.
        task: a task's registered name, or a task that knows its training data (`Task.fit`).
        tokenizer: for figures of written text; None: they are left out.
        optimizer: an optimiser's registered name.
        optimizer_config: options of it.
        lr: learning rate at its highest; None: the optimiser's own.
        weight_decay: decoupled decay of weight matrices.
        layer_lr_decay: factor on the learning rate from each layer to the one below it.
        scheduler: a schedule's registered name.
        warmup_steps: steps in which the learning rate first goes up; None: see `warmup_share`.
        warmup_share: the same as a share of the run; None: 5 %, or what the schedule has itself.
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
        optimizer: str = "muon",
        optimizer_config: dict[str, Any] | None = None,
        lr: float | None = None,
        weight_decay: float = 0.1,
        layer_lr_decay: float = 1.0,
        scheduler: str = "cosine",
        warmup_steps: int | None = None,
        warmup_share: float | None = None,
        gradient_clip_val: float = 1.0,
        accumulate_grad_batches: int = 1,
        budget: Budget | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        task = registry.get("task", task)() if isinstance(task, str) else task
        # A loaded model is in eval mode, in which dropout is off.
        self.objective = Objective(model.train(), task)
        self.tokenizer = tokenizer
        self._make_optimizer = registry.get("optimizer", optimizer)
        lr = own_lr(optimizer) if lr is None else lr
        self._optimizer_options = {"lr": lr, "weight_decay": weight_decay}
        self._optimizer_options |= optimizer_config or {}
        if layer_lr_decay != 1.0:
            self._optimizer_options["layer_lr_decay"] = layer_lr_decay
        self.scheduler = scheduler
        self._schedule: Callable[[float], float] = registry.get("scheduler", scheduler)
        self.lr, self.warmup_steps, self.warmup_share = lr, warmup_steps, warmup_share
        if warmup_steps is None and warmup_share is None:
            # onecycle goes up by itself; without any schedule nobody knows how long a share is.
            self.warmup_share = None if scheduler in ("onecycle", "none") else WARMUP_SHARE
        self.gradient_clip_val = gradient_clip_val
        self.accumulate_grad_batches = accumulate_grad_batches
        self.budget = budget
        self._budget = budget or Budget()  # the one in use
        self._micro = 0  # batches of the step under way
        self._sums: Tensor | None = None  # of the step under way: loss, and what it sums over
        self._told = [0, 0]  # of the step under way: tokens, padding
        self.tokens = self.padding = 0  # trained on so far, on all devices
        self.current_lr = 0.0  # of the last step
        self.gradient_norm: Tensor | None = None  # of the last step, before it was clipped
        self.train_loss: Tensor | None = None  # of the last step
        self.finite = FiniteCheck()
        self.stop_asked = False  # some rank wants to stop; known to all of them after a step
        self.measured: list[Measured] = []  # of the last validation or test

    @property
    def model(self) -> Any:
        """The model that is trained."""
        return self.objective.model

    @property
    def task(self) -> Task:
        """What it learns."""
        return self.objective.task

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return self._budget.progress(self.trainer.global_step)

    @property
    def between_steps(self) -> bool:
        """Whether no batch has been added to the next step yet."""
        return self._micro == 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's own `forward`."""
        out: Tensor = self.model(*args, **kwargs)
        return out

    def configure_model(self) -> None:
        engines.shard(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        try:
            optimizer: torch.optim.Optimizer = self._make_optimizer(
                self.model, **self._optimizer_options
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer_config: {error}") from error
        return optimizer

    def on_fit_start(self) -> None:
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UserError(
                f"precision={self.trainer.precision} scales the loss, and clipping would clip the "
                "scaled gradient; use precision='bf16-mixed' or '32-true'"
            )

    def on_train_start(self) -> None:
        if self.budget is None:
            self._budget = self._trainer_budget()
            self._budget.start()
        self._micro, self._sums, self._told = 0, None, [0, 0]
        self.train_mode(True)

    def on_validation_model_zero_grad(self) -> None:
        """Nothing: gradients may belong to a step that is under way."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self._micro += 1
        steps = self._micro == self.accumulate_grad_batches or self.trainer.is_last_batch
        with engines.synchronised(self, steps):
            loss, count = self.objective(batch)
            self.manual_backward(engines.scaled(self, loss, count))
        about = batch.get("about", {})
        sums = torch.stack([loss.detach().float(), count.to(loss).float()])
        if loss.device.type != "mps":  # which has no float64
            sums = sums.double()
        self._sums = sums if self._sums is None else self._sums + sums
        self._told[0] += about.get("tokens", 0)
        self._told[1] += about.get("padding", 0)
        self.finite.note(loss.detach(), about.get("place"))
        if steps:
            self._step(about.get("epochs", 0.0))
            if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self._log()

    def _step(self, epochs: float) -> None:
        """A step of the optimiser, at whose end `epochs` are done."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        assert self._sums is not None
        sums, self._told, self.stop_asked = engines.agree(
            self, self._sums, self._told, self._budget, self.stop_asked
        )
        step = self.trainer.global_step
        self.finite.check(step + 1)  # before what is broken is learnt
        count = sums[1].clamp_min(_NOTHING)
        self.train_loss = (sums[0] / count).float()
        self.gradient_norm = engines.divide_and_clip(self, count.float(), self.gradient_clip_val)
        self.current_lr = self.lr * self._factor(step, epochs)
        for group in optimizer.param_groups:
            group["lr"] = self.current_lr * group.get("lr_scale", 1.0)
        optimizer.step()
        optimizer.zero_grad()
        self._budget.epochs = epochs
        self.tokens += self._told[0]
        self.padding += self._told[1]
        self._micro, self._sums, self._told = 0, None, [0, 0]

    def _factor(self, step: int, epochs: float = 0.0) -> float:
        """Share of `lr` for the optimiser step after `step` others; `epochs` are done after it."""
        factor = self._schedule(self._budget.progress(step))
        if self.warmup_steps is not None:
            return factor * min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.warmup_share:
            after = self._budget.progress(step + 1, epochs)
            return factor * min(1.0, max(after, 1e-3) / self.warmup_share)
        return factor

    def _log(self) -> None:
        self.log("train_loss", self.train_loss, logger=False, prog_bar=True)  # type: ignore[arg-type]
        figures = {"train_loss": float(self.train_loss), "lr": self.current_lr}  # type: ignore[arg-type]
        if self.gradient_norm is not None:
            figures["grad_norm"] = float(self.gradient_norm)
        self._log_to_loggers(figures)

    def _log_to_loggers(self, figures: dict[str, float]) -> None:
        # At the optimiser step: Lightning's own step counts batches.
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

    def train_mode(self, training: bool) -> None:
        """Tells an optimiser that averages weights which of them the model should hold now."""
        for optimizer in self.trainer.optimizers:
            switch = getattr(optimizer, "train" if training else "eval", None)
            if switch is not None:
                switch()

    def on_validation_epoch_start(self) -> None:
        self.measured = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure(batch)

    def on_validation_epoch_end(self) -> None:
        self._tell("val")

    def on_test_epoch_start(self) -> None:
        self.measured = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure(batch, test=True)

    def on_test_epoch_end(self) -> None:
        self._tell("test")

    def _measure(self, batch: Batch, *, test: bool = False) -> None:
        measured = engines.measure(self, batch, test=test)
        if not repeated(batch):
            self.measured.append(measured)

    def _tell(self, kind: str) -> None:
        self.measured = engines.gathered(self, self.measured)
        if self.measured:
            figures = self.task.figures(self.measured, self.tokenizer)
            figures = {f"{kind}_{name}": value for name, value in figures.items()}
            self.log_dict(figures, logger=False)
            if not self.trainer.sanity_checking:
                self._log_to_loggers(figures)
