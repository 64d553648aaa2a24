"""Drawings of models: the parts in order, and the committed files of the concept page."""

import re
import xml.etree.ElementTree

import pytest

from miniformer.inspection.drawing import draw_model, layer_boxes
from tests.kit import drawings, tiny_config


def layer_kinds(**fields):
    return " ".join(box.kind for box in layer_boxes(tiny_config(**fields)))


@pytest.mark.catches("drawing_is_always_pre_norm")
def test_layer_has_its_parts_in_order():
    assert layer_kinds() == "norm attention add norm feed_forward add"
    assert layer_kinds(pre_norm=False) == "attention add norm feed_forward add norm"
    assert layer_kinds(norm_placement="both") == (
        "norm attention norm add norm feed_forward norm add"
    )
    assert layer_kinds(norm_placement="output") == "attention norm add feed_forward norm add"
    assert layer_kinds(parallel_residual=True) == "norm attention add"
    boxes = layer_boxes(tiny_config(causal=False), cross=True)
    assert [box.text for box in boxes if box.kind == "attention"] == [
        "self-attention", "attention to the source",
    ]  # fmt: skip


def test_drawing_names_the_choices():
    config = tiny_config(n_kv_heads=2, position="alibi", sliding_window=8, output_dim=3)
    svg = draw_model(config)
    texts = [node.text for node in xml.etree.ElementTree.fromstring(svg).iter() if node.text]
    assert "4 heads, 2 of keys and values, causal, ALiBi, window 8" in texts
    assert "3 outputs, mean of the positions" in texts
    assert "2 x" in texts


@pytest.mark.parametrize("name", drawings.SIZES)
def test_committed_drawing_is_that_of_the_config(name):
    """`python -m tests.kit.drawings` writes them again."""
    path = drawings.FOLDER / f"{name}.svg"
    assert path.read_text(encoding="utf-8") == drawings.drawing(name)
    page = (drawings.ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert re.search(rf"!\[[^]]+\]\(drawings/{name}\.svg\)", page)
