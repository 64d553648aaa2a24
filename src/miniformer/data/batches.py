"""Batches: from pools of examples to batches, in an order that can be left and taken up again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

import numpy as np

from miniformer.data.buckets import Batch
from miniformer.data.packing import IGNORED
from miniformer.data.pools import Pools
from miniformer.data.table import Table


class Cutter(Protocol):
    """How a pool becomes batches: `PackedWindows` or `LengthBuckets`."""

    def cut(self, pool: Table, random: np.random.Generator | None) -> list[Any]: ...
    def make(self, pool: Table, cut: Any, random: np.random.Generator | None) -> Batch: ...


class Batches:
    """The batches of one epoch each time that it is iterated over.

    A batch is a dict of tensors, and `about`: the passes over the data done with it (`epochs`), the
    examples served before it in this pass (`examples`), its `tokens`, its `padding` (positions that
    hold no token), and the `state` after it.

    The order follows from `seed` and epoch alone: worker processes do not change it, and each rank
    takes its share of it.

    Args:
        pools: where examples come from.
        cutter: makes batches of them.
        seed: decides the order; None: always the same, with no chance in the batches.
        rank, world_size: of this process; ranks take turns, and get equally many batches. Where the
            last turn is not full it is left out in training (`seed` is given); else ranks without a
            batch get the last one again, with no label left in it.
    """

    def __init__(
        self,
        pools: Pools,
        cutter: Cutter,
        *,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.pools, self.cutter, self.seed = pools, cutter, seed
        self.rank, self.world_size = rank, world_size
        self._next = (0, 0, 0)  # epoch, pool and batch at which the next pass begins
        self._place = self._next  # of the next batch
        self._length: int | None = None
        self.seconds = 0.0  # spent on making batches, while whoever asked for one waited

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is."""
        return _state(self._place)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begins the next pass at a `state_dict`, or at the `state` of a batch."""
        self._next = self._place = (state["epoch"], state["pool"], state["batch"])

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that comes next, from its beginning."""
        self._next = self._place = (epoch, 0, 0)

    def __len__(self) -> int:
        """Batches of a pass, for this rank.

        Raises:
            TypeError: only the end of a pass will tell, since not all examples are in memory.
        """
        kept = getattr(self.pools, "kept", None)
        if kept is None or self.pools.count != 1:
            raise TypeError("the number of batches is not known before the end of the pass")
        if self._length is None:
            self._length = len(self.cutter.cut(kept, self._random(0, 0)))
        full, rest = divmod(self._length, self.world_size)
        return full + (rest > 0 and self.seed is None)

    def __iter__(self) -> Iterator[Batch]:
        place = self._next if self.seed is not None else (0, 0, 0)
        self.set_epoch(place[0] + 1)  # a pass that is left half-way is not taken up again
        self._place = place
        turn: list[tuple[Batch, dict[str, Any]]] = []
        began = time.perf_counter()
        for batch, about in self._all(*place):
            turn.append((batch, about))
            if len(turn) == self.world_size:
                self.seconds += time.perf_counter() - began
                yield self._served(turn[self.rank][0], about)
                began, turn = time.perf_counter(), []
        if turn and self.seed is None:
            batch = turn[min(self.rank, len(turn) - 1)][0]
            if self.rank >= len(turn):
                batch["labels"] = batch["labels"].new_full(batch["labels"].shape, IGNORED)
            yield self._served(batch, turn[-1][1])
        self._place = self._next

    def _served(self, batch: Batch, about: dict[str, Any]) -> Batch:
        state = about["state"]
        self._place = (state["epoch"], state["pool"], state["batch"])
        real, places = count_tokens(batch)
        return {**batch, "about": {**about, "tokens": real, "padding": places - real}}

    def _all(self, epoch: int, first: int, skipped: int) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """The batches of all ranks, from a place on."""
        examples = 0
        for number, pool in enumerate(self.pools.epoch(self._random(epoch), first), first):
            cuts = self.cutter.cut(pool, self._random(epoch, number)) if len(pool) else []
            for index, cut in enumerate(islice(cuts, skipped, None), skipped):
                # Each batch's chance is its own, whatever was served before it.
                batch = self.cutter.make(pool, cut, self._random(epoch, number, index))
                last = index + 1 == len(cuts)
                share = self._share(number, (index + 1) / len(cuts))
                state = _state((epoch, number + 1, 0) if last else (epoch, number, index + 1))
                yield batch, {"epochs": epoch + share, "examples": examples, "state": state}
                examples += len(cut)
            skipped = 0

    def _share(self, pool: int, of_it: float) -> float:
        count = self.pools.count
        return 0.0 if count is None else (pool + of_it) / count

    def _random(self, *place: int) -> np.random.Generator | None:
        return None if self.seed is None else np.random.default_rng([self.seed, *place])


def _state(place: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("epoch", "pool", "batch"), place, strict=True))


def count_tokens(batch: Batch) -> tuple[int, int]:
    """Real tokens of a batch, and positions in all, padding included."""
    real = places = 0
    for name, mask in (
        ("input_ids", "segment_ids"),
        ("inputs", "attention_mask"),
        ("source", "source_mask"),
        ("target", "labels"),
    ):
        if name not in batch:
            continue
        shape = batch[name].shape[:2]
        places += shape.numel()
        if mask == "labels":
            real += int((batch[mask] != IGNORED).sum())
        else:
            real += int((batch[mask] != 0).sum()) if mask in batch else shape.numel()
    return real, places
