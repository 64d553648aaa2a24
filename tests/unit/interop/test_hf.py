"""Untrusted checkpoints: invalid files give errors, and no code is executed."""

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

import miniformer
from miniformer import cli
from miniformer.config import TransformerConfig, UserError
from miniformer.config.architectures import architecture_config
from miniformer.interop.hf import api
from miniformer.interop.hf.configs import read_fields, to_config
from miniformer.interop.hf.families import get_family
from tests import fuzz
from tests.kit.seeds import chosen_seed

SIZES = {"vocab_size": 40, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32}


@pytest.fixture
def llama(tmp_path):
    """A Hugging Face checkpoint, written without transformers."""
    torch.manual_seed(0)
    model = miniformer.Transformer(
        TransformerConfig(**architecture_config("llama", **SIZES, d_ff=24))
    )
    return miniformer.to_hf(model, tmp_path / "llama")


def config_with(path, **values):
    file = path / "config.json"
    config = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def refusal(path, **options):
    with pytest.raises(UserError) as caught:
        miniformer.from_hf(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": ...}, "config.json: hidden_size is missing"),
        ({"hidden_size": -16}, "d_model must be at least 1, not -16"),
        ({"hidden_size": "16"}, "d_model must be an integer, not '16'"),
        (
            {"hidden_size": 32},
            "llama: tensor 'model.layers.0.self_attn.q_proj.weight' has shape [16, 16], but the "
            "config requires [16, 32]",
        ),
        ({"vocab_size": 10**15}, f"has shape [40, 16], but the config requires [{10**15}, 16]"),
        ({"vocab_size": 10**20}, "parameters is not supported"),
        ({"num_hidden_layers": 10_000}, "llama: the files have no tensor 'model.layers.2."),
        ({"num_hidden_layers": 10**15}, "layers is not supported, only up to 10000"),
        ({"num_hidden_layers": 10**15, "layer_types": None}, "only up to 10000"),
        ({"num_attention_heads": 0}, "n_heads must be at least 1, not 0"),
        ({"rms_norm_eps": float("nan")}, "norm_eps must be above 0.0, not nan"),
        ({"hidden_act": "xielu"}, "hidden_act='xielu' is none of"),
        ({"rope_parameters": {"rope_type": "nope"}}, "rope_type='nope' is none of"),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1]}},
            "short_factors must be 4 numbers above 0, one for each rotated pair",
        ),
        ({"rope_parameters": [3]}, "rope_parameters must be an object"),
        ({"model_type": "mamba"}, "model_type='mamba' is none of bart, bert"),
        ({"architectures": ["LlamaForTokenClassification"]}, "is none of LlamaForCausalLM"),
        ({"architectures": "x"}, "architectures must be a list of one name"),
        (
            {"attention_bias": True},
            "llama: the files have no tensor 'model.layers.0.self_attn.q_proj.bias', "
            "'model.layers.0.self_attn.k_proj.bias', 'model.layers.0.self_attn.v_proj.bias', "
            "'model.layers.0.self_attn.o_proj.bias' and 4 more, which the config requires",
        ),
        ({"auto_map": {"AutoModel": "evil.Evil"}}, "which is never executed"),
        ({"quantization_config": {"bits": 4}}, "quantized weights are not supported"),
        ({"eos_token_id": 4000}, "eos_token_id=4000 is outside the vocabulary"),
        ({"eos_token_id": "x"}, "a token id must be a non-negative integer"),
    ],
)
def test_import_rejects_invalid_configs(llama, values, message):
    (llama / "generation_config.json").unlink()
    config_with(llama, **values)
    assert message in refusal(llama)


