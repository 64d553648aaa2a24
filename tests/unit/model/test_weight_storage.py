"""Stored types of weight matrices."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from miniformer import Transformer, registry
from miniformer.config import UserError
from miniformer.model.transforms import apply_transforms
from miniformer.model.weight_file import WeightSource, assign_weights, open_weights
from miniformer.model.weight_storage import decode_weights, encode_weights, types_of
from tests.kit import tiny_model
from tests.kit.plugins import Int8Linear, Int8Storage, registered
from tests.unit.model.test_matrices import with_experts

IDS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.fixture(autouse=True)
def plugins():
    with registered():
        yield


def quantized(weight, group=None):
    """Independent reference: rounding of each group to 127 steps."""
    columns = group or weight.shape[1]
    result = weight.clone()
    for row in range(len(weight)):
        for first in range(0, weight.shape[1], columns):
            part = weight[row, first : first + columns]
            step = part.abs().max() / 127
            result[row, first : first + columns] = (part / step).round() * step
    return result


@pytest.mark.catches("stored_types_are_not_decoded")
@pytest.mark.parametrize("options", [{}, {"group": 8}])
def test_int8_model_is_smaller_and_equals_its_reference(tmp_path, options):
    model = tiny_model(d_model=64, n_heads=2)
    model.save_pretrained(tmp_path / "plain")
    apply_transforms(model, [{"type": "store_int8", **options}]).save_pretrained(tmp_path / "int8")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("plain", "int8")]
    assert sizes[1] < 0.5 * sizes[0]
    assert (tmp_path / "int8" / "format_version").read_text() == "2\n"
    loaded = Transformer.from_pretrained(tmp_path / "int8")
    reference = tiny_model(d_model=64, n_heads=2)
    for name, weight in reference.named_parameters():
        stored_plain = weight.dim() < 2 or not name.startswith("layers.")
        expected = weight.detach() if stored_plain else quantized(weight.detach(), **options)
        torch.testing.assert_close(loaded.get_parameter(name).detach(), expected)
        with torch.no_grad():
            weight.copy_(loaded.get_parameter(name))
    assert torch.equal(loaded(IDS), reference(IDS))


def test_stored_types_of_single_matrices_survive(tmp_path):
    model = tiny_model()
    model.weight_storage = {
        "layers.1.attention.k_proj": {"type": "int8", "group": 8},
        "embedding": {"type": "int8"},
    }
    model.save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "quantization.json").read_text())["matrices"]
    assert entries["embedding"] == {
        "type": "int8", "tensors": ["scale", "values"], "dtype": "float32",
    }  # fmt: skip
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["layers.1.attention.k_proj.values"].dtype == torch.int8
    assert tensors["layers.1.attention.k_proj.scale"].shape == (16, 2)
    assert "embedding.weight" not in tensors
    loaded = Transformer.from_pretrained(tmp_path)
    assert loaded.weight_storage == model.weight_storage == types_of(entries)
    loaded.save_pretrained(tmp_path / "again")
    name = "model.safetensors"
    assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_decoded_weights_have_the_type_of_the_model(tmp_path, dtype):
    model = apply_transforms(tiny_model().to(dtype), [{"type": "store_int8"}])
    model.save_pretrained(tmp_path)
    assert {p.dtype for p in Transformer.from_pretrained(tmp_path).parameters()} == {dtype}


@pytest.mark.catches("plain_model_retains_stored_types")
def test_plain_model_replaces_a_quantized_one(tmp_path):
    apply_transforms(tiny_model(), [{"type": "store_int8"}]).save_pretrained(tmp_path)
    tiny_model(1).save_pretrained(tmp_path)
    assert not (tmp_path / "quantization.json").exists()
    assert torch.equal(Transformer.from_pretrained(tmp_path)(IDS), tiny_model(1)(IDS))


def test_matrices_of_a_stack_have_types_of_their_own(tmp_path):
    model = with_experts()
    for parameter in model.layers[0].feed_forward.parameters():
        nn.init.normal_(parameter)
    name = "layers.0.feed_forward.down_proj"
    types = {f"{name}.1": {"type": "int8"}}
    stored, entries = encode_weights(model, model.state_dict(), types)
    assert name not in stored
    assert stored[f"{name}.0"].shape == (16, 64)
    assert stored[f"{name}.1.values"].shape == (16, 64)
    sources = {name: WeightSource(x.shape, x.dtype, x.clone) for name, x in stored.items()}
    decoded = decode_weights(model, sources, entries, tmp_path)
    decoded = {name: source.read() for name, source in decoded.items()}
    experts = model.state_dict()[name]
    assert decoded.keys() == model.state_dict().keys()
    assert torch.equal(decoded[name][[0, 2]], experts[[0, 2]])
    torch.testing.assert_close(decoded[name][1], quantized(experts[1]))


def test_int8_in_memory_has_the_tensors_of_the_file(tmp_path):
    model = apply_transforms(tiny_model(), [{"type": "int8_layers"}])
    model.save_pretrained(tmp_path)
    loaded = Transformer.from_pretrained(tmp_path)
    assert isinstance(loaded.layers[0].feed_forward.up_proj, Int8Linear)
    assert loaded.layers[0].feed_forward.up_proj.values.dtype == torch.int8
    assert torch.equal(loaded(IDS), model(IDS))


def test_file_of_int8_is_for_modules_that_hold_its_tensors(tmp_path):
    """A directory of stored types, with a transform whose modules compute with them."""
    model = apply_transforms(tiny_model(), [{"type": "store_int8"}])
    model.save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "quantization.json").read_text())["matrices"]
    computing = apply_transforms(tiny_model(1), [{"type": "int8_layers"}])
    with open_weights(tmp_path / "model.safetensors") as stored:
        assign_weights(computing, decode_weights(computing, stored, entries, tmp_path))
    reference = Transformer.from_pretrained(tmp_path)
    assert torch.equal(computing(IDS), reference(IDS))
    types = {name: {"type": "int8"} for name in entries}
    again, its_entries = encode_weights(computing, computing.state_dict(), types)
    assert again.keys() == stored.keys()
    assert its_entries["layers.0.attention.q_proj"]["tensors"] == ["scale", "values"]


@pytest.mark.catches("options_with_names_of_the_file_are_lost")
def test_unknown_types_and_names():
    model = tiny_model()
    weights = model.state_dict()
    with pytest.raises(UserError, match="no weight matrix 'embeding'; did you mean 'embedding'"):
        encode_weights(model, weights, {"embeding": {"type": "int8"}})
    with pytest.raises(UserError, match=r"embedding: unknown weight_storage 'int9' \(did you mean"):
        encode_weights(model, weights, {"embedding": {"type": "int9"}})
    for option in ("dtype", "tensors"):
        with pytest.raises(
            UserError, match=f"embedding: '{option}' is a name of quantization.json"
        ):
            encode_weights(model, weights, {"embedding": {"type": "int8", option: "x"}})
    model.embedding.register_buffer("scale", torch.ones(1))
    with pytest.raises(UserError, match=r"the model has a tensor embedding.scale already"):
        encode_weights(model, model.state_dict(), {"embedding": {"type": "int8"}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a description of stored weights"),
        ('{"matrices": {"embedding": {"type": "int9", "tensors": []}}}',
         "embedding: unknown weight_storage 'int9'"),
        ('{"matrices": {"head": {"type": "int8", "tensors": []}}}',
         "'head' is no weight matrix of the model"),
        ('{"matrices": {"embedding": {"type": "int8", "tensors": ["scale", "codes"], '
         '"dtype": "float32"}}}', "embedding: the file has no tensor 'embedding.codes'"),
        ('{"matrices": {"embedding": {"type": "int8", "tensors": ["scale", "values"], '
         '"dtype": "float32", "bits": 3}}}',
         "embedding cannot be decoded as int8: TypeError: .*unexpected keyword argument 'bits'"),
    ],
)  # fmt: skip
def test_description_messages(tmp_path, content, message):
    model = tiny_model()
    model.weight_storage = {"embedding": {"type": "int8"}}
    model.save_pretrained(tmp_path)
    (tmp_path / "quantization.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Transformer.from_pretrained(tmp_path)


def test_types_of_a_plugin_join_those_built_in():
    assert registry.builtin_names("weight_storage") == ["integers", "short_float", "short_integers"]
    assert registry.get("weight_storage", "int8") is Int8Storage
