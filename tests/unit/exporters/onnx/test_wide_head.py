"""A classifier with a wide head, in the operations of an export, equals the model."""

import pytest
import torch

from miniformer import registry
from miniformer.exporters.programs import make_programs
from miniformer.exporters.source import Source
from miniformer.model.wide_head import integer_forms
from tests.kit import tiny_model

TEXT_GROUPS = [
    {"type": "ngrams", "size": 60, "length": 2, "positions": True},
    {"type": "characters", "size": 90, "length": 3, "vocab": 31, "width": 3},
    {"type": "overlap", "size": 29, "vocab": 31},
    {"type": "second_text", "size": 20},
    {"type": "rbf", "size": 5, "of": {"type": "ngrams", "size": 30, "length": 1, "counts": True}},
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
    for group in model.wide_head.modules():
        if hasattr(group, "hashes"):
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


def a_classifier():
    """A classifier of pairs, and its task."""
    model = tiny_model(causal=False, token_types=2, output_dim=3, n_layers=1, wide_head=TEXT_GROUPS)
    with torch.no_grad():
        fill(model, a_batch(4, 20))
    settings = {"classes": ["a", "b", "c"], "input_kind": "pair"}
    return model, registry.get("task", "classification").from_dict(settings)


@pytest.mark.catches(
    "graph_lacks_the_wide_head", "graph_has_other_classes", "search_of_an_export_is_off_by_one"
)
@torch.no_grad()
def test_classifier_of_pairs_equals_the_model_in_the_form_of_exports(monkeypatch):
    """`check_onnx_battery.py` runs its graph in onnxruntime."""
    model, task = a_classifier()
    (program,) = make_programs(Source(model, None, task, None, None))
    batches = [a_batch(rows, length) for rows, length in ((1, 1), (1, 2), (4, 20), (5, 32))]
    expected = [task.logits(model, batch) for batch in batches]
    assert all(model.wide_head.linear(batch).abs().max() > 1 for batch in batches)
    monkeypatch.setattr(integer_forms, "is_exporting", lambda: True)
    for batch, logits in zip(batches, expected, strict=True):
        actual = program.view(*(value.long() for value in batch.values()))
        torch.testing.assert_close(actual, logits, rtol=1e-5, atol=1e-5)
