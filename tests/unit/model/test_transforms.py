"""Transforms of a model, and what its directory says about them."""

import json

import pytest
import torch
from torch import nn

from miniformer import (
    Pipeline,
    Seq2SeqTransformer,
    Tokenizer,
    Transformer,
    TransformerConfig,
    registry,
)
from miniformer.config import UserError
from miniformer.interop.hf.api import from_hf
from miniformer.interop.hf.export import to_hf
from miniformer.model import config_file
from miniformer.model.config_file import read_description
from miniformer.model.transforms import (
    apply_transforms,
    describe_transforms,
    effective_state_dict,
    merge_transforms,
)
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model
from tests.kit.plugins import LoRALinear, registered

LORA = {"type": "lora", "rank": 3, "targets": ["q_proj", "up_proj"]}


@pytest.fixture(autouse=True)
def plugins():
    with registered():
        yield


def adapted(model=None, *transforms):
    """A model with LoRA, whose second factor is not zero."""
    model = apply_transforms(model or tiny_model(), transforms or [LORA])
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_b, std=0.3)
    return model


IDS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


@pytest.mark.catches("loading_omits_transforms")
def test_transformed_model_is_saved_and_loaded(tmp_path):
    model = adapted()
    base = tiny_model()
    assert not torch.equal(model(IDS), base(IDS))
    model.save_pretrained(tmp_path)
    loaded = Transformer.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS), model(IDS))
    assert loaded.transforms == model.transforms == (LORA,)
    assert isinstance(loaded.layers[1].attention.q_proj, LoRALinear)
    assert not loaded.embedding.weight.requires_grad
    loaded.save_pretrained(tmp_path / "again")
    files = ("config.json", "format_version", "model.safetensors")
    for name in files:
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_base_weights_keep_their_promised_names():
    base, model = tiny_model(), adapted()
    weights = model.state_dict()
    for name, weight in base.state_dict().items():
        assert torch.equal(weights[name], weight), name
    assert len(weights) == len(base.state_dict()) + 2 * 2 * 2


def test_transforms_are_applied_in_order(tmp_path):
    model = adapted(tiny_model(), LORA, {"type": "store_int8"})
    model.save_pretrained(tmp_path)
    assert [t["type"] for t in Transformer.from_pretrained(tmp_path).transforms] == [
        "lora", "store_int8",
    ]  # fmt: skip


