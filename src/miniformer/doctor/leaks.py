"""The leak detector: whatever an output must not depend on is changed, and the output watched.

For any model called as `Transformer` or `Seq2SeqTransformer` are, such as one with a part of your
own. Nothing is assumed of how it works.

| kind    | changed                              | must not move                             |
|---------|--------------------------------------|-------------------------------------------|
| future  | every token from t + 1 on            | outputs up to t (causal models, targets)  |
| padding | tokens that the attention mask hides | outputs of real tokens                    |
| batch   | another row, or its source           | the outputs of this one                   |
| packing | another segment of the row           | outputs of this segment (`segment_ids`)   |

All of it is done without padding, with padding at either end, and with packed rows (see
`layouts`): a mask may well be right until it has another to be combined with.

Letters: B batch, T length, S source length, V outputs of a position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.config import UserError
from miniformer.doctor.layouts import ROWS, Layout, packed_layout, padded_layouts
from miniformer.generation.modes import evaluating
from miniformer.model.seq2seq import Seq2SeqTransformer

_LENGTH, _SOURCE = 8, 6


class Leak(NamedTuple):
    """One output that depends on what it must not see."""

    kind: str  # future, padding, batch or packing
    changed: str  # what was changed
    moved: list[int]  # positions of the outputs that moved; of `embed`, rows
    by: float  # the farthest, as a share of the outputs' size
    outputs: str = "outputs"  # or "vectors", those of `embed`

    def __str__(self) -> str:
        moved = ", ".join(map(str, self.moved))
        what = f"changing {self.changed} moves {self.outputs} {moved}"
        return f"{self.kind}: {what} by up to {self.by:.1%}"


def find_leaks(model: Any, *, tolerance: float = 1e-4, seed: int = 0) -> list[Leak]:
    """Every leak that random inputs show; none: an empty list.

    Args:
        model: called as `Transformer` or `Seq2SeqTransformer`, with a `config`; compiled or not.
            Where it has `embed`, that is watched, too.
        tolerance: how far an output may move by rounding, as a share of the size that the same
            output has elsewhere.
        seed: of the inputs.

    Raises:
        UserError: the model has one token only, so that nothing can be changed.
    """
    if model.config.input_dim is None:
        for name in ("vocab_size", "source_vocab_size"):
            if getattr(model.config, name) == 1:
                raise UserError(
                    f"a model with {name}=1 cannot be examined: leaks are found by changing "
                    "tokens, and there is no other token"
                )
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = _Probe(model, tolerance)
        # What torch.compile returns is of another class.
        seq2seq = isinstance(getattr(model, "_orig_mod", model), Seq2SeqTransformer)
        return _news(probe.seq2seq() if seq2seq else probe.transformer())


def assert_no_leaks(model: Any, *, tolerance: float = 1e-4, seed: int = 0) -> None:
    """Raises AssertionError, with every leak in its message, where `find_leaks` finds one."""
    leaks = find_leaks(model, tolerance=tolerance, seed=seed)
    if leaks:
        raise AssertionError("\n".join(["the model leaks:", *map(str, leaks)]))


class _Change(NamedTuple):
    kind: str
    changed: str
    where: Tensor  # bool [B, T or S]: tokens that are exchanged for others
    watched: Tensor  # bool [B, T]: outputs that must stay


class _Probe:
    def __init__(self, model: Any, tolerance: float) -> None:
        self.model, self.tolerance, self.config = model, tolerance, model.config
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.length = min(_LENGTH, self.config.max_seq_len)

    def transformer(self) -> Iterator[Leak]:
        x, other = self._draw(self.length)
        padded = padded_layouts(self.length, self.device)
        for layout in (*padded, packed_layout(self.length, self.device)):
            call = self._caller(self.model, layout)
            yield from self._compare(
                call, x, other, layout, self._changes(layout, self.config.causal)
            )
        for layout in padded if hasattr(self.model, "embed") else []:
            call = self._caller(self.model.embed, layout)
            yield from self._compare(call, x, other, layout, self._changes(layout, False), True)

    def seq2seq(self) -> Iterator[Leak]:
        length = min(_SOURCE, self.config.max_seq_len)
        (target, other) = self._draw(self.length)
        (source, other_source) = self._draw(length, self.config.source_vocab_size)
        layouts = padded_layouts(self.length, self.device)
        for of_source, layout in zip(padded_layouts(length, self.device), layouts, strict=True):
            read = of_source.mask
            changes = self._source_changes(of_source, layout.real)
            call = self._to_source(target, read, layout.mask)
            yield from self._compare(call, source, other_source, layout, changes)
            for mask in [None] if read is None else [None, read]:
                call = self._to_target(source, mask, layout.mask)
                yield from self._compare(call, target, other, layout, self._changes(layout, True))

    def _changes(self, layout: Layout, causal: bool) -> Iterator[_Change]:
        """What must not move the outputs of a layout's real tokens."""
        real, last = layout.real, layout.real.shape[1] - 1
        columns = torch.arange(last + 1, device=self.device).expand_as(real)
        for t in range(last if causal else 0):
            later = columns > t
            yield _Change("future", f"tokens {t + 1} to {last}", later, real & ~later)
        for row in self._rows(real):
            yield _Change("batch", f"row {int(row.any(1).nonzero())}", row, real & ~row)
        yield _Change("padding", "padding", ~real, real)
        if layout.segments is not None:
            for number in (1, 2):
                segment = layout.segments == number
                yield _Change("packing", f"segment {number}", segment, real & ~segment)

    def _source_changes(self, layout: Layout, watched: Tensor) -> Iterator[_Change]:
        """The same of a source's tokens; every target may see all real ones of its own source."""
        for index, row in enumerate(self._rows(layout.real)):
            others = torch.arange(ROWS, device=self.device)[:, None] != index
            yield _Change("batch", f"the source of row {index}", row, watched & others)
        yield _Change("padding", "source padding", ~layout.real, watched)

    def _rows(self, real: Tensor) -> Iterator[Tensor]:
        """bool [B, T] for each row: all of it."""
        for row in torch.eye(ROWS, dtype=torch.bool, device=self.device):
            yield row[:, None].expand_as(real)

    def _compare(
        self,
        call: Callable[[Tensor], Tensor],
        x: Tensor,
        other: Tensor,
        layout: Layout,
        changes: Iterator[_Change],
        pooled: bool = False,
    ) -> Iterator[Leak]:
        """A leak for each change that moves what it must not."""
        outputs = call(x).float()  # [B, T, V], of `embed` [B, D]
        for kind, changed, where, watched in changes:
            far = _distance(outputs, call(_swap(x, other, where)).float())  # [B, T], or [B]
            if pooled:  # a vector reads its whole row
                watched = watched.any(1)
            wrong = watched & ~(far <= self.tolerance)  # NaN is wrong, too
            if where.any() and wrong.any():
                moved = (wrong if pooled else wrong.any(0)).nonzero()[:, 0].tolist()
                name = f"{changed} ({layout.name})" if layout.name else changed
                yield Leak(kind, name, moved, float(far[wrong].max()), _NAMES[pooled])

    def _caller(self, call: Callable[..., Tensor], layout: Layout) -> Callable[[Tensor], Tensor]:
        if layout.segments is not None:
            return lambda x: call(x, segment_ids=layout.segments)
        return call if layout.mask is None else lambda x: call(x, layout.mask)

    def _to_source(self, target: Tensor, *masks: Tensor | None) -> Callable[[Tensor], Tensor]:
        return lambda x: self.model(x, target, *masks)

    def _to_target(self, source: Tensor, *masks: Tensor | None) -> Callable[[Tensor], Tensor]:
        return lambda x: self.model(source, x, *masks)

    def _draw(self, length: int, vocabulary: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs, and others that differ everywhere."""
        shape, width = (ROWS, length), self.config.input_dim
        if width is not None:
            x, other = torch.randn(2, *shape, width, device=self.device).to(self.dtype)
            return x, other
        vocabulary = vocabulary or self.config.vocab_size
        x = torch.randint(0, vocabulary, shape, device=self.device)
        return x, (x + torch.randint(1, vocabulary, shape, device=self.device)) % vocabulary


_NAMES = {False: "outputs", True: "vectors"}


def _distance(one: Tensor, two: Tensor) -> Tensor:
    """The farthest of V outputs, each as a share of its own size: [B, ..., V] -> [B, ...].

    A large output must not hide a small one; nor must one that is nearly nothing everywhere show
    rounding as if it were a leak.
    """
    known = one.abs().masked_fill(~one.isfinite(), 0.0).flatten(0, -2)
    size = known.amax(0)  # [V]
    size = size.maximum(1e-3 * size.median()).clamp_min(1e-12)
    apart = (one - two).abs().masked_fill(one == two, 0.0)  # -inf twice is no distance
    far: Tensor = (apart / size).amax(-1)
    return far


def _news(leaks: Iterator[Leak]) -> list[Leak]:
    """Without what a layout only repeats of the ones before it."""
    told: dict[tuple[str, ...], set[int]] = {}
    found = []
    for leak in leaks:
        known = told.setdefault((leak.kind, leak.changed.split(" (")[0], leak.outputs), set())
        if not known.issuperset(leak.moved):
            found.append(leak)
            known.update(leak.moved)
    return found


def _swap(x: Tensor, other: Tensor, where: Tensor) -> Tensor:
    """x with the positions of `other` where bool [B, T] says so."""
    return torch.where(where if x.dim() == 2 else where[..., None], other, x)
