"""BatchLoader: batches from chunks of examples, in a deterministic and resumable order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

import numpy as np

from miniformer.data.batching.chunks import ChunkSource
from miniformer.data.batching.columnar import ColumnarStore
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.packing import IGNORE_INDEX

# Usual names of token tensors -> names of their masks.
_DEFAULT_TOKEN_TENSORS = {
    "input_ids": "segment_ids",
    "inputs": "attention_mask",
    "source": "source_mask",
    "target": "labels",
}


class Batcher(Protocol):
    """Divides chunks into batches: `PackedBatcher` or `LengthBucketBatcher`."""

    def row_tokens(self, chunk: ColumnarStore) -> float: ...
    def plan_batches(self, chunk: ColumnarStore, rng: np.random.Generator | None) -> list[Any]: ...
    def collate(
        self, chunk: ColumnarStore, plan: Any, rng: np.random.Generator | None
    ) -> Batch: ...
    def example_indices(self, chunk: ColumnarStore, plan: Any) -> np.ndarray: ...


class BatchLoader:
    """Iterable over the batches of one epoch at a time.

    A batch is a dict of tensors and `about`, a dict of:

        epochs     epochs completed after the batch, as a float
        examples   examples served before it in this epoch
        tokens     number of tokens
        padding    number of padding positions
        targets    number of decoder tokens
        predicted  number of predicted positions; None: not known
        place      position of the batch
        state      loader state after it
        repeated   whether it is not counted: another rank's batch, or one without examples

    The order depends on `seed` and the epoch only, not on worker processes. Ranks take turns.

    Args:
        chunks: source of examples.
        batcher: makes batches of examples.
        seed: seed of the order; None: a fixed order without randomness in the batches.
        rank: rank of this process. If the last turn is not full, ranks without a batch get the last
            batch again, marked `repeated`, which must not be counted.
        world_size: number of ranks; all get the same number of batches.
        token_tensors: names of the token tensors of a batch and their masks; see
            `find_token_tensors`.
    """

    def __init__(
        self,
        chunks: ChunkSource,
        batcher: Batcher,
        *,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        token_tensors: Mapping[str, str] | None = None,
    ) -> None:
        self.token_tensors = token_tensors
        self.chunks, self.batcher, self.seed = chunks, batcher, seed
        self.rank, self.world_size = rank, world_size
        self._epoch_start = (0, 0, 0)  # epoch, chunk and batch at which the next iteration starts
        self._position = self._epoch_start  # of the next batch
        self._num_batches = dict[int, int]()  # by epoch
        self._starts_mid_epoch = False
        self.load_seconds = 0.0  # time for which the consumer waited for batches

    def state_dict(self) -> dict[str, int]:
        """Position of the next batch."""
        return _position_state(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Sets the start of the next iteration to a `state_dict`, or to the `state` of a batch."""
        self._epoch_start = self._position = (state["epoch"], state["pool"], state["batch"])
        self._starts_mid_epoch = self._position[1:] != (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Sets the start of the next iteration to the first batch of an epoch."""
        self._epoch_start = self._position = (epoch, 0, 0)

    def __len__(self) -> int:
        """Batches of the epoch of the next iteration, for this rank.

        Raises:
            TypeError: the number is not known before the end of the epoch, since the examples are
                not all in memory, or since the first epoch starts in its middle.
        """
        store = getattr(self.chunks, "in_memory", None)
        if store is None or self.chunks.num_chunks != 1 or self._starts_mid_epoch:
            raise TypeError("the number of batches is not known before the end of the epoch")
        epoch = self._epoch_start[0]
        if epoch not in self._num_batches:  # a random order may give another number of batches
            plans = self.batcher.plan_batches(store, self._rng(epoch, 0))
            self._num_batches = {epoch: len(plans)}
        return -(-self._num_batches[epoch] // self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        start = self._epoch_start if self.seed is not None else (0, 0, 0)
        self.set_epoch(start[0] + 1)  # an interrupted iteration is not continued by the next one
        self._position = start
        rank_batches: list[tuple[Batch, dict[str, Any]]] = []
        start_time = time.perf_counter()
        for batch, about in self._global_batches(*start):
            rank_batches.append((batch, about))
            if len(rank_batches) == self.world_size:
                self.load_seconds += time.perf_counter() - start_time
                yield self._batch_of_rank(rank_batches)
                start_time, rank_batches = time.perf_counter(), []
        if rank_batches:
            yield self._batch_of_rank(rank_batches)
        self._position = self._epoch_start

    def record_indices(self, position: dict[str, int]) -> list[int] | None:
        """Indices of the records in the batch at a position (`place`).

        None: not known, since records are streamed or give several examples each.
        """
        epoch, chunk_index, batch_index = position["epoch"], position["pool"], position["batch"]
        if self.chunks.num_chunks is None:
            return None
        chunk = next(iter(self.chunks.iter_epoch(self._rng(epoch), chunk_index, epoch)))
        if "record" not in chunk.columns:
            return None
        plan = self._plan(chunk, epoch, chunk_index)[batch_index]
        indices = chunk.columns["record"][self.batcher.example_indices(chunk, plan)]
        return list(dict.fromkeys(indices.tolist()))

    def _batch_of_rank(self, rank_batches: list[tuple[Batch, dict[str, Any]]]) -> Batch:
        """This rank's batch of a turn; its `state` and `epochs` are the same on all ranks."""
        batch, about = rank_batches[min(self.rank, len(rank_batches) - 1)]
        last = rank_batches[-1][1]
        state, repeated = last["state"], self.rank >= len(rank_batches)
        self._position = (state["epoch"], state["pool"], state["batch"])
        tokens, positions = (0, 0) if repeated else count_tokens(batch, self.token_tensors)
        stats = {
            "tokens": tokens,
            "padding": positions - tokens,
            "targets": 0 if repeated else _count_decoder_tokens(batch),
            "predicted": 0 if repeated else _count_predictions(batch),
            "repeated": repeated,
        }
        return {**batch, "about": {**about, **stats, "state": state, "epochs": last["epochs"]}}

    def _global_batches(
        self, epoch: int, start_chunk: int, start_batch: int
    ) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Batches of all ranks, from a position."""
        examples = 0
        chunks = self.chunks.iter_epoch(self._rng(epoch), start_chunk, epoch)
        for chunk_index, chunk in enumerate(chunks, start_chunk):
            plans = self._plan(chunk, epoch, chunk_index) if len(chunk) else []
            for index, plan in enumerate(islice(plans, start_batch, None), start_batch):
                # Each batch has its own random generator, independent of earlier batches.
                batch = self.batcher.collate(chunk, plan, self._rng(epoch, chunk_index, index))
                is_last = index + 1 == len(plans)
                count = self.chunks.num_chunks
                fraction = (chunk_index + (index + 1) / len(plans)) / count if count else 0.0
                after = (epoch, chunk_index, index + 1)
                if is_last:
                    after = (epoch, chunk_index + 1, 0)
                    if chunk_index + 1 == count:
                        after = (epoch + 1, 0, 0)
                about = {
                    "epochs": epoch + fraction,
                    "examples": examples,
                    "place": _position_state((epoch, chunk_index, index)),
                    "state": _position_state(after),
                }
                yield batch, about
                examples += len(plan)
            start_batch = 0

    def _plan(self, chunk: ColumnarStore, epoch: int, chunk_index: int) -> list[Any]:
        """Plans of the batches of a chunk."""
        return self.batcher.plan_batches(chunk, self._rng(epoch, chunk_index))

    def _rng(self, *position: int) -> np.random.Generator | None:
        return None if self.seed is None else np.random.default_rng([self.seed, *position])


def _position_state(position: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("epoch", "pool", "batch"), position, strict=True))


def find_token_tensors(batch: Batch, declared: Mapping[str, str] | None = None) -> dict[str, str]:
    """Names of the token tensors in a batch -> names of their masks.

    Those are `declared` (`Task.token_tensors`), else they have usual names, else there is one: the
    first tensor of two or more dimensions.
    """
    names = {
        name: mask for name, mask in (declared or _DEFAULT_TOKEN_TENSORS).items() if name in batch
    }
    if names or declared:
        return names
    candidates = (name for name, value in batch.items() if getattr(value, "ndim", 0) >= 2)
    return dict.fromkeys(islice(candidates, 1), "")


def count_tokens(batch: Batch, declared: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Number of tokens in a batch, and of positions including padding."""
    tokens = positions = 0
    for name, mask in find_token_tensors(batch, declared).items():
        shape = batch[name].shape[:2]
        positions += shape.numel()
        if mask == "labels":
            tokens += int((batch[mask] != IGNORE_INDEX).sum())
        else:
            tokens += int((batch[mask] != 0).sum()) if mask in batch else shape.numel()
    return tokens, positions


def _count_decoder_tokens(batch: Batch) -> int:
    has_decoder = {"target", "labels"} <= batch.keys()
    return int((batch["labels"] != IGNORE_INDEX).sum()) if has_decoder else 0


def _count_predictions(batch: Batch) -> int | None:
    """Number of predicted positions: one per row, or the labels not ignored."""
    labels = batch.get("labels")
    if labels is None:
        return None
    return len(labels) if labels.dim() == 1 else int((labels != IGNORE_INDEX).sum())
