"""Training data of the features of a wide head."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from miniformer.config import TransformerConfig
from miniformer.config.resolved import ResolvedSetting
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.model.wide_head.sparse import Inputs
from miniformer.training.tuning.wide_head.matrix import select_rows


class FixedOutputs:
    """Stands for a model in `Task.loss` and `Task.eval_step`: its outputs are `value`.

    Args:
        config: of the model.
    """

    training = False
    wide_head = None

    def __init__(self, config: TransformerConfig) -> None:
        self.config = config
        self.value = torch.zeros(0)

    def classify(self, **inputs: Any) -> Tensor:
        """The outputs, whatever the inputs are."""
        return self.value

    def features(self, **inputs: Any) -> Tensor:
        """The outputs of rows of one token, [n, 1, C]."""
        return self.value[:, None]

    def logits(self, features: Tensor) -> Tensor:
        """The outputs of `features`."""
        return features


class FittedGroup:
    """A group of features, fitted to the training data.

    Args:
        settings: item of the config's `wide_head`.
        module: the features.
        block: those of the training examples, sparse or dense [n, K].
    """

    def __init__(self, settings: dict[str, Any], module: Any, block: Tensor) -> None:
        self.settings, self.module, self._block = settings, module, block

    @property
    def block(self) -> Tensor:
        """Features of the training examples that a linear model is fitted to, [n, K]."""
        return self._block

    def rows(self, rows: Tensor) -> Tensor:
        """Rows of `block`."""
        return select_rows(self.block, rows)

    def own_weight(self, weight: Tensor) -> Tensor:
        """Weights of the module's features, from those of the block: [K, C]."""
        return weight


@dataclasses.dataclass
class FittedHead:
    """A wide head, fitted to the training data.

    Args:
        setting: of the settings of the run.
        groups: `wide_head` of the model config.
        state: values of the head's buffers by name.
    """

    setting: ResolvedSetting
    groups: list[dict[str, Any]]
    state: dict[str, Tensor]


class WideData:
    """Training examples in a fixed order: inputs of features, and labels.

    Args:
        config: of the model.
        data: the datamodule, set up; its training examples are in memory.

    Attributes:
        task: the task.
        tokenizer: None: inputs are vectors.
        lengths: tokens or vectors of each example, int64 [n].
    """

    def __init__(self, config: TransformerConfig, data: MiniFormerDataModule) -> None:
        self.task, self.tokenizer, self._data = data.task, data.tokenizer, data
        self._model = FixedOutputs(config)
        store = data.in_memory_examples("train")
        assert store is not None
        self.lengths = store.lengths("inputs")

    def inputs(self) -> Iterator[Inputs]:
        """The inputs of each batch; see `Task.wide_inputs`."""
        for batch in self._data.ordered_batches("train"):
            yield self.task.wide_inputs(self._model, batch)

    def samples(self, count: int) -> list[Inputs]:
        """The inputs of about `count` batches of all lengths."""
        batches = list(self.inputs())
        return batches[:: max(1, len(batches) // count)]

    def labels(self) -> Batch:
        """The labels of all examples; see `Task.wide_labels`."""
        batches = self._data.ordered_batches("train")
        return concat_labels([self.task.wide_labels(batch) for batch in batches])


def concat_labels(batches: list[Batch]) -> Batch:
    """One batch of several of `Task.wide_labels`."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
