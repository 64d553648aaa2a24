"""Rounding of models by calibration records."""

import copy

import pytest
import torch

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, cli
from miniformer.checkpoint.data_settings import StoredDataSettings
from miniformer.checkpoint.stored_types import Integers
from miniformer.compression.calibration.data import CalibrationData, input_moments
from miniformer.compression.calibration.gptq import round_matrix
from miniformer.config import UserError
from miniformer.tasks.classification import Classification
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.regression import Regression
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import tiny_model, write_jsonl
from tests.unit.compression.conftest import SIZES, TOKENIZER, texts


def pipeline_of(name, batch_size=16):
    """A pipeline of a task, and records for it."""
    sizes = {**SIZES, "vocab_size": TOKENIZER.vocab_size}
    rows = texts(40)
    if name == "decoder":
        pipeline = Pipeline(tiny_model(**sizes), TOKENIZER, LanguageModeling())
        records = [{"text": text} for text in rows]
    elif name == "seq2seq":
        model = tiny_model(model=Seq2SeqTransformer, causal=False, **sizes)
        pipeline = Pipeline(model, TOKENIZER, Seq2Seq())
        records = [{"source": text, "target": text[::-1]} for text in rows]
    elif name == "classifier":
        model = tiny_model(causal=False, output_dim=2, **sizes)
        task = Classification(classes=["a", "b"], input_kind="text")
        pipeline = Pipeline(model, TOKENIZER, task)
        records = [{"input": text, "label": "ab"[len(text) % 2]} for text in rows]
    elif name == "embedding":
        model = tiny_model(causal=False, pooling="mean", **sizes)
        pipeline = Pipeline(model, TOKENIZER, EmbeddingTask(input_kind="text"))
        records = [{"input": text} for text in rows]
    else:
        model = tiny_model(causal=False, input_dim=32, output_dim=1, **SIZES)
        task = Regression(input_kind="features", input_dim=32, target_mean=0.0, target_std=1.0)
        pipeline = Pipeline(model, None, task)
        dice = torch.Generator().manual_seed(0)
        vectors = [torch.randn(len(text), 32, generator=dice) for text in rows]
        records = [{"input": x[:30].tolist(), "value": float(x.mean())} for x in vectors]
    pipeline.data_settings = StoredDataSettings(batch_size=batch_size)
    return pipeline, records


def plain_moments(pipeline, records, names):
    """X^T X of each record by itself, which has no padding, with plain hooks."""
    sums = dict.fromkeys(names, 0.0)
    for record in records:
        data = CalibrationData(pipeline, [record] * 32)  # 32 equal lengths
        hooks = [
            pipeline.model.get_submodule(name).register_forward_pre_hook(
                lambda _, x, name=name: sums.__setitem__(
                    name, sums[name] + x[0].flatten(0, -2).double().T @ x[0].flatten(0, -2).double()
                )
            )
            for name in names
        ]
        data.run(pipeline.model)
        for hook in hooks:
            hook.remove()
    return {name: value / 32 for name, value in sums.items()}


@pytest.mark.catches("moments_include_padding", "moments_are_of_the_first_batch")
@pytest.mark.parametrize("name", ["seq2seq", "classifier", "embedding", "features"])
def test_moments_are_those_of_single_records(name):
    pipeline, records = pipeline_of(name)
    layers = ["layers.1.attention.k_proj", "layers.1.feed_forward.down_proj"]
    if name == "seq2seq":
        prefix = "decoder.layers.0"
        layers = [f"{prefix}.cross_attention.v_proj", f"{prefix}.feed_forward.up_proj",
                  "encoder.layers.1.attention.o_proj"]  # fmt: skip
    modules = {name: pipeline.model.get_submodule(name) for name in layers}
    picked = records[::5] * 5
    moments = input_moments(pipeline.model, modules, CalibrationData(pipeline, picked))
    expected = plain_moments(pipeline, records[::5], layers)
    assert moments.keys() == expected.keys()
    for layer, value in moments.items():
        torch.testing.assert_close(value, 5 * expected[layer], rtol=1e-4, atol=1e-3)
    assert not any("run_layers" in vars(module) for module in pipeline.model.modules())
    assert not any(module._forward_pre_hooks for module in pipeline.model.modules())


