"""A classifier with a wide head in onnxruntime equals the model."""

import numpy as np
import onnxruntime
import pytest
import torch

from miniformer import registry
from miniformer.exporters.onnx.graphs import write_graphs
from miniformer.exporters.source import Source
from tests.kit import tiny_model

TEXT_GROUPS = [
    {"type": "ngrams", "size": 60, "length": 2, "positions": True},
    {"type": "characters", "size": 90, "length": 3, "vocab": 31, "width": 3},
    {"type": "overlap", "size": 29, "vocab": 31},
]


def fill(model, batch):
    """Random values; half of the keys are those of the batch."""
    random = torch.Generator().manual_seed(0)
    for name, buffer in model.wide_head.named_buffers():
        if name.endswith("table"):
            buffer.copy_(torch.randint(97, 105, buffer.shape, generator=random))
            buffer[::3, 2:], buffer[::5, 1] = 0, ord(" ")
        elif not name.endswith("keys"):
            buffer.copy_(torch.rand(buffer.shape, generator=random) + 0.1)
    for group in model.wide_head.groups:
        if hasattr(group, "keys"):
            keys = group.hashes(batch).unique()
            keys = keys[keys >= 0][::2][: group.size]
            rest = torch.randint(0, 2**62, (group.size - len(keys),), generator=random)
            group.keys.copy_(torch.cat([keys, rest]).sort().values)


def a_batch(rows, length, seed=0):
    random = torch.Generator().manual_seed(seed)
    columns = torch.arange(length)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=random)
    lengths[0] = length
    return {
        "inputs": torch.randint(0, 31, (rows, length), generator=random),
        "attention_mask": columns < lengths,
        "token_types": (columns >= length // 2).long().repeat(rows, 1),
    }


@pytest.mark.catches(
    "graph_lacks_the_wide_head", "graph_has_other_classes", "search_of_an_export_is_off_by_one"
)
@torch.no_grad()
def test_classifier_of_pairs_equals_the_model(tmp_path):
    model = tiny_model(causal=False, token_types=2, output_dim=3, n_layers=1, wide_head=TEXT_GROUPS)
    fill(model, a_batch(4, 20))
    settings = {"classes": ["a", "b", "c"], "input_kind": "pair"}
    task = registry.get("task", "classification").from_dict(settings)
    write_graphs(Source(model, None, task, None, tmp_path), tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for rows, length in ((1, 1), (1, 2), (4, 20), (5, 32)):
        batch = a_batch(rows, length)
        names = ("input_ids", "attention_mask", "token_type_ids")
        arrays = [value.long().numpy() for value in batch.values()]
        (logits,) = session.run(None, dict(zip(names, arrays, strict=True)))
        expected = task.logits(model, batch)
        assert model.wide_head.linear(batch).abs().max() > 1
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
