"""Leak detector: perturbs inputs that an output must not depend on and compares the outputs.

It supports any model with the interface of `Transformer` or `Seq2SeqTransformer`, such as one with
custom components, and makes no assumptions about its implementation.

| kind    | perturbed inputs                     | outputs that must not change                |
|---------|--------------------------------------|---------------------------------------------|
| future  | every token from t + 1 on            | outputs up to t (causal models, targets)    |
| padding | tokens that the attention mask hides | outputs of real tokens                      |
| batch   | another row, or its source           | outputs of this row                         |
| packing | another segment of the row           | outputs of this segment (`segment_ids`)     |

Each check runs without padding, with padding on either side, and with packed rows (see `layouts`):
a mask may be wrong only in combination with another mask.

Letters: B batch, T length, S source length, V outputs of a position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniformer.config import UserError
from miniformer.doctor.inputs import ModelInputs
from miniformer.doctor.layouts import NUM_ROWS, Layout, packed_layout, padded_layouts
from miniformer.generation.inference import eval_mode


class Leak(NamedTuple):
    """Output that depends on an input that it must not depend on."""

    kind: str  # future, padding, batch or packing
    perturbation: str  # the perturbed inputs
    positions: list[int]  # positions of the changed outputs; rows for `embed`
    max_change: float  # maximum change relative to the size of the outputs
    output_name: str = "outputs"  # or "vectors" for `embed`

    def __str__(self) -> str:
        positions = ", ".join(map(str, self.positions))
        effect = f"changing {self.perturbation} changes {self.output_name} {positions}"
        return f"{self.kind}: {effect} by up to {self.max_change:.1%}"


def find_leaks(model: Any, *, tolerance: float = 1e-4, seed: int = 0) -> list[Leak]:
    """Finds the leaks that random inputs show; an empty list if there are none.

    Args:
        model: model with the interface of `Transformer` or `Seq2SeqTransformer` and a `config`;
            compiled or not. `embed` is also checked, if the model has it.
        tolerance: maximum change by rounding, relative to the size of the same output elsewhere.
        seed: seed of the inputs.

    Raises:
        UserError: the vocabulary has only one token, so inputs cannot be changed.
    """
    if model.config.input_type == "tokens":
        for name in ("vocab_size", "source_vocab_size"):
            if getattr(model.config, name) == 1:
                raise UserError(
                    f"a model with {name}=1 cannot be checked: the check replaces tokens, and "
                    "there is no other token"
                )
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = _Probe(model, tolerance)
        seq2seq = probe.inputs.seq2seq
        return _deduplicate(probe.seq2seq_leaks() if seq2seq else probe.transformer_leaks())


def assert_no_leaks(model: Any, *, tolerance: float = 1e-4, seed: int = 0) -> None:
    """Raises AssertionError with all leaks, if `find_leaks` finds any."""
    leaks = find_leaks(model, tolerance=tolerance, seed=seed)
    if leaks:
        raise AssertionError("\n".join(["the model leaks:", *map(str, leaks)]))


class _Perturbation(NamedTuple):
    kind: str
    description: str
    input_mask: Tensor  # bool [B, T or S]: tokens to replace
    output_mask: Tensor  # bool [B, T]: outputs that must not change


class _Probe:
    def __init__(self, model: Any, tolerance: float) -> None:
        self.model, self.tolerance, self.config = model, tolerance, model.config
        self.inputs = ModelInputs(model)
        self.device, self.length = self.inputs.device, self.inputs.length

    def transformer_leaks(self) -> Iterator[Leak]:
        x, replacement = self._random_inputs(self.length)
        padded = padded_layouts(self.length, self.device)
        for layout in (*padded, packed_layout(self.length, self.device)):
            call = self._bind_layout(self.model, layout)
            yield from self._find_leaks(
                call, x, replacement, layout, self._perturbations(layout, self.config.causal)
            )
        for layout in padded if hasattr(self.model, "embed") else []:
            call = self._bind_layout(self.model.embed, layout)
            yield from self._find_leaks(
                call, x, replacement, layout, self._perturbations(layout, False), True
            )

    def seq2seq_leaks(self) -> Iterator[Leak]:
        source_length = self.inputs.source_length
        target, new_target = self._random_ids(self.length, self.config.vocab_size)
        source, new_source = self._random_inputs(source_length)
        source_layouts = padded_layouts(source_length, self.device)
        layouts = padded_layouts(self.length, self.device)
        for source_layout, layout in zip(source_layouts, layouts, strict=True):
            source_mask = source_layout.attention_mask
            perturbations = self._source_perturbations(source_layout, layout.token_mask)
            call = self._forward_of_source(target, source_mask, layout.attention_mask)
            yield from self._find_leaks(call, source, new_source, layout, perturbations)
            for mask in [None] if source_mask is None else [None, source_mask]:
                call = self._forward_of_target(source, mask, layout.attention_mask)
                yield from self._find_leaks(
                    call, target, new_target, layout, self._perturbations(layout, True)
                )

    def _perturbations(self, layout: Layout, causal: bool) -> Iterator[_Perturbation]:
        """Yields perturbations that must not change the outputs of the real tokens."""
        real, last = layout.token_mask, layout.token_mask.shape[1] - 1
        columns = torch.arange(last + 1, device=self.device).expand_as(real)
        for t in range(last if causal else 0):
            later = columns > t
            yield _Perturbation("future", f"tokens {t + 1} to {last}", later, real & ~later)
        for row in self._row_masks(real):
            yield _Perturbation("batch", f"row {int(row.any(1).nonzero())}", row, real & ~row)
        yield _Perturbation("padding", "padding", ~real, real)
        if layout.segment_ids is not None:
            for segment_id in (1, 2):
                segment = layout.segment_ids == segment_id
                yield _Perturbation("packing", f"segment {segment_id}", segment, real & ~segment)

    def _source_perturbations(self, layout: Layout, output_mask: Tensor) -> Iterator[_Perturbation]:
        """Yields perturbations of source tokens; a target may attend to all of its own source."""
        for index, row in enumerate(self._row_masks(layout.token_mask)):
            other_rows = torch.arange(NUM_ROWS, device=self.device)[:, None] != index
            description = f"the source of row {index}"
            yield _Perturbation("batch", description, row, output_mask & other_rows)
        yield _Perturbation("padding", "source padding", ~layout.token_mask, output_mask)

    def _row_masks(self, token_mask: Tensor) -> Iterator[Tensor]:
        """Yields a mask of each row, bool [B, T]."""
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
        """Yields a leak for each perturbation that changes an output of its `output_mask`."""
        outputs = call(x).float()  # [B, T, V], or [B, D] for `embed`
        for kind, description, input_mask, output_mask in perturbations:
            new_outputs = call(_replace_where(x, replacement, input_mask)).float()
            change = _max_relative_change(outputs, new_outputs)  # [B, T], or [B]
            if pooled:  # a vector depends on its full row
                output_mask = output_mask.any(1)
            leaked = output_mask & ~(change <= self.tolerance)  # includes NaN
            if input_mask.any() and leaked.any():
                positions = (leaked if pooled else leaked.any(0)).nonzero()[:, 0].tolist()
                name = f"{description} ({layout.name})" if layout.name else description
                max_change = float(change[leaked].max())
                yield Leak(kind, name, positions, max_change, _OUTPUT_NAMES[pooled])

    def _bind_layout(
        self, forward: Callable[..., Tensor], layout: Layout
    ) -> Callable[[Tensor], Tensor]:
        if layout.segment_ids is not None:
            return partial(self.inputs.call, forward=forward, segment_ids=layout.segment_ids)
        return partial(self.inputs.call, mask=layout.attention_mask, forward=forward)

    def _forward_of_source(
        self, target: Tensor, mask: Tensor | None, target_mask: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        return partial(self.inputs.call, mask=mask, target=target, target_mask=target_mask)

    def _forward_of_target(
        self, source: Tensor, mask: Tensor | None, target_mask: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        call = self.inputs.call
        return lambda x: call(source, mask, target=x, target_mask=target_mask)

    def _random_inputs(self, length: int) -> tuple[Tensor, Tensor]:
        """Random inputs, and others that differ at every position."""
        if self.inputs.width is None:
            vocab_size = self.config.source_vocab_size or self.config.vocab_size
            return self._random_ids(length, vocab_size)
        x = self.inputs.inputs(2 * NUM_ROWS, length)
        return x[:NUM_ROWS], x[NUM_ROWS:]

    def _random_ids(self, length: int, vocab_size: int) -> tuple[Tensor, Tensor]:
        x = self.inputs.ids(NUM_ROWS, length, vocab_size)
        offset = torch.randint(1, vocab_size, x.shape, device=self.device)
        return x, (x + offset) % vocab_size


_OUTPUT_NAMES = {False: "outputs", True: "vectors"}


def _max_relative_change(reference: Tensor, outputs: Tensor) -> Tensor:
    """Maximum change over V outputs, each relative to its own size: [B, ..., V] -> [B, ...].

    With a common size a large output would hide changes of a small one. A lower bound prevents
    rounding errors of near-zero outputs from being reported.
    """
    finite = reference.abs().masked_fill(~reference.isfinite(), 0.0).flatten(0, -2)
    size = finite.amax(0)  # [V]
    size = size.maximum(1e-3 * size.median()).clamp_min(1e-12)
    # Equal infinities have no difference.
    difference = (reference - outputs).abs().masked_fill(reference == outputs, 0.0)
    max_change: Tensor = (difference / size).amax(-1)
    return max_change


def _deduplicate(leaks: Iterator[Leak]) -> list[Leak]:
    """Removes leaks that only repeat those of earlier layouts."""
    seen: dict[tuple[str, ...], set[int]] = {}
    unique = []
    for leak in leaks:
        key = leak.kind, leak.perturbation.split(" (")[0], leak.output_name
        positions = seen.setdefault(key, set())
        if not positions.issuperset(leak.positions):
            unique.append(leak)
            positions.update(leak.positions)
    return unique


def _replace_where(x: Tensor, replacement: Tensor, mask: Tensor) -> Tensor:
    """Replaces the positions of `mask`, bool [B, T], by those of `replacement`."""
    return torch.where(mask if x.dim() == 2 else mask[..., None], replacement, x)