@pytest.mark.catches("moments_are_of_the_given_model", "moments_are_of_another_matrix")
@pytest.mark.parametrize(("name", "to"), [("decoder", "int4"), ("seq2seq", "int8")])
def test_layers_are_rounded_by_inputs_from_rounded_layers(name, to, tmp_path):
    pipeline, records = pipeline_of(name)
    before = copy.deepcopy(pipeline.model.state_dict())
    miniformer.quantize(pipeline, tmp_path / "out", to=to, calibrate=records)
    assert all(torch.equal(before[key], x) for key, x in pipeline.model.state_dict().items())
    loaded = miniformer.load(tmp_path / "out")
    bits = int(to[3:])
    prefix = "" if name == "decoder" else "decoder."
    layer = f"{prefix}layers.1"
    names = [f"{layer}.attention.q_proj", f"{layer}.feed_forward.up_proj"]
    names += [f"{layer}.cross_attention.k_proj"] if prefix else []
    # The model whose last layer is not rounded yet.
    partial = copy.deepcopy(loaded)
    partial.model.load_state_dict(
        {key: before[key] if key.startswith(layer) else x
         for key, x in loaded.model.state_dict().items()}
    )  # fmt: skip
    partial.model.weight_storage = {}
    modules = {name: partial.model.get_submodule(name) for name in names}
    moments = input_moments(partial.model, modules, CalibrationData(partial, records))
    for matrix in names:
        expected = round_matrix(before[f"{matrix}.weight"], moments[matrix], bits)
        weight = loaded.model.get_parameter(f"{matrix}.weight")
        assert (weight == expected).float().mean() > 0.99, matrix
    embedding = Integers.decode(Integers.encode(before["embedding.weight"], 8), 8)
    assert torch.equal(loaded.model.embedding.weight, embedding)
    loaded.save(tmp_path / "again")
    for file in ("model.safetensors", "quantization.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("name", ["classifier", "embedding", "features"])
def test_other_models(name, tmp_path):
    pipeline, records = pipeline_of(name)
    miniformer.quantize(pipeline, tmp_path / "out", to="int4", calibrate=records)
    miniformer.quantize(pipeline, tmp_path / "plain", to="int4")
    weights = [
        miniformer.load(tmp_path / folder).model.layers[1].feed_forward.down_proj.weight
        for folder in ("out", "plain")
    ]
    assert not torch.equal(*weights)


@pytest.mark.catches("gptq_carries_no_error")
def test_the_loss_of_a_trained_model_increases_less(trained, tmp_path):
    records = [{"text": " ".join(texts(8, seed))} for seed in range(1, 200)]
    losses = []
    for calibrate in (records[:150], None):
        out = tmp_path / str(len(losses))
        result = miniformer.quantize(
            trained, out, to="int4", calibrate=calibrate, data=records[150:]
        )
        losses.append(result.losses[1] - result.losses[0])
    assert losses[0] < 0.75 * losses[1]


def test_what_calibration_refuses(tmp_path, capsys):
    pipeline, records = pipeline_of("classifier")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"calibrate: records has 31 records, and 32 are needed"):
        miniformer.quantize(pipeline, out, to="int4", calibrate=records[:31])
    foreign = [{"text": "abc"}] * 32
    with pytest.raises(UserError, match=r"calibrate: record 0: .*'input'.*task classification"):
        miniformer.quantize(pipeline, out, to="int4", calibrate=foreign)
    with pytest.raises(UserError, match="calibrate is for int8 and int4, and bf16 rounds each"):
        miniformer.quantize(pipeline, out, to="bf16", calibrate=records)
    with pytest.raises(UserError, match="calibrate needs a model with its task"):
        miniformer.quantize(pipeline.model, out, to="int8", calibrate=records)
    with pytest.raises(UserError, match="method='awq' is none of gptq, none"):
        miniformer.quantize(pipeline, out, to="int8", method="awq")
    with pytest.raises(UserError, match="method=gptq needs calibrate"):
        miniformer.quantize(pipeline, out, to="int8", method="gptq")
    with pytest.raises(UserError, match="calibrate has no effect with method=none"):
        miniformer.quantize(pipeline, out, to="int8", method="none", calibrate=records)
    pipeline.save(tmp_path / "model")
    data = write_jsonl(tmp_path / "data.jsonl", ["abc"] * 40)
    flags = ["quantize", str(tmp_path / "model"), str(out), "--to", "int8"]
    assert cli.main([*flags, "--calibrate", str(data)]) == 2
    assert "data.jsonl:1" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.catches("windows_of_a_text_do_not_count")
def test_windows_of_a_long_text_count_as_records():
    """One text of 40 windows calibrates; one of 2,000 gives 512 windows at equal distances."""
    pipeline, _ = pipeline_of("decoder")
    length = pipeline.model.config.max_seq_len
    text = "".join(texts(40)) * 20

    def windows(count):
        ids = TOKENIZER.encode(text * (1 + count))[: count * length]
        return [{"text": TOKENIZER.decode(ids)}]

    rows = []
    for count in (40, 2000):
        data = CalibrationData(pipeline, windows(count))
        rows.append(sum(len(batch["input_ids"]) for batch in data._batches))
    assert 38 <= rows[0] <= 42
    assert 480 <= rows[1] <= 540
    with pytest.raises(UserError, match="records has 1 records, and 32 are needed"):
        CalibrationData(pipeline, windows(3))
