"""The iterator over weight matrices: names, views, layers, stacked parameters."""

import pytest
import torch
from torch import nn

from miniformer import Seq2SeqTransformer
from miniformer.model.initialization import initialize
from miniformer.model.matrices import layer_of, weight_matrices
from miniformer.model.ops.linear import effective_weight
from tests.kit import tiny_model
from tests.kit.plugins import Int8Linear, LoRALinear


class Experts(nn.Module):
    """Three feed-forwards in two parameters, [experts, out, in]."""

    matrix_names = ("up_proj", "down_proj")

    def __init__(self):
        super().__init__()
        self.up_proj = nn.Parameter(torch.empty(3, 64, 16))
        self.down_proj = nn.Parameter(torch.empty(3, 16, 64))
        self.router = nn.Linear(16, 3)


def with_experts(**changes):
    model = tiny_model(d_model=16, n_heads=2, **changes)
    model.layers[0].feed_forward = Experts()
    return model


PROJECTIONS = {
    "attention.q_proj": False, "attention.k_proj": False, "attention.v_proj": False,
    "attention.o_proj": True, "feed_forward.up_proj": False, "feed_forward.down_proj": True,
}  # fmt: skip


@pytest.mark.catches("all_matrices_write_to_the_residual_stream")
def test_weight_matrices_of_a_model():
    model = tiny_model(tie_embeddings=False)
    parameters = dict(model.named_parameters())
    matrices = list(weight_matrices(model))
    expected = {
        f"layers.{layer}.{name}": (layer, residual)
        for layer in range(2)
        for name, residual in PROJECTIONS.items()
    }
    expected["head"] = (None, False)
    assert {m.name: (m.layer, m.writes_to_residual) for m in matrices} == expected
    for matrix in matrices:
        assert matrix.parameter is matrix.weight is parameters[f"{matrix.name}.weight"]
        assert matrix.parameter_name == f"{matrix.name}.weight"
        assert matrix.module is model.get_submodule(matrix.name)


def test_weight_matrices_of_both_stacks_and_without_a_tied_head():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    names = [matrix.name for matrix in weight_matrices(model)]
    assert len(names) == 2 * 6 + 2 * 10
    assert "decoder.layers.1.cross_attention.o_proj" in names
    assert {matrix.layer for matrix in weight_matrices(model)} == {0, 1}


@pytest.mark.catches("stacked_parameter_is_one_matrix")
def test_stacked_parameter_counts_as_many_matrices():
    model = with_experts()
    named = {m.name: m for m in weight_matrices(model) if "layers.0.feed_forward" in m.name}
    assert list(named) == [
        *(f"layers.0.feed_forward.{name}.{i}" for name in Experts.matrix_names for i in range(3)),
        "layers.0.feed_forward.router",
    ]
    experts = model.layers[0].feed_forward
    for i in range(3):
        down = named[f"layers.0.feed_forward.down_proj.{i}"]
        assert down.writes_to_residual
        assert not named[f"layers.0.feed_forward.up_proj.{i}"].writes_to_residual
        assert (down.parameter is experts.down_proj, down.index, down.layer) == (True, i, 0)
        assert down.weight.data_ptr() == experts.down_proj[i].data_ptr()
        assert down.weight.shape == (16, 64)


def test_module_declares_that_it_writes_to_the_residual_stream():
    model = tiny_model()
    model.layers[0].feed_forward.out_gate = nn.Linear(16, 16)
    model.layers[0].feed_forward.out_gate.writes_to_residual = True
    named = {matrix.name: matrix.writes_to_residual for matrix in weight_matrices(model)}
    assert named["layers.0.feed_forward.out_gate"]


def test_linear_like_modules_are_one_matrix():
    model = tiny_model()
    attention = model.layers[0].attention
    attention.q_proj, attention.k_proj = (
        LoRALinear(attention.q_proj, 2),
        Int8Linear(attention.k_proj),
    )
    attention.v_proj.inner = nn.Linear(2, 2)  # of no linear-like module
    named = {matrix.name: matrix for matrix in weight_matrices(model)}
    assert len(named) == 2 * 6 + 1
    adapted, stored = (named[f"layers.0.attention.{name}"] for name in ("q_proj", "k_proj"))
    assert adapted.parameter is attention.q_proj.weight
    assert stored.parameter is None
    assert torch.equal(stored.weight, effective_weight(attention.k_proj))


def test_shared_parameter_is_one_matrix():
    model = tiny_model()
    model.layers[1].attention.q_proj.weight = model.layers[0].attention.q_proj.weight
    model.layers[1].feed_forward = model.layers[0].feed_forward
    names = [matrix.name for matrix in weight_matrices(model)]
    assert len(names) == 6 + 3
    assert "layers.1.attention.q_proj" not in names


def test_experts_are_initialized_as_separate_matrices():
    torch.manual_seed(0)
    model = with_experts()
    initialize(model)
    experts = model.layers[0].feed_forward
    # Two attentions, the stack of experts and a feed-forward end residual branches.
    assert experts.up_proj.std().item() == pytest.approx(16**-0.5, rel=0.05)
    assert experts.down_proj.std().item() == pytest.approx(64**-0.5 / 4**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layers.3", ("", 3)),
        ("layers.3.attention.q_proj.weight", ("", 3)),
        ("encoder.layers.11.norm", ("encoder", 11)),
        ("encoder.final_norm", None),
        ("players.3.norm", None),
    ],
)
def test_layer_of_a_name(name, expected):
    assert layer_of(name) == expected
