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
from miniformer.doctor.layouts import NUM_ROWS, Layout, packed_layout, padded_layouts
from miniformer.generation.modes import eval_mode
from miniformer.model.seq2seq import Seq2SeqTransformer

_MAX_LENGTH, _MAX_SOURCE_LENGTH = 8, 6


class Leak(NamedTuple):
    """One output that depends on what it must not see."""

    kind: str  # future, padding, batch or packing
    perturbation: str  # what was changed
    positions: list[int]  # positions of the outputs that moved; of `embed`, rows
    max_change: float  # the farthest, as a share of the outputs' size
    output_name: str = "outputs"  # or "vectors", those of `embed`

    def __str__(self) -> str:
        moved = ", ".join(map(str, self.positions))
        what = f"changing {self.perturbation} moves {self.output_name} {moved}"
        return f"{self.kind}: {what} by up to {self.max_change:.1%}"


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
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = _Probe(model, tolerance)
        # What torch.compile returns is of another class.
        seq2seq = isinstance(getattr(model, "_orig_mod", model), Seq2SeqTransformer)
        return _deduplicate(probe.seq2seq_leaks() if seq2seq else probe.transformer_leaks())


def assert_no_leaks(model: Any, *, tolerance: float = 1e-4, seed: int = 0) -> None:
    """Raises AssertionError, with every leak in its message, where `find_leaks` finds one."""
    leaks = find_leaks(model, tolerance=tolerance, seed=seed)
    if leaks:
        raise AssertionError("\n".join(["the model leaks:", *map(str, leaks)]))


class _Perturbation(NamedTuple):
    kind: str
    description: str
    input_mask: Tensor  # bool [B, T or S]: tokens that are exchanged for others
    output_mask: Tensor  # bool [B, T]: outputs that must stay


