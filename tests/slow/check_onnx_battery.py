"""Decoders of all pairs of parts as ONNX graphs, in onnxruntime.

Each position encoding is combined with norm, grouped queries, window, soft-cap and qk-norm, twice
with opposite choices, so that any two choices meet in a graph.
"""

import itertools

import pytest
import torch

from tests.unit.exporters.onnx.test_graphs import Graphs, close, ragged

POSITIONS = ("rotary", "learned", "sinusoidal", "alibi", "t5_relative", "none")
CHOICES = {
    "norm": ("layernorm", "rmsnorm"),
    "n_kv_heads": (None, 2),
    "sliding_window": (None, 5),
    "logit_softcap": (None, 4.0),
    "qk_norm": (None, "head"),
}
# Rows of choices; those of a position and their opposites are two graphs.
ROWS = ((0, 0, 0, 0, 0), (0, 1, 0, 1, 1), (0, 0, 1, 1, 0), (0, 1, 1, 0, 1), (0, 1, 0, 0, 0),
        (0, 0, 0, 1, 1))  # fmt: skip
GRAPHS = [
    (position, tuple(choice ^ opposite for choice in row))
    for position, row in zip(POSITIONS, ROWS, strict=True)
    for opposite in (0, 1)
]


def test_any_two_choices_meet():
    for first, second in itertools.combinations(range(len(CHOICES)), 2):
        pairs = {(row[first], row[second]) for _, row in GRAPHS}
        assert len(pairs) == 4, (first, second)


@pytest.mark.parametrize(("position", "row"), GRAPHS)
def test_graphs_equal_their_models(position, row, tmp_path):
    fields = {name: values[n] for (name, values), n in zip(CHOICES.items(), row, strict=True)}
    graphs = Graphs(tmp_path, n_layers=2, d_model=32, position=position, **fields)
    for rows, side, past in itertools.product((1, 2, 5), ("left", "right"), (1, 7, 30)):
        ids, mask = ragged(rows, past + 1, side)
        if side == "right":
            mask[:, -1] = 1
        expected = graphs.model(torch.tensor(ids), torch.tensor(mask).bool())
        close(graphs.steps(ids, mask, [past, 1]), expected, mask)
