"""Orders of batches that a user plugs in: which batches an epoch has, and in which order.

An order is a registered `batch_order`, named in `TrainConfig.batch_order`. `BatchOrder` is its
interface. Without one, `BatchLoader` serves the batches of the batcher.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from miniformer import registry
from miniformer.config import UserError
from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.loader import Batcher, BatchLoader


@dataclasses.dataclass(frozen=True)
class PlanContext:
    """A chunk of examples whose batches an order plans.

    A plan of a batch is an array of rows: indices of examples in the chunk, or, if packed, windows.

    Args:
        chunk: the examples; data in memory is one chunk.
        batcher: the batcher of the task.
        rng: random generator of this chunk and epoch.
        epoch: epochs that are complete at the start of the chunk; of a stream, 0.
        world_size: ranks, which take turns: rank r gets the plans r, r + world_size, ...
    """

    chunk: ColumnarStore
    batcher: Batcher
    rng: np.random.Generator
    epoch: float
    world_size: int

    def plan_batches(self) -> list[np.ndarray]:
        """The batches of the default order, in random order."""
        return self.batcher.plan_batches(self.chunk, self.rng)

    def rows(self) -> np.ndarray:
        """All rows of the chunk, in random order."""
        return np.concatenate(self.plan_batches())


class BatchOrder:
    """Interface of a `batch_order`, which is built with its options.

    Each loader builds its own. The state is saved with the run. It may change in `plan` only: a run
    that resumes within a chunk restores the state before the plan of that chunk, and plans again.

    Attributes:
        whole_epochs: true if a plan must know all examples of an epoch, which are then held in
            memory.
    """

    whole_epochs: ClassVar[bool] = False

    def plan(self, context: PlanContext) -> Sequence[np.ndarray]:
        """Rows of each batch of a chunk, in the order of training.

        A batch may be of any size. One without rows is a step with a gradient of zero. The plan is
        the same on all ranks, and depends on `context` and the state only.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """State of JSON types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state."""


def build_order(setting: str | Mapping[str, Any] | BatchOrder) -> BatchOrder:
    """An order of a setting such as {"type": "poisson", "q": 0.1}, or a copy of an order.

    Raises:
        UserError: the name or an option is unknown, or the result is no `BatchOrder`.
    """
    if not isinstance(setting, str | Mapping):
        order = copy.deepcopy(setting)
    else:
        order = registry.build("batch_order", setting, label="batch_order", paths=True)
    if not isinstance(order, BatchOrder):
        raise UserError(
            f"batch_order: {setting!r} gives a {type(order).__name__}, not a "
            "miniformer.data.batching.order.BatchOrder; subclass it"
        )
    return order


class OrderedBatchLoader(BatchLoader):
    """A `BatchLoader` whose epochs may differ in their number of batches.

    The position of a batch includes the state of the order.

    Args:
        *args, **options: arguments of `BatchLoader`; it needs a seed.
        order: the order; None: that of the batcher.
    """

    def __init__(self, *args: Any, order: BatchOrder | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.order = order
        self._planned_from = self._order_state()  # state before the plan of the current chunk
        self._empty: set[int] = set()  # batches of the current chunk without rows
        self._state = self._with_order(super().state_dict(), self._planned_from)

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.order is not None and state.get("order") is not None:
            self.order.load_state_dict(copy.deepcopy(state["order"]))
        self._state = state

    def __len__(self) -> int:
        raise TypeError("the number of batches may differ between epochs")

    def _plan(self, chunk: ColumnarStore, epoch: int, chunk_index: int) -> list[Any]:
        if self.order is None:
            return super()._plan(chunk, epoch, chunk_index)
        rng, count = self._rng(epoch, chunk_index), self.chunks.num_chunks
        assert rng is not None
        self._planned_from = self._order_state()
        done = epoch + chunk_index / count if count else 0.0
        context = PlanContext(chunk, self.batcher, rng, done, self.world_size)
        plans = list(self.order.plan(context))
        self._empty = {index for index, plan in enumerate(plans) if not len(plan)}
        if self._empty:  # a row stands in for none; the batch is not counted
            row = self.batcher.plan_batches(chunk, self._rng(epoch, chunk_index))[0][:1]
            plans = [plan if len(plan) else row for plan in plans]
        return plans

    def _global_batches(
        self, epoch: int, start_chunk: int, start_batch: int
    ) -> Iterator[tuple[Batch, dict[str, Any]]]:
        num_batches = num_empty = 0
        for batch, about in super()._global_batches(epoch, start_chunk, start_batch):
            num_batches += 1
            about["examples"] -= num_empty
            about["empty"] = about["place"]["batch"] in self._empty
            num_empty += about["empty"]
            about["place"] = self._with_order(about["place"], self._planned_from)
            within = about["state"]["batch"] > 0
            state = self._planned_from if within else self._order_state()
            about["state"] = self._with_order(about["state"], state)
            yield batch, about
        if not num_batches and (start_chunk, start_batch) == (0, 0):
            raise UserError(f"batch_order: {type(self.order).__name__} has planned no batch")

    def _batch_of_rank(self, rank_batches: list[tuple[Batch, dict[str, Any]]]) -> Batch:
        batch = super()._batch_of_rank(rank_batches)
        about = batch["about"]
        self._state = about["state"]
        if about["empty"]:
            about |= {"tokens": 0, "padding": 0, "targets": 0, "predicted": 0, "repeated": True}
        return batch

    def record_indices(self, position: dict[str, Any]) -> list[int] | None:
        if self.order is not None and position.get("order") is not None:
            self.order.load_state_dict(copy.deepcopy(position["order"]))
        return super().record_indices(position)

    def _order_state(self) -> dict[str, Any] | None:
        """Copy of the state of the order; None: there is no order.

        Raises:
            UserError: it is not of JSON types.
        """
        if self.order is None:
            return None
        state = self.order.state_dict()
        try:
            restored: dict[str, Any] = json.loads(json.dumps(state))
        except (TypeError, ValueError) as error:
            name = type(self.order).__name__
            raise UserError(f"batch_order: the state of {name} is not JSON: {error}") from None
        return restored

    @staticmethod
    def _with_order(position: dict[str, int], state: dict[str, Any] | None) -> dict[str, Any]:
        return position if state is None else {**position, "order": state}