@pytest.mark.catches(
    "windows_of_older_files_are_a_layer_off", "first_layer_with_a_window_is_the_one_after"
)
@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 4}),
        ("Qwen2", {"sliding_window": 4, "max_window_layers": 3}),
        ("Qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}),
        ("Gemma2", {}),
        ("Gemma3Text", {}),
        ("Gemma3Text", {"sliding_window_pattern": 4}),
        ("ModernBert", {}),
        ("ModernBert", {"global_attn_every_n_layers": 4}),
    ],
    ids=str,
)
def test_config_windows_without_layer_types_are_those_of_the_class(kind, given):
    """In older files the class determines the layers with a window."""
    transformers = pytest.importorskip("transformers")
    layers = 30
    usual = getattr(transformers, f"{kind}Config")(num_hidden_layers=layers, **given)
    assert len(usual.layer_types) == layers
    older = {key: value for key, value in usual.to_dict().items() if key != "layer_types"} | given
    _, fields = read_fields(get_family(older), older)
    config = to_config(fields)
    assert [
        "full_attention" if config.layer_window(layer) is None else "sliding_attention"
        for layer in range(layers)
    ] == usual.layer_types


def test_import_ignores_code_if_the_user_allows_it(llama):
    config_with(llama, auto_map={"AutoModel": "evil.Evil"})
    (llama / "evil.py").write_text("raise SystemExit('run')")
    assert miniformer.from_hf(llama, custom_code="ignore").model(torch.zeros(1, 2, dtype=int)).shape


def test_import_lists_every_problem_of_a_config(llama):
    config_with(llama, hidden_size=..., hidden_act="no", vocab_size=...)
    message = refusal(llama)
    assert all(word in message for word in ("hidden_size is", "vocab_size is", "hidden_act='no'"))


def weights_with(path, change):
    file = path / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file({key: value.contiguous() for key, value in weights.items()}, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("model.norm.weight"),
            "llama: the files have no tensor 'model.norm.weight', which the config requires",
        ),
        (
            lambda w: w.update({"zzz": w.pop("model.norm.weight")}),
            "no tensor 'model.norm.weight'",
        ),
        (lambda w: w.update(zzz=torch.zeros(3)), "llama: tensor 'zzz' is unknown"),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(4, 4)}),
            "'model.norm.weight' has shape [4, 4], but the config requires [16]",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(16, dtype=torch.int64)}),
            "has dtype I64, none of F64, F32, F16, BF16",
        ),
    ],
    ids=["missing", "renamed", "extra", "shape", "type"],
)
@pytest.mark.catches("missing_tensors_unnamed")
def test_import_error_names_the_tensor(llama, change, message):
    weights_with(llama, change)
    assert message in refusal(llama)


@pytest.mark.catches("untied_head_is_taken_for_tied")
def test_import_of_a_head_marked_as_tied_that_differs_stays_untied(llama):
    config_with(llama, tie_word_embeddings=True)
    assert miniformer.from_hf(llama).model.config.tie_embeddings is False
    weights_with(
        llama, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()})
    )
    assert miniformer.from_hf(llama).model.config.tie_embeddings is True


def test_import_rejects_broken_weights(llama):
    file = llama / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    for data in (
        b"", content[:5], content[:100], content[:-1], content + b"x",
        (2**62).to_bytes(8, "little") + content[8:],
        content[:8] + content[8 : 8 + length].replace(b"[16]", b"[99]") + content[8 + length :],
        b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.",
    ):  # fmt: skip
        file.write_bytes(data)
        assert "model.safetensors: not a readable safetensors file" in refusal(llama)
    assert not Path("pwned").exists()


def test_import_never_reads_a_pickle(llama):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    message = refusal(llama)
    assert "model.safetensors is missing; pytorch_model.bin is a pickle" in message
    assert "save_pretrained" in message


def shard(path):
    """A checkpoint of two shards."""
    weights = load_file(path / "model.safetensors")
    names = list(weights)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, sample in parts.items():
        save_file({name: weights[name] for name in sample}, path / file)
    (path / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, sample in parts.items() for name in sample}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return index["weight_map"], weights


def test_import_joins_shards(llama):
    unsharded = miniformer.from_hf(llama).model.state_dict()
    shard(llama)
    parts = miniformer.from_hf(llama).model.state_dict()
    assert all(torch.equal(parts[name], unsharded[name]) for name in unsharded)


