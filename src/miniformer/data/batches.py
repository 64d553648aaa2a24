"""Batches: from pools of examples to batches, in an order that can be left and taken up again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

import numpy as np

from miniformer.data.buckets import Batch
from miniformer.data.packing import IGNORED
from miniformer.data.pools import Pools
from miniformer.data.table import Table

# Tensors of tokens as most tasks call them, and their masks.
_USUAL = {
    "input_ids": "segment_ids",
    "inputs": "attention_mask",
    "source": "source_mask",
    "target": "labels",
}


class Cutter(Protocol):
    """How a pool becomes batches: `PackedWindows` or `LengthBuckets`."""

    def row_tokens(self, pool: Table) -> float: ...
    def cut(self, pool: Table, random: np.random.Generator | None) -> list[Any]: ...
    def make(self, pool: Table, cut: Any, random: np.random.Generator | None) -> Batch: ...
    def examples(self, pool: Table, cut: Any) -> np.ndarray: ...


class Batches:
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
        pools: Pools,
        cutter: Cutter,
        *,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        tensors: Mapping[str, str] | None = None,
    ) -> None:
        self.tensors = tensors
        self.pools, self.cutter, self.seed = pools, cutter, seed
        self.rank, self.world_size = rank, world_size
        self._next = (0, 0, 0)  # epoch, pool and batch at which the next pass begins
        self._place = self._next  # of the next batch
        self._length: int | None = None
        self._cut_short = False  # the next pass begins in its middle
        self.seconds = 0.0  # spent on making batches, while whoever asked for one waited

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is."""
        return _state(self._place)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begins the next pass at a `state_dict`, or at the `state` of a batch."""
        self._next = self._place = (state["epoch"], state["pool"], state["batch"])
        self._cut_short = self._place[1:] != (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that comes next, from its beginning."""
        self._next = self._place = (epoch, 0, 0)

    def __len__(self) -> int:
        """Batches of a pass, for this rank.

        Raises:
            TypeError: only the end of a pass will tell, since not all examples are in memory, or
                since the first pass is not a whole one.
        """
        kept = getattr(self.pools, "kept", None)
        if kept is None or self.pools.count != 1 or self._cut_short:
            raise TypeError("the number of batches is not known before the end of the pass")
        if self._length is None:
            self._length = len(self.cutter.cut(kept, self._random(0, 0)))
        return -(-self._length // self.world_size)

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
                yield self._served(turn)
                began, turn = time.perf_counter(), []
        if turn:
            yield self._served(turn)
        self._place = self._next

    def trace(self, place: dict[str, int]) -> list[int] | None:
        """Numbers of the records that the batch at a `place` was made of.

        None: nobody knows, since records are streamed or give several examples each.
        """
        epoch, first, number = place["epoch"], place["pool"], place["batch"]
        if self.pools.count is None:
            return None
        pool = next(iter(self.pools.epoch(self._random(epoch), first)))
        if "record" not in pool.columns:
            return None
        cut = self.cutter.cut(pool, self._random(epoch, first))[number]
        found = pool.columns["record"][self.cutter.examples(pool, cut)]
        return list(dict.fromkeys(found.tolist()))

    def _served(self, turn: list[tuple[Batch, dict[str, Any]]]) -> Batch:
        """This rank's batch of a turn; what it says of the state is the same for all ranks."""
        batch, about = turn[min(self.rank, len(turn) - 1)]
        last = turn[-1][1]
        state, repeated = last["state"], self.rank >= len(turn)
        self._place = (state["epoch"], state["pool"], state["batch"])
        real, places = (0, 0) if repeated else count_tokens(batch, self.tensors)
        told = {
            "tokens": real,
            "padding": places - real,
            "targets": 0 if repeated else _targets(batch),
            "predicted": 0 if repeated else _predicted(batch),
            "repeated": repeated,
        }
        return {**batch, "about": {**about, **told, "state": state, "epochs": last["epochs"]}}

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
                after = (epoch, number + 1, 0) if last else (epoch, number, index + 1)
                if last and number + 1 == self.pools.count:
                    after = (epoch + 1, 0, 0)
                state = _state(after)
                yield (
                    batch,
                    {
                        "epochs": epoch + share,
                        "examples": examples,
                        "place": _state((epoch, number, index)),
                        "state": state,
                    },
                )
                examples += len(cut)
            skipped = 0

    def _share(self, pool: int, of_it: float) -> float:
        count = self.pools.count
        return 0.0 if count is None else (pool + of_it) / count

    def _random(self, *place: int) -> np.random.Generator | None:
        return None if self.seed is None else np.random.default_rng([self.seed, *place])


def _state(place: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("epoch", "pool", "batch"), place, strict=True))


def token_tensors(batch: Batch, declared: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tensors of a batch that hold tokens, each with the name of its mask.

    Args:
        batch: maybe of a task that says nothing of it: then those with usual names are taken, else
            the first tensor of two dimensions or more.
        declared: `Task.token_tensors`.
    """
    names = {name: mask for name, mask in (declared or _USUAL).items() if name in batch}
    if names or declared:
        return names
    wide = (name for name, value in batch.items() if getattr(value, "ndim", 0) >= 2)
    return dict.fromkeys(islice(wide, 1), "")


def count_tokens(batch: Batch, declared: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Real tokens of a batch, and positions in all, padding included; see `token_tensors`."""
    real = places = 0
    for name, mask in token_tensors(batch, declared).items():
        shape = batch[name].shape[:2]
        places += shape.numel()
        if mask == "labels":
            real += int((batch[mask] != IGNORED).sum())
        else:
            real += int((batch[mask] != 0).sum()) if mask in batch else shape.numel()
    return real, places


def _targets(batch: Batch) -> int:
    """Tokens of a batch that a decoder reads."""
    return int((batch["labels"] != IGNORED).sum()) if {"target", "labels"} <= batch.keys() else 0


def _predicted(batch: Batch) -> int | None:
    """Positions that the labels of a batch are predicted at: one a row, or those not ignored."""
    labels = batch.get("labels")
    if labels is None:
        return None
    return len(labels) if labels.dim() == 1 else int((labels != IGNORED).sum())
