"""Callback that weights the outputs of a Transformer and of its wide head."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from miniformer.data.batching.length_bucketing import Batch
from miniformer.model.wide_head.head import WideHead
from miniformer.training.distributed.strategies import all_gather_stats
from miniformer.training.lit_module import is_duplicate_batch
from miniformer.training.tuning.wide_head.data import FixedOutputs, concat_labels

_MAX_ITERATIONS = 50
_PRIOR_EXAMPLES = 4.0  # weight of the previous weights, in validation examples
_MIN_ORDERED_WEIGHT = 1e-3


class WideMix(L.Callback):
    """Fits the two weights to each validation, by the task's loss; they are at least 0.

    They take effect at the next validation, so that the metrics of a validation are those of the
    weights that are saved with it, and were fitted before it.
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, Any]] = []

    def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
        head: WideHead = module.model.wide_head
        head.mix.copy_(head.next_mix)
        head.recorded, self._batches = [], []

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        recorded = module.model.wide_head.recorded
        if not is_duplicate_batch(batch):
            deep, wide = (torch.cat(values) for values in zip(*recorded, strict=True))
            labels = module.task.wide_labels(batch)
            self._batches.append({"deep": deep, "wide": wide, **labels})
        recorded.clear()

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        head: WideHead = module.model.wide_head
        head.recorded = None
        batches = all_gather_stats(module, self._batches)
        self._batches = []
        if batches:
            head.next_mix.copy_(fit_mix(module, concat_labels(batches)))


def fit_mix(module: Any, batch: Batch) -> Tensor:
    """Weights of both outputs with the lowest loss of the sum, at least 0: [2].

    Those of ordered outputs are above 0: if all outputs were 0, classes between the first and the
    last would have no probability.

    Args:
        module: the LightningModule; its `mix` is the prior.
        batch: `deep` and `wide`, outputs [n, C], with the labels of their examples.
    """
    both = torch.stack([batch["deep"], batch["wide"]]).double()  # [2, n, C]
    labels = {name: value for name, value in batch.items() if name not in ("deep", "wide")}
    outputs = FixedOutputs(module.model.config)
    prior: Tensor = module.model.wide_head.mix.to(both)
    lowest = _MIN_ORDERED_WEIGHT if module.model.config.ordered_outputs else 0.0
    strength = _PRIOR_EXAMPLES / both.shape[1]
    mix = prior.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([mix], max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            outputs.value = torch.einsum("k,knc->nc", mix.clamp_min(lowest), both)
            loss, count, *_ = module.task.loss(outputs, labels)
            objective: Tensor = loss / count + strength * (mix - prior).square().sum()
            objective.backward()  # type: ignore[no-untyped-call]
        return objective.detach()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    result: Tensor = mix.detach().clamp_min(lowest).to(module.model.wide_head.mix)
    return result
