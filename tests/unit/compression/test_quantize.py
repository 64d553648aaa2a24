"""Directories of models in fewer bits."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, Tokenizer, Transformer, cli
from miniformer.checkpoint.stored_types import Integers
from miniformer.config import GenerationConfig, UserError
from miniformer.generation.api import GenerationInput, generate
from miniformer.model.transforms import apply_transforms
from miniformer.runtime.native.engine import get_engine
from miniformer.runtime.native.weights import quantize_int8, smallest_exact_dtype
from miniformer.tasks.classification import Classification
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq
from tests import fuzz
from tests.kit import VERSE, tiny_model
from tests.kit.plugins import registered
from tests.kit.seeds import chosen_seed

IDS = torch.arange(1, 11)[None]
SIZES = {"d_model": 32, "n_layers": 1, "d_ff": 64}


@pytest.fixture(scope="module")
def pipelines():
    """A pipeline of each kind of model."""
    tokenizer = Tokenizer.train("byte", [])
    sizes = {**SIZES, "vocab_size": tokenizer.vocab_size}
    greedy = GenerationConfig(temperature=0.0, max_new_tokens=8)
    decoder = tiny_model(**sizes)
    translator = tiny_model(model=Seq2SeqTransformer, causal=False, **sizes)
    classifier = tiny_model(causal=False, output_dim=2, **sizes)
    encoder = tiny_model(causal=False, pooling="mean", **sizes)
    classes = Classification(classes=["a", "b"], input_kind="text")
    return {
        "decoder": Pipeline(decoder, tokenizer, LanguageModeling(), greedy),
        "seq2seq": Pipeline(translator, tokenizer, Seq2Seq(), greedy),
        "classifier": Pipeline(classifier, tokenizer, classes),
        "encoder": Pipeline(encoder, tokenizer, EmbeddingTask(input_kind="text")),
    }


def dequantized(model, bits):
    """The model with the weights that its integers stand for."""
    weights = dict(model.state_dict())
    for name, weight in weights.items():
        if weight.dim() == 2 and not name.startswith("head."):
            own = bits if "layers." in name else 8
            weights[name] = Integers.decode(Integers.encode(weight, bits=own), bits=own)
    result = type(model)(model.config).eval()
    result.load_state_dict(weights)
    return result


def answer(name, pipeline):
    """Answers of a pipeline to texts."""
    if name == "classifier":
        return pipeline.predict([VERSE[:20], "abc"], weight_dtype="float32")
    if name == "encoder":
        return pipeline.embed([VERSE[:20], "abc"], weight_dtype="float32").tolist()
    return pipeline.generate(["The cat", "a"], weight_dtype="float32")


@pytest.mark.catches("embeddings_of_int4_have_four_bits", "quantize_changes_the_given_model")
@pytest.mark.parametrize("to", ["int8", "int4"])
@pytest.mark.parametrize("name", ["decoder", "seq2seq", "classifier", "encoder"])
def test_a_directory_computes_with_the_decoded_weights(name, to, pipelines, tmp_path):
    pipeline = pipelines[name]
    before = {key: value.clone() for key, value in pipeline.model.state_dict().items()}
    miniformer.quantize(pipeline, tmp_path / "out", to=to)
    assert not pipeline.model.weight_storage
    after = pipeline.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    loaded = miniformer.load(tmp_path / "out")
    expected = dequantized(pipeline.model, 4 if to == "int4" else 8)
    weights = expected.state_dict()
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value, weights[key]), key
    inputs = (IDS, IDS) if name == "seq2seq" else (IDS,)
    assert torch.equal(loaded.model(*inputs), expected(*inputs))
    reference = Pipeline(expected, pipeline.tokenizer, pipeline.task, pipeline.generation)
    assert answer(name, loaded) == answer(name, reference)
    loaded.save(tmp_path / "again")
    for file in ("model.safetensors", "quantization.json", "config.json", "task.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize(("to", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_short_floats(to, dtype, pipelines, tmp_path):
    model = pipelines["decoder"].model
    result = miniformer.quantize(pipelines["decoder"], tmp_path / "out", to=to)
    weights = Transformer.from_pretrained(tmp_path / "out").state_dict()
    for key, value in model.state_dict().items():
        expected = value.to(dtype).float() if value.dim() == 2 else value
        assert torch.equal(weights[key], expected), key
    assert result.unchanged == ()
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["layers.0.attention.q_proj.values"].dtype == dtype


def test_kernels_have_the_stored_integers(pipelines, tmp_path):
    miniformer.quantize(pipelines["decoder"], tmp_path / "out", to="int8")
    model = miniformer.load(tmp_path / "out").model
    engine_of(model, "int8")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    values, scales = quantize_int8(model.embedding.weight.detach())
    assert torch.equal(values, stored["embedding.values"])
    assert torch.equal(scales, stored["embedding.scales"])


def engine_of(model, dtype):
    try:
        return get_engine(model, dtype)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.catches("stored_types_are_not_decoded_with", "trained_weights_are_rounded")
@pytest.mark.parametrize("to", ["int8", "int4", "bf16"])
def test_decoding_uses_the_stored_types(to, pipelines, tmp_path):
    miniformer.quantize(pipelines["decoder"], tmp_path / "out", to=to)
    model = miniformer.load(tmp_path / "out").model
    assert GenerationConfig().weight_dtype == "stored"
    converted = engine_of(model, to)
    nbytes, head = converted.nbytes, converted._native_weights.model.head.kind
    stored = engine_of(model, "stored")
    assert stored.nbytes == nbytes
    assert stored._native_weights.model.head.kind == head
    with torch.no_grad():  # a weight that was trained since then is not rounded
        model.layers[0].feed_forward.down_proj.weight[0] *= 1.01
    trained = engine_of(model, "stored")
    assert trained.nbytes > nbytes
    assert trained.nbytes < engine_of(model, "float32").nbytes


@pytest.mark.catches("stored_heads_have_eight_bits")
def test_a_head_of_four_bits_is_decoded_exactly():
    model = tiny_model(**SIZES, tie_embeddings=False)
    with torch.no_grad():
        model.head.weight.copy_(Integers.decode(Integers.encode(model.head.weight, 4), 4))
    model.weight_storage = {"head": {"type": "integers", "bits": 4}}
    kinds = [engine_of(model, x)._native_weights.model.head.kind for x in ("stored", "int4")]
    assert kinds == [3, 2]
    inputs = [GenerationInput([1, 2, 3])]
    results = [
        generate(model, inputs, GenerationConfig(max_new_tokens=4, temperature=0.0, cache_kind=x))
        for x in (None, "full")
    ]
    assert results[0][0].tokens == results[1][0].tokens
    assert results[0][0].logprobs == pytest.approx(results[1][0].logprobs, abs=0.02)


def test_fused_matrices_of_different_types_stay_exact():
    model = tiny_model(**SIZES)
    q_proj, k_proj = model.layers[0].attention.q_proj, model.layers[0].attention.k_proj
    with torch.no_grad():
        for linear, bits in ((q_proj, 8), (k_proj, 4)):
            linear.weight.copy_(Integers.decode(Integers.encode(linear.weight, bits), bits))
    pair = torch.cat((q_proj.weight, k_proj.weight)).detach()
    dtypes = [smallest_exact_dtype(x) for x in (q_proj.weight, k_proj.weight, pair)]
    assert dtypes == ["int8", "int4", "float32"]
    short = torch.randn(8, 24).bfloat16().float()  # no multiple of 32 columns
    assert smallest_exact_dtype(short) == "bf16"


def test_what_stays_as_it_is(tmp_path):
    model = tiny_model(
        causal=False, input_dim=3, output_dim=2, position="learned", d_model=32, d_ff=40
    )
    result = miniformer.quantize(model, tmp_path / "out", to="int8")
    entries = json.loads((tmp_path / "out" / "quantization.json").read_text())["matrices"]
    assert set(result.unchanged) >= {
        "embedding", "head", "layers.0.feed_forward.down_proj", "layers.1.feed_forward.down_proj",
    }  # fmt: skip
    assert not entries.keys() & set(result.unchanged)
    assert all(name.startswith("layers.") for name in entries)
    assert "layers.1.feed_forward.up_proj" in entries
    assert entries["layers.0.attention.o_proj"] == {
        "type": "integers", "bits": 8, "tensors": ["scales", "values"], "dtype": "float32",
    }  # fmt: skip


def test_a_model_in_bf16_becomes_exact_in_float32(tmp_path):
    model = tiny_model(**SIZES).bfloat16()
    miniformer.quantize(model, tmp_path / "out", to="int8")
    assert next(model.parameters()).dtype == torch.bfloat16
    loaded = Transformer.from_pretrained(tmp_path / "out")
    assert {x.dtype for x in loaded.parameters()} == {torch.float32}
    loaded.save_pretrained(tmp_path / "again")
    file = "model.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.catches("quantize_measures_no_loss")
def test_the_command_prints_sizes_and_losses(pipelines, tmp_path, capsys):
    pipelines["classifier"].save(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"input": "x{n}", "label": "{"ab"[n % 2]}"}}\n' for n in range(8)))
    flags = ["quantize", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "int8"]
    assert cli.main([*flags, "--data", str(data), "--no-compare"]) == 0
    text = capsys.readouterr().out
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("model", "out")]
    assert sizes[1] < 0.4 * sizes[0]
    losses = [
        miniformer.load(tmp_path / name).evaluate(str(data), num_resamples=0).metrics["loss"]
        for name in ("model", "out")
    ]
    assert f"loss: {losses[0]:.5f} before, {losses[1]:.5f} after" in text
    assert "as they were: head" in text


@pytest.mark.catches("quantized_models_are_rounded_again", "weights_of_all_values_are_stored")
def test_what_is_refused(pipelines, tmp_path):
    model, out = pipelines["decoder"].model, tmp_path / "out"
    with pytest.raises(UserError, match=r"to='int9' is none of int8, .*; did you mean 'int8'"):
        miniformer.quantize(model, out, to="int9")
    with pytest.raises(UserError, match="takes a Pipeline, a model or a model directory, not a in"):
        miniformer.quantize(3, out, to="int8")
    with pytest.raises(UserError, match="data needs a model with its task"):
        miniformer.quantize(model, out, to="int8", data="x.jsonl")
    with pytest.raises(UserError, match="input_field is for data and calibrate; leave it out"):
        miniformer.quantize(pipelines["decoder"], out, to="int8", input_field="x")
    with pytest.raises(UserError, match="no matrix has a multiple of 32 inputs"):
        miniformer.quantize(tiny_model(d_ff=24), out, to="int4")
    with registered():
        adapted = apply_transforms(tiny_model(**SIZES), [{"type": "store_int8"}])
    adapted.weight_storage = {}
    with pytest.raises(UserError, match=r"has transforms \(store_int8\); merge them first"):
        miniformer.quantize(adapted, out, to="int8")
    broken = tiny_model(**SIZES)
    weight = broken.layers[0].feed_forward.up_proj.weight.detach()
    weight[3, 4] = torch.nan
    with pytest.raises(UserError, match=r"layers\.0\.feed_forward\.up_proj: has weights that are"):
        miniformer.quantize(broken, out, to="bf16")
    weight[3, 4] = 1e5
    with pytest.raises(UserError, match=r"has the weight 1e\+05, and fp16 holds 65,504 at most"):
        miniformer.quantize(broken, out, to="fp16")
    assert not list(tmp_path.iterdir())
    miniformer.quantize(model, out, to="int8")
    with pytest.raises(UserError, match=r"is quantized already \(integers\); weights are not"):
        miniformer.quantize(out, tmp_path / "twice", to="int4")
    with pytest.raises(UserError, match="exists and is not empty"):
        miniformer.quantize(model, out, to="int8")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bits", 4, r"cannot be decoded as integers: ValueError: values are torch\.int8"),
        ("bits", 10**9, "bits must be 8 or 4"),
        ("type", "short_float", "cannot be decoded as short_float"),
        ("tensors", ["values"], "scales.: config none, file"),
        ("tensors", ["scales", "values", "values"], r"has no tensor 'layers\.0\..*\.values'"),
        ("tensors", [3], "not a description of stored weights"),
        ("dtype", "complex128", "dtype 'complex128' is none of"),
        ("dtype", None, "dtype None is none of"),
        ("group", 64, "do not fit scales"),
        ("group", -32, "group must be a multiple of 32, not -32"),
        ("group", 10**30, "do not fit scales"),
        ("group", "x", "group must be a multiple of 32, not 'x'"),
    ],
)
def test_descriptions_that_lie_are_refused(key, value, message, pipelines, tmp_path):
    miniformer.quantize(pipelines["decoder"].model, tmp_path / "out", to="int8")
    path = tmp_path / "out" / "quantization.json"
    content = json.loads(path.read_text())
    content["matrices"]["layers.0.attention.q_proj"][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        Transformer.from_pretrained(tmp_path / "out")


@pytest.mark.catches("sizes_of_stored_tensors_are_not_checked")
def test_sizes_are_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    model = tiny_model(**SIZES)
    miniformer.quantize(model, tmp_path / "out", to="int4")
    path = tmp_path / "out" / "model.safetensors"
    tensors = load_file(path)
    name = "layers.0.attention.q_proj"
    for part in ("values", "scales"):  # the matrix of the file is 4 times as large
        tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"].repeat(4, 1)
    save_file(tensors, path)
    decoded = []
    decode = Integers.decode
    monkeypatch.setattr(
        Integers,
        "decode",
        lambda parts, **options: decoded.append(parts) or decode(parts, **options),
    )
    message = r"q_proj cannot be decoded as integers: .*it is \(128, 32\).*config \(32, 32\)"
    with pytest.raises(UserError, match=message):
        Transformer.from_pretrained(tmp_path / "out")
    assert all(len(parts["values"]) < 128 for parts in decoded)
    for text in ("[" * 100_000, '{"matrices": ' + " " * (2**26 + 1) + "{}}", '{"matrices": 3}'):
        (tmp_path / "out" / "quantization.json").write_text(text)
        with pytest.raises(UserError, match="not a description of stored weights"):
            Transformer.from_pretrained(tmp_path / "out")


def test_fuzzing_of_quantized_directories_finds_no_crash():
    """A few cases; `tests.fuzz` tries many more, with imports."""
    outcomes, findings = fuzz.run(100, chosen_seed() or 0, make=fuzz.quantized_directories)
    assert not findings
    assert outcomes["refused"] > 30


@pytest.mark.catches("groups_are_always_of_32")
@pytest.mark.parametrize("to", ["int8", "int4"])
@pytest.mark.parametrize("group", [64, "128", "channel"])
def test_larger_groups(group, to, tmp_path):
    model = tiny_model(d_model=64, d_ff=160, n_layers=1)
    result = miniformer.quantize(model, tmp_path / "out", to=to, group=group)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    bits = int(to[3:])
    for name, width in (("attention.q_proj", 64), ("feed_forward.down_proj", 160)):
        size = width if group == "channel" else int(group)
        size = size if width % size == 0 else 32
        scales = stored[f"layers.0.{name}.scales"]
        assert scales.shape == (64, width // size)
        weight = model.get_parameter(f"layers.0.{name}.weight").detach()
        loaded = Transformer.from_pretrained(tmp_path / "out")
        quantum = scales.abs().repeat_interleave(size, 1)
        difference = (loaded.get_parameter(f"layers.0.{name}.weight") - weight).abs()
        assert (difference <= (0.5001 if bits == 8 else 1.3) * quantum).all()
    narrow = {"channel": 0, 64: 1, "128": len(result.narrow)}[group]
    assert len(result.narrow) == narrow
    assert ("in groups of 32, since group does not divide" in str(result)) == bool(narrow)
    loaded.save_pretrained(tmp_path / "again")
    for file in ("model.safetensors", "quantization.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_groups_that_are_refused(tmp_path):
    for group in (0, 48, "row", 32.0, True):
        with pytest.raises(UserError, match=r"group=.* is none of 32, 64, 128, channel"):
            miniformer.quantize(tiny_model(**SIZES), tmp_path / "out", to="int8", group=group)
    with pytest.raises(UserError, match="group is for int8 and int4, and bf16 has no scales"):
        miniformer.quantize(tiny_model(**SIZES), tmp_path / "out", to="bf16", group=64)
