"""Optimizer, learning rate and weight averages of a run: a part of `TrainConfig`."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from miniformer.config.early_exit import EarlyExitConfig
from miniformer.config.errors import ConfigError
from miniformer.config.sparse_training import SparseTrainingConfig
from miniformer.config.strict import StrictConfig, option


@dataclasses.dataclass(frozen=True)
class OptimizationSettings(StrictConfig):
    """Optimizer, learning rate and weight averages.

    Args:
        lr: peak learning rate; null: 0.005 for muon, 0.001 for adamw, 0.002 for schedulefree; a
            tenth of it with init_from or pretrain.
        find_lr: run the learning-rate finder on the training data first and use its suggestion.
        weight_decay: decoupled weight decay of matrices; not of biases, norms and embeddings.
        layer_lr_decay: factor of the learning rate from each layer to the layer below it.
        scheduler: learning-rate schedule: cosine, onecycle, linear, wsd, none.
        scheduler_config: options of the schedule as shares: decay_ratio of wsd, the last part of
            the run, in which the rate falls (0.2); pct_start of onecycle, the part in which it
            rises (0.3), and start_factor, its first value relative to lr (0.04).
        warmup_steps: optimizer steps of learning-rate warmup; null: see warmup_ratio.
        warmup_ratio: warmup as a share of the run; null: 0.05, or onecycle's own warmup.
        optimizer: muon: Muon for the matrices of layers and AdamW for other weights; adamw;
            schedulefree: AdamW without a schedule (needs the extra miniformer[optim]).
        optimizer_config: options of the optimizer, such as {"betas": [0.9, 0.99]}.
        gradient_clip_val: maximum gradient norm; 0: no gradient clipping.
        accumulate_grad_batches: batches per optimizer step, equivalent to one large batch.
        ema_decay: EMA decay per optimizer step, such as 0.999. EMA weights are validated and saved.
            null: no EMA.
        average_checkpoints: number of the last validations whose averaged weights are evaluated at
            the end, and saved if they are the best; null: no averaging.
        seed: seed of initial weights, data order and dropout.
        loss_terms: further terms of the objective, each with a weight (1), a name for its metrics
            (the type) and options, such as
            [{"type": "my_package.terms:ZLoss", "weight": 0.001}], by the name of a registered term
            or by import path; find_lr and find_batch_size leave them out.
        early_exit: train exits after each layer, for drafts of the first layers and for classifiers
            that stop early: {"scale": 0.2, "max_dropout": 0.1} are the weight of the losses of
            exits and the share of rows that skip the last layer, {} these values; null: no exits.
        sparse_training: train with zeros in the matrices of the layers: {"method": "rigl",
            "sparsity": 0.8}, or movement in place of rigl; see docs/compression.md for the other
            options; null: no zeros.
    """

    heading: ClassVar[str] = "optimization"

    lr: float | None = option(None, low=0.0)
    find_lr: bool = option(False)
    weight_decay: float = option(0.1, low=0.0)
    layer_lr_decay: float = option(1.0, above=0.0, high=1.0)
    scheduler: str = option("cosine", kind="scheduler")
    scheduler_config: dict[str, Any] = option({})
    warmup_steps: int | None = option(None, low=0)
    warmup_ratio: float | None = option(None, low=0.0, high=1.0)
    optimizer: str = option("muon", kind="optimizer")
    optimizer_config: dict[str, Any] = option({})
    gradient_clip_val: float = option(1.0, low=0.0)
    accumulate_grad_batches: int = option(1, low=1)
    ema_decay: float | None = option(None, above=0.0, high=0.999999)
    average_checkpoints: int | None = option(None, low=2)
    seed: int = option(0, low=0, high=2**32 - 1)
    loss_terms: list[str | dict[str, Any]] = option([], kind="loss_term", paths=True)
    early_exit: dict[str, Any] | None = option(None)
    sparse_training: dict[str, Any] | None = option(None)

    def cross_check(self) -> list[str]:
        problems = super().cross_check()
        for name, kind in (
            ("early_exit", EarlyExitConfig),
            ("sparse_training", SparseTrainingConfig),
        ):
            if (value := getattr(self, name)) is not None:
                problems += _part_problems(name, kind, value)
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            problems.append(
                "warmup_steps and warmup_ratio both set the warmup; leave one of them out"
            )
        problems += [
            f"{name} has no effect with scheduler=onecycle, which has its own warmup; leave it out"
            for name in ("warmup_steps", "warmup_ratio")
            if self.scheduler == "onecycle" and getattr(self, name) is not None
        ]
        problems += self._schedulefree_problems() if self.optimizer == "schedulefree" else ()
        problems += [
            f"optimizer_config: {name} is a separate setting; set {name} instead"
            for name in ("lr", "weight_decay", "layer_lr_decay")
            if name in self.optimizer_config
        ]
        return problems

    def _schedulefree_problems(self) -> list[str]:
        """Conflicts of other settings with an optimizer that averages weights."""
        problems = []
        if self.sparse_training is not None:
            problems.append(
                "sparse_training needs an optimizer whose state has no weights; set muon or "
                "adamw in place of schedulefree"
            )
        if self.scheduler != "none":
            problems.append("optimizer=schedulefree has no schedule; set scheduler=none")
        if self.ema_decay is not None:
            problems.append(
                "ema_decay has no effect with schedulefree, which averages weights itself; "
                "leave it out"
            )
        return problems

    def module_options(self) -> dict[str, Any]:
        """The fields that are arguments of `MiniFormerLitModule`."""
        others = ("find_lr", "ema_decay", "average_checkpoints", "seed", "sparse_training")
        return {name: value for name, value in self.to_dict().items() if name not in others}


def _part_problems(name: str, kind: type[StrictConfig], value: dict[str, Any]) -> list[str]:
    """Problems of a setting that is a config of its own."""
    try:
        kind.from_dict(value)
    except ConfigError as error:
        return [f"{name}: {problem}" for problem in error.problems]
    return []
