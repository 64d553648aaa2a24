"""The leak detector: whatever an output must not depend on is changed, and the output watched.

For any model called as `Transformer` or `Seq2SeqTransformer` are, such as one with a part of your
own. Nothing is assumed of how it works.

| kind    | changed                              | must not move                             |
|---------|--------------------------------------|-------------------------------------------|
| future  | every token from t + 1 on            | outputs up to t (causal models, targets)  |
| padding | tokens that the attention mask hides | outputs of real tokens                    |
| batch   | another row, of sources too          | the outputs of this one                   |
| packing | another segment of the row           | outputs of this segment (`segment_ids`)   |

Each is tried without a mask, with padding on either side and with segments, other ones in each row;
what is found in one of these layouts is not looked for in the next. Letters: R rows, T length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.config import UserError
from miniformer.generation.modes import evaluating
from miniformer.model.seq2seq import Seq2SeqTransformer

_LENGTH, _SOURCE = 8, 6
_HIDDEN = (1, 0, 3)  # tokens of each row that are padding


class Leak(NamedTuple):
    """One output that depends on what it must not see."""

    kind: str  # future, padding, batch or packing
    changed: str  # what was changed
    moved: list[int]  # positions of the outputs that moved
    by: float  # the farthest, as a share of the outputs' size

    def __str__(self) -> str:
        moved = ", ".join(map(str, self.moved))
        return f"{self.kind}: changing {self.changed} moves outputs {moved} by up to {self.by:.1%}"


class Layout(NamedTuple):
    """Which tokens of a batch are real, and which of them see each other."""

    name: str
    segments: Tensor  # int [R, T]; 0: padding
    options: dict[str, Tensor]  # what tells the model so

    def words(self, changed: str) -> str:
        """What was changed, and in which layout."""
        return f"{changed} {self.name}".strip()


class Change(NamedTuple):
    """Something that an output must not depend on."""

    kind: str
    changed: str
    where: Tensor  # bool, like the input's tokens: what to change
    watched: Tensor  # bool [R, outputs]: what must not move


def find_leaks(model: Any, *, tolerance: float = 1e-4, seed: int = 0) -> list[Leak]:
    """Every leak that random inputs show; none: an empty list.

    Args:
        model: called as `Transformer` or `Seq2SeqTransformer`, with a `config`.
        tolerance: how far an output may move by rounding, as a share of its size; at least a few
            roundings of the model's own type.
        seed: of the inputs.

    Raises:
        UserError: the model knows one token only, so that nothing can be changed.
    """
    config = model.config
    if config.input_dim is None and config.vocab_size < 2:
        raise UserError("vocab_size=1: with one token nothing can be changed; it must be 2 or more")
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = _Probe(model, tolerance)
        whole = getattr(model, "_orig_mod", model)  # torch.compile wraps a model
        return probe.seq2seq() if isinstance(whole, Seq2SeqTransformer) else probe.transformer()


def assert_no_leaks(model: Any, *, tolerance: float = 1e-4, seed: int = 0) -> None:
    """Raises AssertionError, with every leak in its message, where `find_leaks` finds one."""
    leaks = find_leaks(model, tolerance=tolerance, seed=seed)
    if leaks:
        raise AssertionError("\n".join(["the model leaks:", *map(str, leaks)]))


class _Probe:
    def __init__(self, model: Any, tolerance: float) -> None:
        self.model, self.config = model, model.config
        parameter = next(p for p in model.parameters() if p.is_floating_point())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.tolerance = max(tolerance, 4 * torch.finfo(self.dtype).eps)

    def transformer(self) -> list[Leak]:
        length = min(_LENGTH, self.config.max_seq_len)
        inputs = self._draw(length)
        found: list[Leak] = []
        for layout in [*self._paddings(length, "attention_mask"), self._packed(length)]:

            def call(x: Tensor, options: dict[str, Tensor] = layout.options) -> Tensor:
                out: Tensor = self.model(x, **options)
                return out

            changes = [*_rows(layout), *_hidden(layout), *_segments(layout)]
            if self.config.causal:
                changes += _futures(layout)
            found += self._look(call, inputs, changes, found)
            if "segment_ids" not in layout.options and hasattr(self.model, "embed"):

                def embed(x: Tensor, options: dict[str, Tensor] = layout.options) -> Tensor:
                    out: Tensor = self.model.embed(x, **options)
                    return out[:, None]  # one output for each row, [R, 1, D]

                changes = [_in_embed(change) for change in (*_rows(layout), *_hidden(layout))]
                found += self._look(embed, inputs, changes, found)
        return found

    def seq2seq(self) -> list[Leak]:
        sources = min(_SOURCE, self.config.max_seq_len)
        targets = min(_LENGTH, self.config.max_seq_len)
        source, target = self._draw(sources), self._draw(targets)
        free = self._paddings(targets, "target_mask")[0]
        found: list[Leak] = []
        for layout in self._paddings(targets, "target_mask"):

            def write(x: Tensor, options: dict[str, Tensor] = layout.options) -> Tensor:
                out: Tensor = self.model(source, x, **options)
                return out

            changes = [*_futures(layout), *_hidden(layout), *_rows(layout)]
            found += self._look(write, target, changes, found)
        for layout in self._paddings(sources, "source_mask"):

            def read(x: Tensor, options: dict[str, Tensor] = layout.options) -> Tensor:
                out: Tensor = self.model(x, target, **options)
                return out

            changes = [
                change._replace(
                    changed=f"the source's {change.changed}",
                    # A row's own source may move all of its outputs, another's none.
                    watched=~change.where.any(1, keepdim=True).expand_as(free.segments)
                    if change.kind == "batch"
                    else free.segments > 0,
                )
                for change in (*_hidden(layout), *_rows(layout))
            ]
            found += self._look(read, source, changes, found)
        return found

    def _look(
        self,
        call: Callable[[Tensor], Tensor],
        inputs: Tensor,
        changes: list[Change],
        found: list[Leak],
    ) -> list[Leak]:
        """The leaks that some changes show, of kinds that were not found yet."""
        known = {leak.kind for leak in found}
        before, leaks = call(inputs).float(), []
        other = self._other(inputs)
        for change in changes:
            if change.kind in known or not change.where.any() or not change.watched.any():
                continue
            where = change.where if inputs.dim() == 2 else change.where[..., None]
            far = _distance(before, call(torch.where(where, other, inputs)).float())
            wrong = change.watched & ~(far <= self.tolerance)  # NaN is wrong, too
            if wrong.any():
                positions = wrong.any(0).nonzero()[:, 0].tolist()
                by = float(far[wrong].max())
                leaks.append(Leak(change.kind, change.changed, positions, by))
        return leaks

    def _paddings(self, length: int, name: str) -> list[Layout]:
        """No padding, and padding on either side."""
        hidden = torch.tensor(_HIDDEN, device=self.device).clamp_max(length - 1)[:, None]
        columns = torch.arange(length, device=self.device)[None]
        left, right = columns >= hidden, columns < length - hidden
        return [
            Layout("", torch.ones_like(left).long(), {}),
            Layout("with padding on the left", left.long(), {name: left}),
            Layout("with padding on the right", right.long(), {name: right}),
        ]

    def _packed(self, length: int) -> Layout:
        """Two segments in a row, which meet elsewhere in each, and some padding."""
        columns = torch.arange(length, device=self.device)[None]
        borders = torch.tensor([3, 5, 2], device=self.device).clamp_max(length - 1)[:, None]
        segments = 1 + (columns >= borders).long()
        segments[2, length - min(2, length - 1) :] = 0
        return Layout("with segments", segments, {"segment_ids": segments})

    def _draw(self, length: int) -> Tensor:
        shape = (len(_HIDDEN), length)
        if self.config.input_dim is not None:
            width = self.config.input_dim
            return torch.randn(*shape, width, device=self.device).to(self.dtype)
        return torch.randint(0, self.config.vocab_size, shape, device=self.device)

    def _other(self, inputs: Tensor) -> Tensor:
        """Inputs that differ everywhere."""
        if self.config.input_dim is not None:
            return torch.randn_like(inputs)
        size = self.config.vocab_size
        return (inputs + torch.randint_like(inputs, 1, size)) % size


def _futures(layout: Layout) -> Iterator[Change]:
    length = layout.segments.shape[1]
    columns = torch.arange(length, device=layout.segments.device).expand_as(layout.segments)
    for t in range(length - 1):
        changed = f"tokens {t + 1} to {length - 1}"
        watched = (columns <= t) & (layout.segments > 0)
        yield Change("future", layout.words(changed), columns > t, watched)


def _hidden(layout: Layout) -> Iterator[Change]:
    yield Change(
        "padding", layout.words("padded tokens"), layout.segments == 0, layout.segments > 0
    )


def _rows(layout: Layout) -> Iterator[Change]:
    for row in range(len(layout.segments)):
        where = torch.zeros_like(layout.segments, dtype=torch.bool)
        where[row] = True
        watched = ~where & (layout.segments > 0)
        yield Change("batch", layout.words(f"row {row}"), where, watched)


def _segments(layout: Layout) -> Iterator[Change]:
    if "segment_ids" in layout.options:
        for number in (1, 2):
            where = layout.segments == number
            watched = (layout.segments > 0) & ~where
            yield Change("packing", f"segment {number}", where, watched)


def _in_embed(change: Change) -> Change:
    """A change that no row's vector may see, but that of a row which it changes for good."""
    own = change.where.any(1, keepdim=True) if change.kind == "batch" else change.where[:, :0]
    watched = ~own if change.kind == "batch" else change.watched.any(1, keepdim=True)
    return change._replace(changed=f"{change.changed} (in embed)", watched=watched)


def _distance(before: Tensor, after: Tensor) -> Tensor:
    """How far each position moved, [R, T], as a share of the size of the output that moved most.

    Each output column is held against its own size: one that is huge would hide all others.
    """
    size = before.abs().nan_to_num(0.0, 0.0, 0.0).flatten(0, 1).amax(0)  # [V]
    size = torch.maximum(size, 1e-3 * size.median()).clamp_min(1e-12)
    moved = torch.where(before == after, 0.0, (before - after).abs())  # equal infinities, too
    farthest: Tensor = (moved / size).amax(-1)
    return farthest
