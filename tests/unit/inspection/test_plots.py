"""Plots, terminal form and page of an inspection show its values."""

import pytest
import torch
from matplotlib.figure import Figure

from miniformer import UserError
from miniformer.inspection.lens import Prediction
from miniformer.inspection.page import render_body, write_inspection
from miniformer.inspection.plots import (
    plot_attention,
    plot_hidden_states,
    plot_lens,
    plot_logprobs,
)
from miniformer.inspection.result import Inspection
from miniformer.inspection.text import shown_layers

TOKENS = ["<s>", " a<", "\n"]


def layer_attention(layer):
    """Two heads; the last key has most of the weight in layer 1, the first in layer 0."""
    weights = torch.full((2, 3, 3), 0.1)
    weights[:, :, -layer] = 0.8
    weights[1] += 0.01 * layer
    return weights


@pytest.fixture
def inspection():
    lens = [
        [[Prediction(f"t{n}{layer}", 0.25 * (layer + 1))] for n in range(3)] for layer in (0, 1, 2)
    ]
    return Inspection(
        task="language_modeling",
        tokens=TOKENS,
        token_ids=[0, 1, 2],
        source_tokens=None,
        attentions={"decoder": [layer_attention(0), layer_attention(1)]},
        hidden_states={"decoder": [torch.full((3, 4), float(n)) for n in range(3)]},
        logits=torch.zeros(3, 5),
        rows=TOKENS,
        lens=lens,
        logprobs=[None, -1.25, -0.5],
    )  # fmt: skip


def drawn(plot):
    figure = Figure()
    plot.draw(figure)
    return figure


@pytest.mark.catches("attention_plot_is_of_the_first_layer")
def test_attention_plot_has_a_map_for_each_head(inspection):
    axes = drawn(plot_attention(inspection, layer=1)).axes
    assert [a.get_title() for a in axes] == ["head 0", "head 1"]
    for index, a in enumerate(axes):
        shown = torch.tensor(a.images[0].get_array().data)
        assert torch.equal(shown, inspection.attentions["decoder"][1][index])
    assert [t.get_text() for t in axes[0].get_xticklabels()] == ["<s>", "␣a<", "⏎"]
    assert len(drawn(plot_attention(inspection, head=1)).axes) == 1


def test_other_plots_have_the_values(inspection):
    (axes, _) = drawn(plot_hidden_states(inspection)).axes
    assert axes.images[0].get_array().tolist() == [[0.0] * 3, [2.0] * 3, [4.0] * 3]
    (axes,) = drawn(plot_lens(inspection)).axes
    assert axes.images[0].get_array()[2].tolist() == [0.75] * 3
    assert [text.get_text() for text in axes.texts][-1] == "t22"
    (axes,) = drawn(plot_logprobs(inspection)).axes
    assert [bar.get_height() for bar in axes.patches] == [0.0, -1.25, -0.5]


@pytest.mark.parametrize(
    ("plot", "options", "message"),
    [
        (plot_attention, {"layer": 2}, "layer must be 0 to 1, not 2"),
        (plot_attention, {"head": -3}, "head must be 0 to 1, not -3"),
        (plot_attention, {"stack": "cross"}, "stack must be decoder, not 'cross'"),
        (plot_hidden_states, {"stack": "encoder"}, "stack must be decoder, not 'encoder'"),
    ],
)
def test_plots_refuse_what_is_not_there(inspection, plot, options, message):
    with pytest.raises(UserError) as error:
        plot(inspection, **options)
    assert message in str(error.value)


def test_plot_is_saved_by_its_suffix(inspection, tmp_path, real_pictures):
    plot = plot_lens(inspection)
    plot.save(tmp_path / "a.png")
    plot.save(str(tmp_path / "a.svg"))
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "a.svg").read_text(encoding="utf-8") == plot._repr_svg_()
    assert "t22" in plot._repr_svg_()


@pytest.mark.catches("strongest_attention_is_the_weakest")
def test_text_has_tokens_lens_and_strongest_attention(inspection):
    lines = str(inspection).splitlines()
    assert lines[0] == "language_modeling: 3 positions; decoder of 2 layers x 2 heads"
    assert lines[2].split() == ["token", "log-prob", "in", "0", "in", "1", "head"]
    assert lines[4].split() == ["1", "␣a<", "-1.25", "t10", "0.25", "t11", "0.50", "t12", "0.75"]
    assert lines[-2].startswith("  decoder layer 0: <s> at 0 (0.80), ")
    assert lines[-1].startswith("  decoder layer 1: ⏎ at 2 (0.8")
    assert shown_layers(24) == [0, 6, 12, 17, 23]


@pytest.mark.catches("page_of_inspection_has_no_lens")
def test_page_is_escaped_and_written(inspection, tmp_path):
    assert "␣a&lt;" in render_body(inspection)
    assert inspection._repr_html_() == render_body(inspection)
    write_inspection(tmp_path / "page.html", inspection, "runs/<x>")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "runs/&lt;x&gt;" in page
    assert "Attention: decoder, layer 1" in page