def test_import_rejects_an_invalid_shard_index(llama):
    names, weights = shard(llama)
    index = llama / "model.safetensors.index.json"
    for wrong, message in (
        ({**names, "lm_head.weight": "../x.safetensors"}, "'../x.safetensors' is not a file name"),
        ({**names, "lm_head.weight": ["x"]}, "is not a file name"),
        ({**names, "lm_head.weight": "c.safetensors"}, "c.safetensors is missing"),
        ({**names, "zzz": "a.safetensors"}, "'zzz' is in the index, but in no file"),
        ({}, "has no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        assert message in refusal(llama)
    index.write_text(json.dumps({"weight_map": names}))
    save_file(weights, llama / "b.safetensors")
    assert "is in another file, too" in refusal(llama)


@pytest.mark.catches("link_leads_out_of_the_directory")
def test_import_rejects_links_out_of_the_directory(llama, tmp_path):
    secret = tmp_path / "secret.json"
    shutil.copy(llama / "config.json", secret)
    (llama / "config.json").unlink()
    (llama / "config.json").symlink_to(secret)
    assert "links out of the directory" in refusal(llama)


def test_import_follows_links_of_the_hub_cache(llama, tmp_path):
    snapshot = tmp_path / "models--user--name" / "snapshots" / "abc"
    blobs = tmp_path / "models--user--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in llama.iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / file.name, snapshot))
    assert miniformer.from_hf(snapshot).model.config.n_layers == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", "config.json: not JSON"),
        ("config.json", "[" * 100_000, "config.json: not JSON"),
        ("config.json", "[]", "config.json: must hold an object, not a list"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer.json"),
        ("generation_config.json", '{"max_new_tokens": -1}', "max_new_tokens must be at least 1"),
        (
            "1_Pooling/config.json",
            '{"pooling_mode_weightedmean_tokens": true}',
            "mean_tokens is not supp",
        ),
    ],
)
def test_import_rejects_invalid_companion_files(llama, name, text, message):
    (llama / name).parent.mkdir(exist_ok=True)
    (llama / name).write_text(text)
    if name.startswith("1_"):
        config_with(llama, architectures=["LlamaModel"], tie_word_embeddings=True)
        weights_with(llama, lambda w: w.pop("lm_head.weight"))
    assert message in refusal(llama)


def test_import_rejects_a_tokenizer_of_another_model(llama):
    tokenizer = miniformer.Tokenizer.train("byte", ["abc"], None)
    tokenizer.save(llama / "tokenizer.json")
    assert "more than the model's 40; they belong to different models" in refusal(llama)


def test_import_rejects_a_directory_that_is_no_checkpoint(tmp_path):
    assert "no such directory" in refusal(tmp_path / "none")
    assert "config.json is missing; is it a Hugging Face model?" in refusal(tmp_path)
    model = miniformer.Transformer(TransformerConfig(**SIZES))
    model.save_pretrained(tmp_path / "ours")
    assert "is a Miniformer model directory already" in refusal(tmp_path / "ours")


@pytest.mark.catches("export_overwrites_a_full_directory")
def test_import_and_export_overwrite_nothing(llama, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for call in (miniformer.import_hf, miniformer.to_hf):
        with pytest.raises(UserError, match="exists and is not empty; name another directory"):
            call(llama, out)
    assert (out / "mine.txt").read_text() == "mine"


def test_import_that_cannot_write_is_refused(llama, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out: cannot be written: Not a directory"):
        miniformer.import_hf(llama, tmp_path / "file" / "out")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    miniformer.import_hf(llama, ".")  # an existing folder, by any name
    assert miniformer.load(tmp_path / "empty").model.config.n_layers == 2
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(api, "write_tensors", mock.Mock(side_effect=full))
    with pytest.raises(UserError, match="out: cannot be written: No space left on device"):
        miniformer.import_hf(llama, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_import_that_fails_leaves_no_files(llama, tmp_path):
    (llama / "generation_config.json").write_text('{"max_new_tokens": -1}')
    with pytest.raises(UserError):
        miniformer.import_hf(llama, tmp_path / "out")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["llama"]


@pytest.mark.catches("any_model_fits_the_first_family")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"qk_norm": "projection", "logit_softcap": 3.0}, "logit_softcap=3.0"),
        ({"attention_sinks": True}, "attention_sinks=True"),
        ({"norm_placement": "output", "parallel_residual": False}, "norm"),
        ({"input_dim": 3}, "input_dim=3"),
    ],
)
def test_export_names_parts_that_no_family_has(fields, expected, tmp_path):
    values = architecture_config("llama", **SIZES, d_ff=24) | fields
    model = miniformer.Transformer(TransformerConfig(**values))
    with pytest.raises(UserError) as caught:
        miniformer.to_hf(model, tmp_path / "out")
    message = str(caught.value)
    assert "no Hugging Face family fits this model; the nearest is" in message
    assert expected in message


