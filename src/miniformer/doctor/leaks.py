"""The leak detector: whatever an output must not depend on is changed, and the output watched.

For any model called as `Transformer` or `Seq2SeqTransformer` are, such as one with a part of your
own. Nothing is assumed of how it works.

| kind    | changed                              | must not move                             |
|---------|--------------------------------------|-------------------------------------------|
| future  | every token from t + 1 on            | outputs up to t (causal models, targets)  |
| padding | tokens that the attention mask hides | outputs of real tokens                    |
| batch   | another row                          | the outputs of this one                   |
| packing | another segment of the row           | outputs of this segment (`segment_ids`)   |

Letters: B batch, T length, S source length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.model.seq2seq import Seq2SeqTransformer

_ROWS, _LENGTH, _SOURCE = 2, 8, 6


class Leak(NamedTuple):
    """One output that depends on what it must not see."""

    kind: str  # future, padding, batch or packing
    changed: str  # what was changed
    moved: list[int]  # positions of the outputs that moved
    by: float  # the farthest, as a share of the outputs' size

    def __str__(self) -> str:
        moved = ", ".join(map(str, self.moved))
        return f"{self.kind}: changing {self.changed} moves outputs {moved} by up to {self.by:.1%}"


def find_leaks(model: Any, *, tolerance: float = 1e-4, seed: int = 0) -> list[Leak]:
    """Every leak that random inputs show; none: an empty list.

    Args:
        model: called as `Transformer` or `Seq2SeqTransformer`, with a `config`; of at least 8
            positions.
        tolerance: how far an output may move by rounding, as a share of the outputs' size.
        seed: of the inputs.
    """
    with _still(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = _Probe(model, tolerance)
        if isinstance(model, Seq2SeqTransformer):
            return [*probe.seq2seq()]
        return [*probe.transformer()]


def assert_no_leaks(model: Any, *, tolerance: float = 1e-4, seed: int = 0) -> None:
    """Raises AssertionError, with every leak in its message, where `find_leaks` finds one."""
    leaks = find_leaks(model, tolerance=tolerance, seed=seed)
    if leaks:
        raise AssertionError("\n".join(["the model leaks:", *map(str, leaks)]))


class _Probe:
    def __init__(self, model: Any, tolerance: float) -> None:
        self.model, self.tolerance, self.config = model, tolerance, model.config
        self.device = next(model.parameters()).device

    def transformer(self) -> Iterator[Leak]:
        inputs, other = self._draw(_LENGTH), self._draw(_LENGTH)
        if self.config.causal:
            yield from self._future(self.model, inputs, other)
        yield from self._batch(self.model, inputs, other)
        for side, hidden in (("left", slice(0, 3)), ("right", slice(5, _LENGTH))):
            mask = self._mask(_LENGTH, hidden)
            call = self._with_mask(mask)
            yield from self._padding(call, inputs, other, mask, f"padding on the {side}")
        segments = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 2]] * _ROWS, device=self.device)
        for number, segment in enumerate((segments == 1, segments == 2), 1):
            yield from self._compare(
                "packing",
                f"segment {number}",
                lambda x: self.model(x, segment_ids=segments),
                inputs,
                _swap(inputs, other, segment),
                ~segment,
            )

    def seq2seq(self) -> Iterator[Leak]:
        source, other_source = self._draw(_SOURCE), self._draw(_SOURCE)
        target, other = self._draw(_LENGTH), self._draw(_LENGTH)
        yield from self._future(lambda x: self.model(source, x), target, other)
        yield from self._batch(lambda x: self.model(source, x), target, other)
        mask = self._mask(_LENGTH, slice(5, _LENGTH))
        yield from self._padding(
            lambda x: self.model(source, x, target_mask=mask), target, other, mask, "target padding"
        )
        hidden = self._mask(_SOURCE, slice(4, _SOURCE))
        yield from self._compare(
            "padding",
            "source padding",
            lambda x: self.model(x, target, hidden),
            source,
            _swap(source, other_source, ~hidden),
            torch.ones(_ROWS, _LENGTH, dtype=torch.bool, device=self.device),
        )

    def _future(self, call: Callable[[Tensor], Tensor], x: Tensor, other: Tensor) -> Iterator[Leak]:
        columns = torch.arange(_LENGTH, device=self.device).expand(_ROWS, -1)
        for t in range(_LENGTH - 1):
            later = columns > t
            changed = f"tokens {t + 1} to {_LENGTH - 1}"
            yield from self._compare("future", changed, call, x, _swap(x, other, later), ~later)

    def _batch(self, call: Callable[[Tensor], Tensor], x: Tensor, other: Tensor) -> Iterator[Leak]:
        row = torch.zeros(_ROWS, _LENGTH, dtype=torch.bool, device=self.device)
        row[1] = True
        yield from self._compare("batch", "row 1", call, x, _swap(x, other, row), ~row)

    def _padding(
        self,
        call: Callable[[Tensor], Tensor],
        x: Tensor,
        other: Tensor,
        mask: Tensor,
        changed: str,
    ) -> Iterator[Leak]:
        yield from self._compare("padding", changed, call, x, _swap(x, other, ~mask), mask)

    def _compare(
        self,
        kind: str,
        changed: str,
        call: Callable[[Tensor], Tensor],
        before: Tensor,
        after: Tensor,
        watched: Tensor,
    ) -> Iterator[Leak]:
        """A leak, if what is watched (bool [B, T]) differs between two calls."""
        outputs, moved = call(before).float(), call(after).float()
        far = (outputs - moved).abs().amax(-1) / outputs.abs().max().clamp_min(1e-12)  # [B, T]
        wrong = watched & ~(far <= self.tolerance)  # NaN is wrong, too
        if wrong.any():
            positions = wrong.any(0).nonzero()[:, 0].tolist()
            yield Leak(kind, changed, positions, float(far[wrong].max()))

    def _with_mask(self, mask: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: self.model(x, mask)

    def _mask(self, length: int, hidden: slice) -> Tensor:
        mask = torch.ones(_ROWS, length, dtype=torch.bool, device=self.device)
        mask[:, hidden] = False
        return mask

    def _draw(self, length: int) -> Tensor:
        shape = (_ROWS, length)
        if self.config.input_dim is not None:
            return torch.randn(*shape, self.config.input_dim, device=self.device)
        return torch.randint(0, self.config.vocab_size, shape, device=self.device)


def _swap(x: Tensor, other: Tensor, where: Tensor) -> Tensor:
    """x with the positions of `other` where bool [B, T] says so."""
    return torch.where(where if x.dim() == 2 else where[..., None], other, x)


@contextlib.contextmanager
def _still(model: Any) -> Iterator[None]:
    """The model in eval mode, without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
