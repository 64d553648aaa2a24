"""Copies of models for inference: what they share, their types, and who computes with them."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, Tokenizer, Transformer, cli
from miniformer.config import GenerationConfig, UserError
from miniformer.generation.api import GenerationInput, generate
from miniformer.generation.encoding import EncoderCache, encode_sources
from miniformer.generation.inference import inference_model
from miniformer.generation.inputs import PromptBatch
from miniformer.generation.slots import SlotDecoder
from miniformer.runtime.native import build
from miniformer.runtime.rounded import model as module
from miniformer.runtime.rounded.linear import RoundedLinear
from miniformer.runtime.rounded.model import rounded_model
from miniformer.tasks.classification import Classification
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_config, tiny_model
from tests.kit.plugins import int8_layers, lora

SIZES = {"d_model": 32, "d_ff": 64, "causal": False}
IDS = torch.arange(1, 25).view(2, 12)


@pytest.fixture
def instructions(monkeypatch):
    """A processor with instructions for all types; the kernels are the same."""
    monkeypatch.setattr(module, "has_instructions", lambda dtype: True)


def features(model, *inputs):
    with torch.inference_mode():
        return model.features(*inputs)


def distance(actual, expected):
    return float((actual - expected).norm() / expected.norm())


def in_int8(x):
    """Rounds to int8 with a scale per 32 values."""
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((groups / scale).round() * scale).flatten(-2)


def plainly_rounded(model, weights):
    """A float32 model with the rounding of weights and inputs of each linear layer."""
    copied = copy.deepcopy(model)
    for linear in copied.modules():
        if isinstance(linear, nn.Linear):
            rounding = in_int8 if weights == "int8" else lambda x: x.bfloat16().float()
            with torch.no_grad():
                linear.weight.copy_(rounding(linear.weight))
            linear.register_forward_pre_hook(lambda _, inputs, f=rounding: f(inputs[0]))
    return copied


@pytest.mark.catches("rounded_copies_change_the_model")
@pytest.mark.parametrize("weights", ["int8", "bf16"])
@pytest.mark.parametrize("changes", [{}, {"activation": "geglu", "qk_norm": "head"}])
def test_rounded_models_match_a_model_with_rounded_inputs(weights, changes):
    model = tiny_model(**SIZES, **changes)
    before = {name: type(part) for name, part in model.named_modules()}
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    rounded = rounded_model(model, weights)
    actual = features(rounded, IDS, mask)[mask]
    assert distance(actual, features(plainly_rounded(model, weights), IDS, mask)[mask]) < 2e-3
    assert 2e-4 < distance(actual, features(model, IDS, mask)[mask]) < 0.05
    assert before == {name: type(part) for name, part in model.named_modules()}
    assert [*rounded.state_dict()] == [*model.state_dict()]
    assert all(a is b for a, b in zip(rounded.parameters(), model.parameters(), strict=True))
    replaced = [name for name, part in rounded.named_modules() if isinstance(part, RoundedLinear)]
    assert len(replaced) == 2 * (7 if "activation" in changes else 6)
    assert all("layers." in name for name in replaced)


@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_rounded_rows_do_not_depend_on_padding(weights):
    """Sums of attention differ in the last bits, and an input near two integers may be either."""
    rounded = rounded_model(tiny_model(**SIZES), weights)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    padded = features(rounded, IDS, mask)[1, :7]
    assert distance(padded, features(rounded, IDS[1:, :7])[0]) < 5e-3


@pytest.mark.catches("rounded_layers_keep_old_weights")
def test_rounded_layers_are_kept_until_their_weights_change():
    model = tiny_model(**SIZES)
    first = rounded_model(model, "int8")
    matrix = model.layers[0].feed_forward.up_proj
    again = rounded_model(model, "int8")
    assert again.layers[0].feed_forward.up_proj is first.layers[0].feed_forward.up_proj
    before = features(first, IDS)
    with torch.no_grad():
        matrix.weight.mul_(-1)
    assert not torch.equal(features(rounded_model(model, "int8"), IDS), before)
    assert rounded_model(model, "bf16").layers[0].feed_forward.up_proj.weight_dtype == "bf16"


def test_rounded_layers_are_freed_with_their_model():
    model = tiny_model(**SIZES)
    rounded = weakref.ref(rounded_model(model, "int8").layers[0].attention.q_proj)
    assert rounded() is not None
    del model
    gc.collect()
    assert rounded() is None


@pytest.mark.catches("hooks_of_linear_layers_are_passed_over")
def test_custom_parts_stay_as_they_are():
    model = tiny_model(**SIZES)
    first, second = model.layers
    seen = []
    first.attention.q_proj.register_forward_hook(lambda *_: seen.append(1))
    first.attention.k_proj.forward = lambda x: x
    second.feed_forward.up_proj.register_forward_pre_hook(lambda *_: None)
    rounded = rounded_model(model, "int8")
    for name in ("attention.q_proj", "attention.k_proj"):
        assert rounded.layers[0].get_submodule(name) is first.get_submodule(name)
    assert rounded.layers[1].feed_forward.up_proj is second.feed_forward.up_proj
    features(rounded, IDS)
    assert seen == [1]
    adapted = rounded_model(lora(tiny_model(**SIZES)), "int8")
    kinds = {
        name: type(part).__name__ for name, part in adapted.layers[0].attention.named_children()
    }
    assert kinds["q_proj"] == "LoRALinear"
    assert kinds["k_proj"] == "RoundedLinear"


def test_what_has_no_rounded_model(monkeypatch):
    model = tiny_model(**SIZES)
    assert rounded_model(model, "float32") is None
    assert rounded_model(model, "stored") is None  # no matrix has a stored type
    assert inference_model(model, "stored") is model
    narrow = tiny_model(causal=False, d_ff=40)  # 16 and 40 inputs
    with pytest.raises(UserError, match="no float32 matrix of a multiple of 32 inputs"):
        rounded_model(narrow, "int8")
    assert rounded_model(narrow, "bf16") is not None
    with pytest.raises(UserError, match="weight_dtype=int8 needs the native kernels"):
        rounded_model(int8_layers(tiny_model(**SIZES)), "int8")
    with pytest.raises(UserError, match="its weights are on meta, and the kernels are for CPUs"):
        rounded_model(Transformer(tiny_config(**SIZES)).to("meta"), "int8")
    with pytest.raises(UserError, match="autocast is on"), torch.autocast("cpu"):
        rounded_model(model, "int8")
    monkeypatch.setenv("MINIFORMER_KERNELS", "off")
    build.load_library.cache_clear()
    with pytest.raises(UserError, match="needs the native kernels: MINIFORMER_KERNELS is off"):
        rounded_model(tiny_model(**SIZES), "int8")
    build.load_library.cache_clear()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train("byte", [])


def pipeline_of(kind, tokenizer):
    sizes = {**SIZES, "vocab_size": tokenizer.vocab_size, "n_layers": 1}
    if kind == "classifier":
        task = Classification(classes=["a", "b"], input_kind="text")
        return Pipeline(tiny_model(**sizes, output_dim=2), tokenizer, task)
    model = tiny_model(**sizes, pooling="mean")
    return Pipeline(model, tokenizer, EmbeddingTask(input_kind="text"))


@pytest.mark.catches("evaluate_rounds_inputs", "predict_has_float32_weights")
def test_predictions_of_a_quantized_directory_have_the_stored_types(
    tokenizer, tmp_path, capsys, instructions
):
    rows = [{"input": text, "label": label} for text, label in zip("abcd", "abab", strict=True)]
    miniformer.quantize(pipeline_of("classifier", tokenizer), tmp_path / "int8", to="int8")
    loaded = miniformer.load(tmp_path / "int8")
    decoded = Pipeline(copy.deepcopy(loaded.model), tokenizer, loaded.task)
    decoded.model.weight_storage = {}
    expected = loaded.predict("a text", weight_dtype="float32")
    assert expected == decoded.predict("a text")
    assert loaded.predict("a text") == decoded.predict("a text", weight_dtype="int8") != expected
    loss = decoded.evaluate(rows, num_resamples=0).metrics["loss"]
    assert loaded.evaluate(rows, num_resamples=0).metrics["loss"] == loss
    rounded = loaded.evaluate(rows, num_resamples=0, weight_dtype="stored").metrics["loss"]
    assert rounded != loss
    assert rounded == pytest.approx(loss, rel=0.02)
    (tmp_path / "rows.jsonl").write_text('{"input": "a", "label": "a"}\n')
    command = ["evaluate", str(tmp_path / "int8"), str(tmp_path / "rows.jsonl"), "--json"]
    losses = []
    for flags in ([], ["--weight_dtype", "int8"]):
        assert cli.main([*command, *flags]) == 0
        losses.append(capsys.readouterr().out)
    assert losses[0] != losses[1]
    answers = []
    for flags in ([], ["--weight_dtype", "stored"], ["--weight_dtype", "float32"]):
        command = ["predict", str(tmp_path / "int8"), "a text", "--scores", "all", *flags]
        assert cli.main(command) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]
    assert cli.main(["predict", str(tmp_path / "int8"), "a", "--weight_dtype", "int7"]) == 2
    assert "int7" in capsys.readouterr().err


@pytest.mark.catches("integers_are_slower_than_float32")
def test_stored_types_need_instructions(tokenizer, tmp_path, monkeypatch):
    """Without them float32 is as fast or faster, and rounds nothing."""
    miniformer.quantize(pipeline_of("encoder", tokenizer), tmp_path / "int8", to="int8")
    loaded = miniformer.load(tmp_path / "int8")
    asked = []
    monkeypatch.setattr(module, "has_instructions", lambda dtype: asked.append(dtype) or False)
    assert inference_model(loaded.model, "stored") is loaded.model
    assert set(asked) == {"int8"}
    assert inference_model(loaded.model, "int8") is not loaded.model


def test_embeddings_have_the_stored_types(tokenizer, tmp_path, instructions):
    miniformer.quantize(pipeline_of("encoder", tokenizer), tmp_path / "int8", to="int8")
    loaded = miniformer.load(tmp_path / "int8")
    plain = loaded.embed(["a text"], weight_dtype="float32")
    assert 0 < distance(loaded.embed(["a text"]), plain) < 0.05
    assert torch.equal(loaded.embed(["a text"]), loaded.embed(["a text"], weight_dtype="int8"))
    loaded.save(tmp_path / "again")
    names = ("model.safetensors", "quantization.json")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "int8" / name).read_bytes()


def test_the_loss_of_texts_is_float32(tokenizer):
    model = tiny_model(**{**SIZES, "causal": True, "vocab_size": tokenizer.vocab_size})
    pipeline = Pipeline(model, tokenizer, LanguageModeling())
    with pytest.raises(UserError, match="weight_dtype=int8 is for models that predict"):
        pipeline.evaluate([{"text": "a text"}], weight_dtype="int8")
    with pytest.raises(UserError, match="weight_dtype"):
        pipeline.evaluate([{"text": "a text"}], weight_dtype="int7")
    rounded = pipeline.embed(["a text"], weight_dtype="int8")
    assert 0 < distance(rounded, pipeline.embed(["a text"])) < 0.05


SOURCES = [[1, 2, 3, 4, 5], [7, 8], [9, 10, 11]]


@pytest.mark.catches("sources_are_encoded_in_float32")
@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_sources_are_encoded_with_the_type_of_decoding(weights):
    model = tiny_model(model=Seq2SeqTransformer, **SIZES)
    batch = PromptBatch(torch.zeros(1, 1, dtype=torch.long), None, IDS[:1])
    expected = features_of(rounded_model(model, weights))
    with torch.inference_mode():
        (memory,) = encode_sources(model, batch, weight_dtype=weights)
    assert torch.equal(memory.features, expected)
    assert not torch.equal(memory.features, features_of(model))
    options = GenerationConfig(temperature=0.0, max_new_tokens=6, weight_dtype=weights)
    inputs = [GenerationInput([0], source) for source in SOURCES]
    together = [output.tokens for output in generate(model, inputs, options)]
    assert together == [generate(model, [item], options)[0].tokens for item in inputs]


def features_of(model):
    with torch.inference_mode():
        return model.encode(IDS[:1]).features


@pytest.mark.catches("encoder_outputs_of_another_type_are_kept")
def test_encoder_outputs_belong_to_a_type():
    model = tiny_model(model=Seq2SeqTransformer, **SIZES)
    cache, source = EncoderCache(), [(1, 2, 3)]
    with torch.inference_mode():
        plain, rounded = (
            cache.encode(model, source, kind).features for kind in ("float32", "int8")
        )
        assert cache.num_encoded == 2
        assert torch.equal(cache.encode(model, source, "int8").features, rounded)
    assert cache.num_encoded == 2
    assert 0 < distance(rounded, plain) < 0.05


def test_slots_encode_with_the_type_of_decoding(monkeypatch):
    model = tiny_model(model=Seq2SeqTransformer, **SIZES)
    options = GenerationConfig(temperature=0.0, max_new_tokens=6, weight_dtype="int8")
    decoder = SlotDecoder(model, options, num_slots=1)
    seen = []
    make = module.rounded_model
    monkeypatch.setattr(
        "miniformer.generation.encoding.inference_model",
        lambda model, dtype: seen.append(dtype) or make(model, dtype) or model,
    )
    decoder.add(GenerationInput([0], SOURCES[0]))
    assert seen == ["int8"]


def test_rounding_keeps_the_accuracy_of_a_classifier():
    """The class is the more frequent one of two tokens: at most 0.3 points fewer."""
    torch.manual_seed(0)
    model = Transformer(tiny_config(vocab_size=4, output_dim=2, n_layers=1, **SIZES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def examples(count):
        ids = torch.randint(0, 4, (count, 15))
        return ids, ((ids == 0).sum(1) > (ids == 1).sum(1)).long()

    for _ in range(150):
        ids, labels = examples(64)
        loss = nn.functional.cross_entropy(model.classify(ids), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids, labels = examples(4000)
    model.eval()

    def accuracy(model):
        with torch.inference_mode():
            return float((model.classify(ids).argmax(1) == labels).double().mean())

    exact = accuracy(model)
    assert exact > 0.9
    for weights in ("int8", "bf16"):
        assert accuracy(rounded_model(model, weights)) >= exact - 0.003
