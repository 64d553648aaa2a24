"""Adapter directories: what is written is read, and what does not fit is refused."""

import io
import json
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import miniformer
from miniformer import Pipeline, TransformerConfig, UserError, adapters, cli
from miniformer.adapters.directory import read_adapter
from miniformer.adapters.exchange.hf_names import to_native
from miniformer.adapters.exchange.peft_export import write_peft
from miniformer.adapters.files import check_base
from miniformer.adapters.settings import LoraSettings
from miniformer.config.architectures import architecture_config
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.registry import get
from miniformer.tasks.embedding import EmbeddingTask
from tests import fuzz
from tests.fuzz import HOSTILE
from tests.kit import tiny_model
from tests.kit.seeds import chosen_seed
from tests.unit.adapters.test_modules import IDS, randomize


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, and adapters of it by method."""
    path = tmp_path_factory.mktemp("adapters")
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    task = get("task", "language_modeling")()
    Pipeline(model, tokenizer, task).save(path / "base")
    for name, method, options in (
        ("lora", "lora", {"r": 3, "alpha": 7, "rank_pattern": {"v_proj": 2}}),
        ("pissa", "lora", {"r": 2, "init": "pissa", "alpha": 3}),
        ("dora", "dora", {"targets": ["q_proj", "down_proj"]}),
        ("ia3", "ia3", {}),
        ("bottleneck", "bottleneck", {"size": 3}),
        ("bitfit", "bitfit", {}),
        ("saved", "lora", {"targets": ["o_proj"], "modules_to_save": ["final_norm"]}),
    ):
        pipeline = miniformer.load(path / "base")
        adapters.add(pipeline.model, method, **options)
        randomize(pipeline.model)
        with torch.no_grad():
            for parameter in pipeline.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        adapters.save(pipeline, path / name, base=path / "base")
        torch.save(pipeline.model.eval()(IDS), path / f"{name}.pt")
    return path


METHODS = ("lora", "pissa", "dora", "ia3", "bottleneck", "bitfit", "saved")


@pytest.mark.catches("pissa_is_written_without_its_start", "alpha_is_written_as_the_rank")
@pytest.mark.parametrize("name", METHODS)
def test_adapter_directory_is_read_as_it_was_written(folder, name, tmp_path):
    pipeline = miniformer.load(folder / "base", adapter=folder / name)
    expected = torch.load(folder / f"{name}.pt")
    torch.testing.assert_close(pipeline.model(IDS), expected, rtol=0, atol=1e-5)
    base = miniformer.load(folder / "base").model
    with adapters.disable(pipeline.model):
        assert torch.equal(pipeline.model(IDS), base(IDS))
    adapters.save(pipeline, tmp_path / "again", base=folder / "base")
    first, again = (
        load_file(path / "adapter_model.safetensors")
        for path in (folder / name, tmp_path / "again")
    )
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    pipeline.save(tmp_path / "model")
    torch.testing.assert_close(miniformer.load(tmp_path / "model").model(IDS), expected)


def test_directory_is_in_the_format_of_peft(folder):
    config = json.loads((folder / "lora" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 7, {"v_proj": 2})
    assert config["target_modules"] == [
        "down_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
    tensors = load_file(folder / "lora" / "adapter_model.safetensors")
    start = "base_model.model.layers.0.attention"
    assert tensors[f"{start}.q_proj.lora_A.weight"].shape == (3, 16)
    assert tensors[f"{start}.v_proj.lora_B.weight"].shape == (16, 2)
    assert "generation_config.json" in {path.name for path in (folder / "lora").iterdir()}
    dora = load_file(folder / "dora" / "adapter_model.safetensors")
    assert dora[f"{start}.q_proj.lora_magnitude_vector"].shape == (16,)
    ia3 = load_file(folder / "ia3" / "adapter_model.safetensors")
    assert ia3[f"{start}.k_proj.ia3_l"].shape == (16, 1)
    assert ia3["base_model.model.layers.0.feed_forward.down_proj.ia3_l"].shape == (1, 64)


def refused(folder, adapter, message, base="base"):
    with pytest.raises(UserError, match=message) as error:
        miniformer.load(folder / base, adapter=adapter)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.catches("adapter_of_another_base_is_accepted", "hash_of_the_base_is_of_its_names")
def test_adapter_of_another_base_is_refused(folder, tmp_path):
    pipeline = miniformer.load(folder / "base")
    with torch.no_grad():
        pipeline.model.embedding.weight[0, 0] += 1
    pipeline.save(tmp_path / "other")
    refused(tmp_path, folder / "lora", "its base is 'base' with the SHA-256", base="other")


def changed(folder, tmp_path, name="lora", *, config=None, tensors=None):
    """A copy of an adapter with other content."""
    path = tmp_path / "changed"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder / name, path)
    if config is not None:
        values = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps({**values, **config}))
    if tensors is not None:
        file = path / "adapter_model.safetensors"
        own = load_file(file)
        tensors(own)
        save_file(own, file)
    return path


def test_unfit_adapters_are_refused(folder, tmp_path):
    key = "base_model.model.layers.0.attention.q_proj.lora_A.weight"
    for config, message in (
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING'"),
        ({"r": 5}, "rank at .* is 5, but its tensors have 3"),
        ({"r": "5"}, "r must be an integer"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"init_lora_weights": "pissa"}, "changes the weights of the base"),
        ({"rank_pattern": {"(a|a)*b": 2}}, "is a regular expression"),
        ({"rank_pattern": [2]}, "rank_pattern must be an object"),
        ({"lora_alpha": float("nan")}, "alpha must be"),
    ):
        refused(folder, changed(folder, tmp_path, config=config), message)
    for change, message in (
        (lambda t: t.pop(key.replace("_A", "_B")), "lora_B.weight is missing"),
        (lambda t: t.update({key: torch.zeros(3, 9)}), r"q_proj.lora_A.weight is \[3, 9\]"),
        (lambda t: t.update({"a.b": torch.zeros(1)}), "no tensor of an adapter of peft"),
        (lambda t: t.update({key.replace(".0.", ".7."): torch.zeros(3, 16)}), "layers.7"),
        (lambda t: t.update({key: torch.zeros(3, 16, dtype=torch.int64)}), "int64"),
        (lambda t: t.clear(), "no tensors"),
    ):
        refused(folder, changed(folder, tmp_path, tensors=change), message)


def test_broken_files_are_refused_and_pickled_ones_too(folder, tmp_path):
    path = changed(folder, tmp_path)
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:90])
    refused(folder, path, "not a readable safetensors file")
    file.unlink()
    refused(folder, path, "adapter_model.safetensors is missing")
    (path / "adapter_model.bin").write_bytes(b"\x80\x02")
    refused(folder, path, "pickled")
    for content in ("[]", "{", "[" * 100_000):
        path = changed(folder, tmp_path)
        (path / "adapter_config.json").write_text(content)
        refused(folder, path, "adapter_config.json")
    refused(folder, tmp_path / "none", "no such file")
    path = changed(folder, tmp_path)
    (path / "miniformer_adapter.json").write_text('{"format_version": "9"}')
    refused(folder, path, "format version '9'")


def test_adapters_with_heads_of_their_own_share_a_base(folder, tmp_path):
    """Two classifiers of different sizes on the base of a language model."""
    expected = {}
    for name, classes in (("three", 3), ("two", 2)):
        model = miniformer.load(folder / "base").model
        fields = {**model.config.to_dict(), "output_dim": classes, "pooling": "mean"}
        head = tiny_model(classes, **{key: fields[key] for key in ("output_dim", "pooling")}).head
        model.head, model.config = head, TransformerConfig.from_dict(fields)
        adapters.add(model, targets=["q_proj"])
        randomize(model)
        adapters.save(
            Pipeline(model.eval(), None, EmbeddingTask(input_kind="text")),
            tmp_path / name, base=folder / "base",
        )  # fmt: skip
        (tmp_path / name / "task.json").unlink()
        expected[name] = model.classify(IDS)
    pipeline = miniformer.load(folder / "base")
    before = pipeline.model(IDS)
    for name in expected:
        adapters.load(pipeline, tmp_path / name, name=name)
    for name in ("three", "two", "three"):
        adapters.use(pipeline, name)
        torch.testing.assert_close(pipeline.model.classify(IDS), expected[name])
    adapters.use(pipeline, None)
    assert torch.equal(pipeline.model(IDS), before)
    with pytest.raises(UserError, match="rows cannot differ"):
        adapters.use(pipeline.model, ["two", "three"])


@pytest.mark.catches(
    "mixed_adapters_have_equal_weights", "merged_directory_is_the_base",
    "weights_of_mix_are_not_passed",
)  # fmt: skip
def test_commands_merge_list_and_mix(folder, tmp_path, capsys):
    assert cli.main(["adapter", "list", str(folder / "lora"), str(folder / "ia3")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "lora, " in out[0]
    assert "base base" in out[1]
    merged = tmp_path / "merged"
    arguments = ["merge", str(folder / "base"), str(folder / "lora"), str(merged)]
    assert cli.main(["adapter", *arguments]) == 0
    expected = torch.load(folder / "lora.pt")
    model = miniformer.load(merged).model
    assert not model.transforms
    torch.testing.assert_close(model(IDS), expected, rtol=0, atol=1e-5)
    mixed = tmp_path / "mixed"
    parts = [str(folder / "lora"), str(folder / "pissa")]
    assert cli.main(["adapter", "mix", str(mixed), *parts, "--weights", "[2, -0.5]"]) == 0
    base = miniformer.load(folder / "base").model.layers[0].attention.q_proj.weight
    changes = [
        miniformer.load(folder / "base", adapter=path)
        .model.layers[0].attention.q_proj.effective_weight() - base
        for path in (folder / "lora", folder / "pissa", mixed)
    ]  # fmt: skip
    torch.testing.assert_close(changes[2], 2 * changes[0] - 0.5 * changes[1], rtol=1e-4, atol=1e-5)
    assert cli.main(["adapter", "mix", str(tmp_path / "x"), str(folder / "ia3")]) == 2
    assert "only plain LoRA" in capsys.readouterr().err
    assert cli.main(["generate", str(folder / "base"), "a", "--adapter", "none"]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.catches("chat_has_no_adapter", "template_of_an_adapter_is_lost")
def test_chat_has_the_adapter_and_its_template(folder, tmp_path, capsys, monkeypatch):
    pipeline = miniformer.load(folder / "base")
    adapters.add(pipeline.model, targets=["q_proj"])
    randomize(pipeline.model)
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    pipeline.task = get("task", "language_modeling")(chat_template=template, prepend_bos=False)
    adapters.save(pipeline, tmp_path / "chat", base=folder / "base")
    assert (tmp_path / "chat" / "chat_template.jinja").read_text() == template
    assert "chat_template" not in json.loads((tmp_path / "chat" / "task.json").read_text())
    arguments = ["chat", str(folder / "base"), "--temperature", "0", "--max_new_tokens", "4"]
    for adapter, code in ((tmp_path / "chat", 0), (folder / "lora", 2)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
        assert cli.main([*arguments, "--adapter", str(adapter)]) == code
        captured = capsys.readouterr()
        if code == 0:
            alone = miniformer.load(folder / "base", adapter=adapter)
            answer = alone.generate("[hi]", temperature=0, max_new_tokens=4)
            assert captured.out == f"{answer}\n"
    assert "a base model without a chat template" in captured.err


@pytest.mark.catches("fused_products_share_the_first_rows")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_names_of_a_family_and_back(family, tmp_path):
    """Products of q, k and v become one of the stacked ranks, with the same change of weights."""
    fields = {"max_seq_len": 32, "dropout": 0.0, "vocab_size": 31, "d_model": 16, "n_heads": 4}
    config = TransformerConfig(**architecture_config(family, n_layers=1, **fields))
    torch.manual_seed(0)
    model = miniformer.Transformer(config)
    adapters.add(model, r=2, alpha=5, rank_pattern={"k_proj": 3}, targets=["q_proj", "k_proj"])
    randomize(model)
    pipeline = Pipeline(model, None, EmbeddingTask(input_kind="text"))
    write_peft(pipeline, tmp_path / "out", family=family)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    own = {key.rpartition(".lora")[0]: x for key, x in tensors.items() if "lora_A" in key}
    if family == "gpt2":
        name = "base_model.model.transformer.h.0.attn.c_attn"
        assert {key: len(x) for key, x in own.items()} == {name: 5}
        rank, alpha = 5, config["alpha_pattern"].get(name.split("model.", 2)[2], None)
        alpha = config["lora_alpha"] if alpha is None else alpha
        change = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] * alpha / rank
        rows = change.split(16)
        attention = model.layers[0].attention
        for module, actual in ((attention.q_proj, rows[0]), (attention.k_proj, rows[1])):
            expected = module.effective_weight() - module.base_weight()
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
        assert not rows[2].any()
    else:
        assert sorted(key.rpartition(".")[2] for key in own) == ["k_proj", "q_proj"]


@pytest.mark.catches("names_of_a_backbone_keep_their_prefix")
def test_tensor_without_a_place_is_named(tmp_path):
    """A head of peft that the base lacks is named, and not a module that the base has."""
    fields = {"max_seq_len": 32, "dropout": 0.0, "vocab_size": 31, "d_model": 16, "n_heads": 4}
    config = TransformerConfig(**architecture_config("llama", n_layers=1, **fields))
    model = miniformer.Transformer(config)
    settings, tensors = LoraSettings(), {"zebra.weight": torch.ones(2, 16)}
    for part in ("q_proj.lora_A", "q_proj.lora_B"):
        for prefix in ("model.", ""):
            name = f"{prefix}layers.0.self_attn.{part}.weight"
            with pytest.raises(UserError, match=r"zebra\.weight is no module of this base") as e:
                to_native(model, None, settings, {name: torch.ones(1, 16), **tensors}, tmp_path)
            assert "LlamaForCausalLM in the names of transformers" in str(e.value)


@pytest.mark.catches("exported_pissa_has_half_the_alpha", "family_of_an_exported_adapter_is_lost")
def test_exported_adapter_of_pissa_has_the_change_of_the_adapter(tmp_path):
    tokenizer = Tokenizer.train("byte", [])
    fields = {"max_seq_len": 32, "dropout": 0.0, "d_model": 16, "n_heads": 4}
    fields["vocab_size"] = tokenizer.vocab_size
    config = TransformerConfig(**architecture_config("gpt2", n_layers=1, **fields))
    torch.manual_seed(0)
    model = adapters.add(miniformer.Transformer(config), init="pissa", r=2, alpha=3)
    randomize(model)
    task = get("task", "language_modeling")()
    Pipeline(model, tokenizer, task).save(tmp_path / "model")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "model"), str(out), "--to", "peft", "--family"]
    assert cli.main(["export", *arguments, "gpt2"]) == 0
    tensors = load_file(out / "adapter_model.safetensors")
    values = json.loads((out / "adapter_config.json").read_text())
    name = "transformer.h.0.mlp.c_fc"
    alpha = values["alpha_pattern"].get(name, values["lora_alpha"])
    rank = values["rank_pattern"].get(name, values["r"])
    assert rank == 4
    product = [tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "BA"]
    up = model.layers[0].feed_forward.up_proj
    change = up.effective_weight() - up.base_weight()
    torch.testing.assert_close(product[0] @ product[1] * alpha / rank, change, rtol=1e-5, atol=1e-5)
    arguments[1] = str(tmp_path / "unknown")
    assert cli.main(["export", *arguments, "unknown"]) == 2


def test_fuzzing_of_adapters_finds_no_crash():
    """A few cases; `tests.fuzz` tries many more, with imports."""
    outcomes, findings = fuzz.run(60, chosen_seed() or 0, make=fuzz.adapter_directories)
    assert findings == []
    assert outcomes["refused"] > 20


def test_lying_files_are_refused_by_the_command_without_memory(folder, tmp_path, capsys):
    """Sizes that a header or a config claims are compared with the file before they are used."""
    key = "base_model.model.layers.0.attention.q_proj.lora_A.weight"
    file = (folder / "lora" / "adapter_model.safetensors").read_bytes()
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    header[key] |= {"shape": [2**20, 2**20]}
    lying = json.dumps(header).encode()
    wide = {"r": 2**40, "rank_pattern": {}, "target_modules": ["q_proj"]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content, config in (
        (len(lying).to_bytes(8, "little") + lying + file[8 + length :], None),  # a shape
        ((2**62).to_bytes(8, "little") + file[8:], None),  # a header that is huge
        (file[: len(file) // 2], None),
        (b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.", None),
        (file, wide),
        (file, {"target_modules": {"a": 1}, "peft_type": ["LORA"]}),
    ):
        path = changed(folder, tmp_path, config=config)
        (path / "adapter_model.safetensors").write_bytes(content)
        assert cli.main(["generate", str(folder / "base"), "a", "--adapter", str(path)]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1, err
        assert "changed" in err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.catches("settings_of_components_have_any_form")
@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"transforms": [[]]}, "transforms must be a name, or an object with a name as type"),
        ({"transforms": [{}]}, "transforms must be a name, or an object with a name as type"),
        ({"transforms": [5]}, "transforms must be a name, or an object with a name as type"),
    ],
)
def test_broken_descriptions_are_refused_in_one_line(folder, tmp_path, capsys, info, message):
    path = changed(folder, tmp_path)
    file = path / "miniformer_adapter.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **info}))
    assert cli.main(["generate", str(folder / "base"), "a", "--adapter", str(path)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.catches("heads_of_any_size_are_made")
def test_a_head_is_not_made_before_its_tensors_are_compared(folder, tmp_path):
    """A config that claims 2^40 outputs would need 64 TB."""
    path = changed(folder, tmp_path)
    file = path / "miniformer_adapter.json"
    info = json.loads(file.read_text())
    info["model_config"]["output_dim"] = 2**40
    file.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"head.weight is neither in it nor in the base"):
        miniformer.load(folder / "base", adapter=path)
    tensors = {
        **load_file(path / "adapter_model.safetensors"),
        "base_model.model.head.weight": torch.ones(2, 16),
    }
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"head.weight is \(2, 16\), but its config needs"):
        miniformer.load(folder / "base", adapter=path)


@pytest.mark.parametrize("name", ["lora", "ia3", "bottleneck"])
def test_hostile_values_are_read_or_refused(folder, name, tmp_path):
    """Each value of both files in turn; another exception than a UserError fails."""
    path, refusals = changed(folder, tmp_path, name), 0
    for file in ("adapter_config.json", "miniformer_adapter.json"):
        original = (path / file).read_text()
        for key in json.loads(original):
            for value in HOSTILE:
                (path / file).write_text(json.dumps({**json.loads(original), key: value}))
                try:
                    check_base(read_adapter(path), folder / "base", "Transformer")
                except UserError:
                    refusals += 1
        (path / file).write_text(original)
    assert refusals > 100
