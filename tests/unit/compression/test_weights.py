"""Tables of a wide head in fewer bytes."""

import json

import pytest
import torch
from safetensors.torch import load_file

import miniformer
from miniformer.checkpoint.stored_types import ShortIntegers
from miniformer.compression.weights import table_types
from miniformer.config import UserError
from tests.kit import tiny_model

GROUPS = [
    {"type": "ngrams", "length": 2, "positions": False, "size": 50},
    {"type": "characters", "length": 3, "vocab": 64, "width": 4, "size": 40},
]
IDS = torch.tensor([[1, 2, 3, 4, 5], [7, 2, 3, 6, 1]])


def classifier(groups, largest=251):
    """A classifier with a wide head that knows the n-grams of `IDS`, and others."""
    model = tiny_model(
        causal=False, output_dim=3, pooling="mean", wide_head=groups, vocab_size=64, d_model=32
    )
    head = model.wide_head
    torch.manual_seed(0)
    with torch.no_grad():
        for group in head.groups:
            if hasattr(group, "table"):
                group.table.random_(1, largest + 1)
                group.table[0, 0] = largest
            if hasattr(group, "keys"):
                known = group.hashes({"inputs": IDS}).unique()
                known = known[known >= 0][: group.size]
                group.keys[: len(known)] = known
                group.keys.copy_(group.keys.sort().values)
                group.idf.uniform_(1, 9)
        head.weight.normal_()
        head.mix.fill_(0.5)
    return model


@pytest.mark.catches("tables_stay_as_they_are")
@pytest.mark.parametrize("to", ["int8", "int4", "bf16", "fp16"])
def test_tables_of_ngrams_have_half_of_their_bytes(to, tmp_path):
    model = classifier(GROUPS)
    miniformer.quantize(model, tmp_path / "out", to=to)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    dtype = torch.bfloat16 if to == "bf16" else torch.float16
    names = ["weight", "groups.0.idf", "groups.1.idf"]
    before, loaded = model.state_dict(), miniformer.Transformer.from_pretrained(tmp_path / "out")
    after = loaded.state_dict()
    for name in (f"wide_head.{name}" for name in names):
        assert name not in stored
        assert stored[f"{name}.values"].dtype == dtype
        assert torch.equal(after[name], before[name].to(dtype).float())
    assert stored["wide_head.groups.1.table.values"].dtype == torch.uint8
    for name in ("groups.1.table", "groups.0.keys", "groups.1.keys", "bias", "mix", "next_mix"):
        name = f"wide_head.{name}"
        assert torch.equal(after[name], before[name])
        assert after[name].dtype == before[name].dtype
    loaded.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "quantization.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    outputs = [x.wide_head.linear({"inputs": IDS}) for x in (model, loaded)]
    assert outputs[0].abs().max() > 0.1
    # A feature and a weight are rounded; the features of a group have a norm of 1.
    largest = model.wide_head.weight.abs().max()
    bound = 2 * len(GROUPS) * IDS.shape[1] * largest * torch.finfo(dtype).eps
    assert (outputs[0] - outputs[1]).abs().max() <= bound


@pytest.mark.catches("characters_beyond_a_type_wrap")
@pytest.mark.parametrize(
    ("largest", "form"), [(255, "uint8"), (256, "int16"), (32_767, "int16"), (40_000, None)]
)
def test_table_of_characters_has_the_smallest_type_that_holds_it(largest, form, tmp_path):
    model = classifier(GROUPS, largest)
    name = "wide_head.groups.1.table"
    item = table_types(model, "int8").get(name)
    assert item == (None if form is None else {"type": "short_integers", "form": form})
    miniformer.quantize(model, tmp_path / "out", to="int8")
    loaded = miniformer.Transformer.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.state_dict()[name], model.state_dict()[name])


def test_other_wide_heads_stay_as_they_are(tmp_path):
    """Weights of counts and of numbers may be large and cancel each other."""
    for groups in (
        [{**GROUPS[0], "counts": True}],
        [GROUPS[0], {"type": "rbf", "size": 8, "of": {**GROUPS[0], "counts": True}}],
    ):
        types = table_types(classifier(groups), "int8")
        assert "wide_head.weight" not in types
        assert len(types) == len(groups) - 1
    model = classifier(GROUPS)
    with torch.no_grad():
        model.wide_head.weight[0, 0] = 70_000  # more than fp16 holds
    assert "wide_head.weight" not in table_types(model, "fp16")
    assert table_types(model, "bf16")["wide_head.weight"]["form"] == "bf16"


def test_tables_that_lie_are_refused(tmp_path):
    miniformer.quantize(classifier(GROUPS), tmp_path / "out", to="int8")
    path = tmp_path / "out" / "quantization.json"
    content = json.loads(path.read_text())
    item = content["matrices"]["wide_head.groups.1.table"]
    for form, message in (("int16", "values are torch.uint8, not int16"), ("int9", "form must be")):
        item["form"] = form
        path.write_text(json.dumps(content))
        with pytest.raises(
            UserError, match=f"table cannot be decoded as short_integers.*{message}"
        ):
            miniformer.Transformer.from_pretrained(tmp_path / "out")
    values = torch.arange(6).view(2, 3)
    assert torch.equal(ShortIntegers.encode(values, "uint8")["values"].long(), values)
