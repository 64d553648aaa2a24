"""Batches: from pools of examples to batches, in an order that can be left and taken up again."""

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

# Tensors of tokens as most tasks call them, and their masks.
_DEFAULT_TOKEN_TENSORS = {
    "input_ids": "segment_ids",
    "inputs": "attention_mask",
    "source": "source_mask",
    "target": "labels",
}


class Batcher(Protocol):
    """How a pool becomes batches: `PackedWindows` or `LengthBuckets`."""

    def row_tokens(self, chunk: ColumnarStore) -> float: ...
    def plan_batches(self, chunk: ColumnarStore, rng: np.random.Generator | None) -> list[Any]: ...
    def collate(
        self, chunk: ColumnarStore, plan: Any, rng: np.random.Generator | None
    ) -> Batch: ...
    def example_indices(self, chunk: ColumnarStore, plan: Any) -> np.ndarray: ...


class BatchLoader:
    """The batches of one epoch each time that it is iterated over.

    A batch is a dict of tensors, and `about`: the passes over the data done with it (`epochs`), the
    examples served before it in this pass (`examples`), its `tokens`, its `padding` (positions that
    hold no token), how many of its tokens are `targets` of a decoder, the positions that its labels
    are `predicted` at (None: not known), the `place` of it and the `state` after it, and whether it
    is `repeated`.

    The order follows from `seed` and epoch alone: worker processes do not change it, and each rank
    takes its share of it.

    Args:
        pools: where examples come from.
        cutter: makes batches of them.
        seed: decides the order; None: always the same, with no chance in the batches.
        rank, world_size: of this process; ranks take turns, and get equally many batches. Where the
            last turn is not full, ranks without a batch get the last one again, marked `repeated`:
            whoever trains or measures must not count it.
        tensors: those of a batch that hold tokens, see `token_tensors`.
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
        self._epoch_start = (0, 0, 0)  # epoch, pool and batch at which the next pass begins
        self._position = self._epoch_start  # of the next batch
        self._num_batches: int | None = None
        self._starts_mid_epoch = False  # the next pass begins in its middle
        self.load_seconds = 0.0  # spent on making batches, while whoever asked for one waited

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is."""
        return _position_state(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begins the next pass at a `state_dict`, or at the `state` of a batch."""
        self._epoch_start = self._position = (state["epoch"], state["pool"], state["batch"])
        self._starts_mid_epoch = self._position[1:] != (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that comes next, from its beginning."""
        self._epoch_start = self._position = (epoch, 0, 0)

    def __len__(self) -> int:
        """Batches of a pass, for this rank.

        Raises:
            TypeError: only the end of a pass will tell, since not all examples are in memory, or
                since the first pass is not a whole one.
        """
        kept = getattr(self.chunks, "in_memory", None)
        if kept is None or self.chunks.num_chunks != 1 or self._starts_mid_epoch:
            raise TypeError("the number of batches is not known before the end of the pass")
        if self._num_batches is None:
            self._num_batches = len(self.batcher.plan_batches(kept, self._rng(0, 0)))
        return -(-self._num_batches // self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        place = self._epoch_start if self.seed is not None else (0, 0, 0)
        self.set_epoch(place[0] + 1)  # a pass that is left half-way is not taken up again
        self._position = place
        turn: list[tuple[Batch, dict[str, Any]]] = []
        began = time.perf_counter()
        for batch, about in self._global_batches(*place):
            turn.append((batch, about))
            if len(turn) == self.world_size:
                self.load_seconds += time.perf_counter() - began
                yield self._batch_of_rank(turn)
                began, turn = time.perf_counter(), []
        if turn:
            yield self._batch_of_rank(turn)
        self._position = self._epoch_start

    def record_indices(self, position: dict[str, int]) -> list[int] | None:
        """Numbers of the records that the batch at a `place` was made of.

        None: nobody knows, since records are streamed or give several examples each.
        """
        epoch, first, number = position["epoch"], position["pool"], position["batch"]
        if self.chunks.num_chunks is None:
            return None
        pool = next(iter(self.chunks.iter_epoch(self._rng(epoch), first)))
        if "record" not in pool.columns:
            return None
        cut = self.batcher.plan_batches(pool, self._rng(epoch, first))[number]
        found = pool.columns["record"][self.batcher.example_indices(pool, cut)]
        return list(dict.fromkeys(found.tolist()))

    def _batch_of_rank(self, rank_batches: list[tuple[Batch, dict[str, Any]]]) -> Batch:
        """This rank's batch of a turn; what it says of the state is the same for all ranks."""
        batch, about = rank_batches[min(self.rank, len(rank_batches) - 1)]
        last = rank_batches[-1][1]
        state, repeated = last["state"], self.rank >= len(rank_batches)
        self._position = (state["epoch"], state["pool"], state["batch"])
        real, places = (0, 0) if repeated else count_tokens(batch, self.token_tensors)
        told = {
            "tokens": real,
            "padding": places - real,
            "targets": 0 if repeated else _count_decoder_tokens(batch),
            "predicted": 0 if repeated else _count_predictions(batch),
            "repeated": repeated,
        }
        return {**batch, "about": {**about, **told, "state": state, "epochs": last["epochs"]}}

    def _global_batches(
        self, epoch: int, start_chunk: int, start_batch: int
    ) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """The batches of all ranks, from a place on."""
        examples = 0
        for number, pool in enumerate(
            self.chunks.iter_epoch(self._rng(epoch), start_chunk), start_chunk
        ):
            cuts = self.batcher.plan_batches(pool, self._rng(epoch, number)) if len(pool) else []
            for index, cut in enumerate(islice(cuts, start_batch, None), start_batch):
                # Each batch's chance is its own, whatever was served before it.
                batch = self.batcher.collate(pool, cut, self._rng(epoch, number, index))
                last = index + 1 == len(cuts)
                share = self._epoch_fraction(number, (index + 1) / len(cuts))
                after = (epoch, number + 1, 0) if last else (epoch, number, index + 1)
                if last and number + 1 == self.chunks.num_chunks:
                    after = (epoch + 1, 0, 0)
                state = _position_state(after)
                yield (
                    batch,
                    {
                        "epochs": epoch + share,
                        "examples": examples,
                        "place": _position_state((epoch, number, index)),
                        "state": state,
                    },
                )
                examples += len(cut)
            start_batch = 0

    def _epoch_fraction(self, chunk_index: int, chunk_fraction: float) -> float:
        count = self.chunks.num_chunks
        return 0.0 if count is None else (chunk_index + chunk_fraction) / count

    def _rng(self, *position: int) -> np.random.Generator | None:
        return None if self.seed is None else np.random.default_rng([self.seed, *position])


def _position_state(position: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("epoch", "pool", "batch"), position, strict=True))


def find_token_tensors(batch: Batch, declared: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tensors of a batch that hold tokens, each with the name of its mask.

    Args:
        batch: maybe of a task that says nothing of it: then those with usual names are taken, else
            the first tensor of two dimensions or more.
        declared: `Task.token_tensors`.
    """
    names = {
        name: mask for name, mask in (declared or _DEFAULT_TOKEN_TENSORS).items() if name in batch
    }
    if names or declared:
        return names
    wide = (name for name, value in batch.items() if getattr(value, "ndim", 0) >= 2)
    return dict.fromkeys(islice(wide, 1), "")


def count_tokens(batch: Batch, declared: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Real tokens of a batch, and positions in all, padding included; see `token_tensors`."""
    real = places = 0
    for name, mask in find_token_tensors(batch, declared).items():
        shape = batch[name].shape[:2]
        places += shape.numel()
        if mask == "labels":
            real += int((batch[mask] != IGNORE_INDEX).sum())
        else:
            real += int((batch[mask] != 0).sum()) if mask in batch else shape.numel()
    return real, places


def _count_decoder_tokens(batch: Batch) -> int:
    """Tokens of a batch that a decoder reads."""
    return (
        int((batch["labels"] != IGNORE_INDEX).sum()) if {"target", "labels"} <= batch.keys() else 0
    )


def _count_predictions(batch: Batch) -> int | None:
    """Positions that the labels of a batch are predicted at: one a row, or those not ignored."""
    labels = batch.get("labels")
    if labels is None:
        return None
    return len(labels) if labels.dim() == 1 else int((labels != IGNORE_INDEX).sum())