def test_plain_model_is_written_in_format_1(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert (tmp_path / "format_version").read_text() == "1\n"
    values = json.loads((tmp_path / "config.json").read_text())
    assert values == {"architecture": "Transformer", **tiny_model().config.to_dict()}
    adapted().save_pretrained(tmp_path)
    assert (tmp_path / "format_version").read_text() == "2\n"
    tiny_model().save_pretrained(tmp_path)
    assert (tmp_path / "format_version").read_text() == "1\n"


@pytest.mark.catches("readers_of_format_1_name_no_version")
def test_reader_of_format_1_names_the_version(tmp_path):
    """It parses the config before it compares versions, and rejects unknown keys."""
    adapted().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["transforms"] == [LORA]
    values.pop("architecture")
    with pytest.raises(UserError, match="unknown field 'since_format_version_2'"):
        TransformerConfig.from_dict(values, stored=True)


def test_unknown_format_version_is_named_before_unknown_fields(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "format_version").write_text("3\n")
    (tmp_path / "config.json").write_text('{"architecture": "Transformer", "new": 1}')
    with pytest.raises(UserError, match="format version 3; this version of Miniformer reads 1 and"):
        Transformer.from_pretrained(tmp_path)


def edited(tmp_path, **changes):
    adapted().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.catches("required_packages_are_not_checked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requires": ["no-such-package"], "transforms": [{"type": "odd"}]},
         "requires the package 'no-such-package', which is not installed; "
         "pip install no-such-package"),
        ({"transforms": [{"type": "lara"}]},
         r"transforms\[0\]: unknown transform 'lara' \(did you mean 'lora'\?\); known"),
        ({"transforms": [{"rank": 3}]}, r"transforms\[0\] must be a name, or an object with"),
        ({"transforms": {"type": "lora"}}, "transforms must be a list of dict"),
        ({"transforms": [{"type": "lora", "ronk": 3}]},
         "transforms: lora has no option 'ronk'"),
        ({"files": ["index.bin"]}, "index.bin is missing, which config.json lists in files"),
        ({"files": ["../index.bin"]}, "must be the name of a file in the model directory"),
        ({"files": ["config.json"]}, "is a file of every model directory"),
    ],
)  # fmt: skip
def test_description_messages(tmp_path, changes, message):
    edited(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        Transformer.from_pretrained(tmp_path)


def test_unknown_transform_of_a_directory(tmp_path, monkeypatch):
    adapted().save_pretrained(tmp_path)
    monkeypatch.setitem(registry._registered, "transform", {})
    with pytest.raises(UserError, match="unknown transform 'lora'; known: adapter"):
        read_description(tmp_path)


def test_transform_returns_the_model(monkeypatch):
    monkeypatch.setitem(registry._registered, "transform", {"lost": lambda model: None})
    with pytest.raises(UserError, match="lost returns a NoneType, not a Transformer; return the"):
        apply_transforms(tiny_model(), [{"type": "lost"}])


@pytest.mark.catches("packages_of_components_are_not_recorded")
def test_packages_of_components_are_required(tmp_path, monkeypatch):
    owners = {("transform", "lora"): "pytest", ("task", "own"): "torch"}
    monkeypatch.setattr(registry, "package_of", lambda kind, name: owners.get((kind, name)))
    model = adapted()
    model.requires = ["numpy", "torch"]
    model.save_pretrained(tmp_path, requires=["safetensors"])
    assert read_description(tmp_path).requires == ("pytest", "numpy", "torch", "safetensors")


def test_extra_files_travel_with_the_model(tmp_path):
    model = tiny_model()
    source = tmp_path / "notes.txt"
    source.write_text("words")
    model.extra_files = {"index.bin": b"\x00\x01", "notes.txt": source}
    model.save_pretrained(tmp_path / "one")
    loaded = Transformer.from_pretrained(tmp_path / "one")
    assert loaded.extra_files["index.bin"].read_bytes() == b"\x00\x01"
    loaded.save_pretrained(tmp_path / "two")
    loaded.save_pretrained(tmp_path / "one")  # onto itself
    for name in ("one", "two"):
        again = Transformer.from_pretrained(tmp_path / name)
        assert again.extra_files["notes.txt"].read_text() == "words"
    model.extra_files = {"model.safetensors": b""}
    with pytest.raises(UserError, match=r"extra_files: 'model.safetensors' is a file of every"):
        model.save_pretrained(tmp_path / "three")
    model.extra_files = {"notes.txt": tmp_path / "gone"}
    with pytest.raises(UserError, match=r"extra_files: notes.txt: .*gone does not exist"):
        model.save_pretrained(tmp_path / "three")


@pytest.mark.catches("merging_leaves_adapters_out")
@pytest.mark.parametrize("tied", [True, False])
def test_merged_model_is_plain_and_equal(tied):
    model = adapted(tiny_model(tie_embeddings=tied))
    merged = merge_transforms(model)
    assert {type(m).__module__.partition(".")[0] for m in merged.modules()} == {
        "torch",
        "miniformer",
    }
    assert list(merged.state_dict()) == list(tiny_model(tie_embeddings=tied).state_dict())
    assert merged.transforms == ()
    torch.testing.assert_close(merged(IDS), model(IDS), atol=1e-5, rtol=1e-5)
    ours, theirs = (m.generate(IDS, 12, temperature=0.0) for m in (merged, model))
    assert torch.equal(ours, theirs)
    with torch.no_grad():
        merged.embedding.weight.zero_()
    assert model.embedding.weight.abs().sum() > 0, "the merged model has its own weights"


def test_merged_seq2seq_model():
    model = adapted(tiny_model(model=Seq2SeqTransformer, causal=False))
    torch.testing.assert_close(
        merge_transforms(model)(IDS, IDS), model(IDS, IDS), atol=1e-5, rtol=1e-5
    )


def test_model_that_needs_its_transforms_cannot_be_merged(monkeypatch):
    def add_exit(model):
        model.exit = nn.Linear(2, 2)
        return model

    monkeypatch.setitem(registry._registered, "transform", {"exit": add_exit})
    model = apply_transforms(tiny_model(), [{"type": "exit"}])
    with pytest.raises(UserError, match=r"without its transforms \(exit\): 'exit.bias' is added"):
        effective_state_dict(model)


@pytest.mark.catches("exporters_read_the_stored_weight")
@pytest.mark.parametrize("from_directory", [True, False])
def test_export_has_effective_weights(tmp_path, from_directory):
    fields = {"norm": "rmsnorm", "activation": "swiglu", "bias": False, "tie_embeddings": False}
    model = adapted(tiny_model(**fields))
    if from_directory:
        tokenizer = Tokenizer.train("char", ["abcdefghij"])
        Pipeline(model, tokenizer, LanguageModeling()).save(tmp_path / "ours")
    to_hf(tmp_path / "ours" if from_directory else model, tmp_path / "hf")
    exported = from_hf(tmp_path / "hf").model
    torch.testing.assert_close(exported(IDS), model(IDS), atol=1e-5, rtol=1e-5)


def test_summary_counts_trained_parameters():
    model = adapted()
    own = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    total = sum(p.numel() for p in model.parameters())
    assert describe_transforms(model) == (
        f"transforms: lora; {own:,} of {total:,} parameters are trained"
    )


def test_description_is_a_small_file(tmp_path):
    """`read_config` of other modules reads the same file."""
    adapted().save_pretrained(tmp_path)
    assert config_file.read_config(tmp_path) == ("Transformer", tiny_model().config)