def test_export_to_a_given_family(tmp_path):
    model = miniformer.Transformer(
        TransformerConfig(**architecture_config("llama", **SIZES, d_ff=24))
    )
    miniformer.to_hf(model, tmp_path / "out", family="mistral")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "mistral"
    with pytest.raises(UserError, match="family 'mistrall' is none of"):
        miniformer.to_hf(model, tmp_path / "other", family="mistrall")


def test_import_and_export_keep_the_dtype(tmp_path):
    model = miniformer.Transformer(
        TransformerConfig(**architecture_config("llama", **SIZES, d_ff=24))
    )
    miniformer.to_hf(model.bfloat16(), tmp_path / "theirs")
    created = miniformer.import_hf(tmp_path / "theirs", tmp_path / "ours")
    assert created.n_bytes - 2 * model.config.num_params() < 4000  # the header
    reloaded = miniformer.load(tmp_path / "ours").model
    assert all(weight.dtype == torch.bfloat16 for weight in reloaded.parameters())
    assert all(
        torch.equal(first, second)
        for first, second in zip(reloaded.parameters(), model.parameters(), strict=True)
    )


@pytest.mark.catches("import_ignores_max_seq_len", "imported_model_has_an_empty_card")
def test_hf_commands(llama, tmp_path, capsys):
    assert cli.main(["import", str(llama), str(tmp_path / "ours"), "--max_seq_len", "20"]) == 0
    assert "LlamaForCausalLM: 2 layers of width 16" in capsys.readouterr().out
    assert miniformer.load(tmp_path / "ours").model.config.max_seq_len == 20
    card = (tmp_path / "ours" / "README.md").read_text(encoding="utf-8")
    assert "Hugging Face LlamaForCausalLM" in card
    assert cli.main(["export", str(tmp_path / "ours"), str(tmp_path / "out")]) == 0
    first, second = (load_file(path / "model.safetensors") for path in (llama, tmp_path / "out"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for arguments, message in (
        (["import", str(tmp_path / "none"), "x"], "no such directory"),
        (["import", str(llama), str(tmp_path / "ours")], "exists and is not empty"),
        (["import", str(llama), "x", "--custom_code", "run"], "must be refuse or ignore"),
        (["import", str(llama), "x", "--max_seq_len", "0"], "max_seq_len must be at least 1"),
        (["import", str(llama), "x", "--revision", "main"], "needs a name on the hub"),
        (
            ["export", str(tmp_path / "ours"), "x", "--to", "caffe"],
            "unknown exporter 'caffe'; known: hf",
        ),
        (["import", str(llama)], "error: missing: out; see --help"),
        (["export", str(llama), "x"], "is a Hugging Face model; convert it"),
    ):
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_import_fuzzing_finds_no_crash():
    """A few cases; `tests.fuzz` tries many more."""
    pytest.importorskip("transformers")
    _, findings = fuzz.run(300, chosen_seed() or 0)
    assert findings == []
