"""Comparison of written programs with the model, at several batch sizes, lengths and pasts.

Decoders are compared with full passes of the model, which use no cache. Their greedy tokens are
compared with the most probable ones of these passes.

Letters: B batch, T tokens, S source length, W words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from miniformer.exporters.compiled.flat import FlatView
from miniformer.exporters.destination import DifferenceError
from miniformer.exporters.programs import Program
from miniformer.exporters.source import Source

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # a loaded program: inputs -> outputs

LIMIT = 1e-4  # of differences, relative to the largest output if that is above 1
BATCH_SIZES = (1, 2, 5)
COLUMNS = 14  # tokens of a row in a comparison
_CHUNKS = (1, 5, 1, 3)  # passes of a decoder with given tokens; later ones have greedy tokens


class Comparison(NamedTuple):
    """Result of a comparison.

    Args:
        difference: largest difference of an output.
        scale: largest output, at least 1.
        num_greedy: number of greedy tokens that were compared; 0: the model is no decoder.
        num_equal: those that are the most probable ones of the model, or nearly so.
    """

    difference: float
    scale: float = 1.0
    num_greedy: int = 0
    num_equal: int = 0

    def check(self, limit: float | None = None) -> None:
        """Checks that the differences are those of rounding.

        Args:
            limit: of differences, relative to `scale`; None: `LIMIT`.

        Raises:
            DifferenceError: an output differs by more, or a greedy token differs.
        """
        largest = (LIMIT if limit is None else limit) * self.scale
        if not self.difference <= largest:  # NaN, too
            raise DifferenceError(
                f"what was written differs from the model by {self.difference:.1e}, more than "
                f"{largest:.1e}; nothing is kept"
            )
        if self.num_equal < self.num_greedy:
            raise DifferenceError(
                "what was written chooses other greedy tokens than the model "
                f"({self.num_greedy - self.num_equal} of {self.num_greedy}); nothing is kept"
            )

    def text(self) -> str:
        """The result for a user."""
        count = f"{self.num_equal} of {self.num_greedy}"
        tokens = f"; {count} greedy tokens are equal" if self.num_greedy else ""
        return f"the largest difference is {self.difference:.1e}{tokens}"


@torch.no_grad()
def compare(
    source: Source,
    programs: Sequence[Program],
    runs: Mapping[str, Run],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    columns: int = COLUMNS,
) -> Comparison:
    """Runs each program of a model and compares what it returns.

    Args:
        source: the model.
        programs: its programs.
        runs: each program as loaded, by name.
        batch_sizes: numbers of rows.
        columns: number of tokens in a row; fewer if the model takes fewer.
    """
    columns = min(columns, source.config.max_seq_len)
    generator = torch.Generator().manual_seed(0)
    results = []
    by_name = {program.name: program for program in programs}
    for batch_size in batch_sizes:
        for left in (False, True):
            inputs = _Inputs(source, generator, batch_size, columns, left)
            if "decoder" in by_name:
                results.append(_compare_decoder(inputs, by_name, runs))
            else:
                results += [_compare_outputs(inputs, program, runs) for program in programs]
    return Comparison(
        max((result.difference for result in results), key=_nan_is_largest),
        max(result.scale for result in results),
        sum(result.num_greedy for result in results),
        sum(result.num_equal for result in results),
    )


class _Inputs:
    """Random inputs of a batch.

    Args:
        source: the model.
        generator: state of the random numbers.
        batch_size, columns: numbers of rows, and of tokens in a row.
        left: padding of inputs is on the left.
    """

    def __init__(
        self,
        source: Source,
        generator: torch.Generator,
        batch_size: int,
        columns: int,
        left: bool,
    ) -> None:
        self.source, self.generator, self.left = source, generator, left
        self.batch_size, self.columns = batch_size, columns

    def of(self, program: Program) -> list[Tensor]:
        """Inputs of a program without a past; masks hide the ends of some rows."""
        examples = FlatView(program).example_inputs()
        names = zip(program.inputs, examples, strict=True)
        return [self._make(name, example) for name, example in names]

    def integers(self, end: int, length: int) -> Tensor:
        """Random numbers below `end`, int64 [B, length]."""
        return torch.randint(0, end, (self.batch_size, length), generator=self.generator)

    def real(self) -> Tensor:
        """Columns of each row that are no padding, bool [B, T]; the first row has T."""
        num_padding = torch.arange(self.batch_size)[:, None] % min(4, self.columns)
        is_real = torch.arange(self.columns) < self.columns - num_padding
        return is_real.flip(1) if self.left else is_real

    def _make(self, name: str, example: Tensor) -> Tensor:
        config = self.source.config
        if name == "attention_mask":
            return self.real().to(example.dtype)
        if name == "word_starts":
            return torch.arange(self.columns).repeat(self.batch_size, 1)
        if name == "word_lengths":
            return self.real().long()
        if name == "token_type_ids":
            return self.integers(config.token_types or 1, self.columns)
        if example.is_floating_point():
            shape = (self.batch_size, self.columns, *example.shape[2:])
            return torch.randn(shape, generator=self.generator)
        vocab_size = config.source_vocab_size if hasattr(self.source.model, "decoder") else None
        return self.integers(vocab_size or config.vocab_size, self.columns)


def _compare_outputs(inputs: _Inputs, program: Program, runs: Mapping[str, Run]) -> Comparison:
    """Compares the outputs of a program with those of its view."""
    tensors, real = inputs.of(program), inputs.real()
    results = [*zip(runs[program.name](tensors), FlatView(program)(*tensors), strict=True)]
    if any(actual.shape != expected.shape for actual, expected in results):
        return Comparison(float("inf"))
    # Outputs of padding have no meaning.
    if results[0][1].dim() == 3 and results[0][1].shape[:2] == real.shape:
        results = [(actual[real], expected[real]) for actual, expected in results]
    return Comparison(
        max((_difference(*pair) for pair in results), key=_nan_is_largest),
        max(1.0, *(float(expected.abs().max()) for _, expected in results)),
    )


def _compare_decoder(
    inputs: _Inputs, programs: Mapping[str, Program], runs: Mapping[str, Run]
) -> Comparison:
    """Compares prompts, chunks and greedy steps with full passes."""
    model, batch_size = inputs.source.model, inputs.batch_size
    ids = inputs.integers(inputs.source.config.vocab_size, inputs.columns)
    real = inputs.real()
    # Rows begin with padding, so that all end together; that of a source is on either side.
    real = real if inputs.left else real.flip(1)
    memory: list[Tensor] = []
    sources: list[Tensor] = []
    if "encoder" in programs:
        sources = inputs.of(programs["encoder"])
        memory = [*runs["encoder"](sources), sources[1]]
    past = _empty_past(programs["decoder"], batch_size)
    seen = torch.zeros(batch_size, 1, dtype=torch.long)
    parts: list[Tensor] = []
    start = num_greedy = 0
    while start < inputs.columns:
        if len(parts) < len(_CHUNKS):
            end = min(start + _CHUNKS[len(parts)], inputs.columns)
        else:
            end = start + 1
            ids[:, start] = parts[-1][:, -1].argmax(-1)
            num_greedy += 1
        seen = torch.cat((seen, real[:, start:end].long()), 1)
        arguments = [
            ids[:, start:end].contiguous(),
            seen,
            *past,
            *memory,
            torch.arange(end - start),
        ]
        logits, *past = runs["decoder"](arguments)
        parts.append(logits)
        start = end
    expected = model(sources[0], ids, sources[1] != 0, real) if sources else model(ids, real)
    actual = torch.cat(parts, 1)
    if actual.shape != expected.shape:
        return Comparison(float("inf"))
    scale = max(1.0, float(expected[real].abs().max()))
    num_equal = 0
    if num_greedy:
        before = expected[:, -num_greedy - 1 : -1]
        chosen = before.gather(2, ids[:, -num_greedy:, None])[..., 0]
        num_equal = int((before.amax(2) - chosen <= 2 * LIMIT * scale).sum())
    difference = _difference(actual[real], expected[real])
    return Comparison(difference, scale, num_greedy * batch_size, num_equal)


def _empty_past(program: Program, batch_size: int) -> list[Tensor]:
    """Keys and values of one masked column."""
    examples = zip(program.inputs, FlatView(program).example_inputs(), strict=True)
    return [
        example.new_zeros(batch_size, example.shape[1], 1, example.shape[3])
        for name, example in examples
        if name.startswith("past_key_values.") and ".encoder." not in name
    ]


def _difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max()) if expected.numel() else 0.0


def _nan_is_largest(value: float) -> float:
    return float("inf") if value != value else value