class _Probe:
    def __init__(self, model: Any, tolerance: float) -> None:
        self.model, self.tolerance, self.config = model, tolerance, model.config
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.length = min(_MAX_LENGTH, self.config.max_seq_len)

    def transformer_leaks(self) -> Iterator[Leak]:
        x, other = self._random_inputs(self.length)
        padded = padded_layouts(self.length, self.device)
        for layout in (*padded, packed_layout(self.length, self.device)):
            call = self._bind_layout(self.model, layout)
            yield from self._find_leaks(
                call, x, other, layout, self._perturbations(layout, self.config.causal)
            )
        for layout in padded if hasattr(self.model, "embed") else []:
            call = self._bind_layout(self.model.embed, layout)
            yield from self._find_leaks(
                call, x, other, layout, self._perturbations(layout, False), True
            )

    def seq2seq_leaks(self) -> Iterator[Leak]:
        length = min(_MAX_SOURCE_LENGTH, self.config.max_seq_len)
        (target, other) = self._random_inputs(self.length)
        (source, other_source) = self._random_inputs(length, self.config.source_vocab_size)
        layouts = padded_layouts(self.length, self.device)
        for of_source, layout in zip(padded_layouts(length, self.device), layouts, strict=True):
            read = of_source.attention_mask
            changes = self._source_perturbations(of_source, layout.token_mask)
            call = self._forward_of_source(target, read, layout.attention_mask)
            yield from self._find_leaks(call, source, other_source, layout, changes)
            for mask in [None] if read is None else [None, read]:
                call = self._forward_of_target(source, mask, layout.attention_mask)
                yield from self._find_leaks(
                    call, target, other, layout, self._perturbations(layout, True)
                )

    def _perturbations(self, layout: Layout, causal: bool) -> Iterator[_Perturbation]:
        """What must not move the outputs of a layout's real tokens."""
        real, last = layout.token_mask, layout.token_mask.shape[1] - 1
        columns = torch.arange(last + 1, device=self.device).expand_as(real)
        for t in range(last if causal else 0):
            later = columns > t
            yield _Perturbation("future", f"tokens {t + 1} to {last}", later, real & ~later)
        for row in self._row_masks(real):
            yield _Perturbation("batch", f"row {int(row.any(1).nonzero())}", row, real & ~row)
        yield _Perturbation("padding", "padding", ~real, real)
        if layout.segment_ids is not None:
            for number in (1, 2):
                segment = layout.segment_ids == number
                yield _Perturbation("packing", f"segment {number}", segment, real & ~segment)

    def _source_perturbations(self, layout: Layout, output_mask: Tensor) -> Iterator[_Perturbation]:
        """The same of a source's tokens; every target may see all real ones of its own source."""
        for index, row in enumerate(self._row_masks(layout.token_mask)):
            others = torch.arange(NUM_ROWS, device=self.device)[:, None] != index
            yield _Perturbation("batch", f"the source of row {index}", row, output_mask & others)
        yield _Perturbation("padding", "source padding", ~layout.token_mask, output_mask)

    def _row_masks(self, token_mask: Tensor) -> Iterator[Tensor]:
        """bool [B, T] for each row: all of it."""
        for row in torch.eye(NUM_ROWS, dtype=torch.bool, device=self.device):
            yield row[:, None].expand_as(token_mask)

    def _find_leaks(
        self,
        call: Callable[[Tensor], Tensor],
        x: Tensor,
        replacement: Tensor,
        layout: Layout,
        perturbations: Iterator[_Perturbation],
        pooled: bool = False,
    ) -> Iterator[Leak]:
        """A leak for each change that moves what it must not."""
        outputs = call(x).float()  # [B, T, V], of `embed` [B, D]
        for kind, changed, where, watched in perturbations:
            far = _max_relative_change(
                outputs, call(_replace_where(x, replacement, where)).float()
            )  # [B, T], or [B]
            if pooled:  # a vector reads its whole row
                watched = watched.any(1)
            wrong = watched & ~(far <= self.tolerance)  # NaN is wrong, too
            if where.any() and wrong.any():
                moved = (wrong if pooled else wrong.any(0)).nonzero()[:, 0].tolist()
                name = f"{changed} ({layout.name})" if layout.name else changed
                yield Leak(kind, name, moved, float(far[wrong].max()), _OUTPUT_NAMES[pooled])

    def _bind_layout(
        self, forward: Callable[..., Tensor], layout: Layout
    ) -> Callable[[Tensor], Tensor]:
        if layout.segment_ids is not None:
            return lambda x: forward(x, segment_ids=layout.segment_ids)
        return (
            forward
            if layout.attention_mask is None
            else lambda x: forward(x, layout.attention_mask)
        )

    def _forward_of_source(
        self, target: Tensor, *masks: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        return lambda x: self.model(x, target, *masks)

    def _forward_of_target(
        self, source: Tensor, *masks: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        return lambda x: self.model(source, x, *masks)

    def _random_inputs(self, length: int, vocab_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs, and others that differ everywhere."""
        shape, width = (NUM_ROWS, length), self.config.input_dim
        if width is not None:
            x, other = torch.randn(2, *shape, width, device=self.device).to(self.dtype)
            return x, other
        vocab_size = vocab_size or self.config.vocab_size
        x = torch.randint(0, vocab_size, shape, device=self.device)
        return x, (x + torch.randint(1, vocab_size, shape, device=self.device)) % vocab_size


_OUTPUT_NAMES = {False: "outputs", True: "vectors"}


def _max_relative_change(reference: Tensor, outputs: Tensor) -> Tensor:
    """The farthest of V outputs, each as a share of its own size: [B, ..., V] -> [B, ...].

    A large output must not hide a small one; nor must one that is nearly nothing everywhere show
    rounding as if it were a leak.
    """
    known = reference.abs().masked_fill(~reference.isfinite(), 0.0).flatten(0, -2)
    size = known.amax(0)  # [V]
    size = size.maximum(1e-3 * size.median()).clamp_min(1e-12)
    apart = (
        (reference - outputs).abs().masked_fill(reference == outputs, 0.0)
    )  # -inf twice is no distance
    far: Tensor = (apart / size).amax(-1)
    return far


def _deduplicate(leaks: Iterator[Leak]) -> list[Leak]:
    """Without what a layout only repeats of the ones before it."""
    told: dict[tuple[str, ...], set[int]] = {}
    found = []
    for leak in leaks:
        known = told.setdefault(
            (leak.kind, leak.perturbation.split(" (")[0], leak.output_name), set()
        )
        if not known.issuperset(leak.positions):
            found.append(leak)
            known.update(leak.positions)
    return found


def _replace_where(x: Tensor, replacement: Tensor, mask: Tensor) -> Tensor:
    """x with the positions of `other` where bool [B, T] says so."""
    return torch.where(mask if x.dim() == 2 else mask[..., None], replacement, x)
