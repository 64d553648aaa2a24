"""Quantization-aware training."""

import json

import pytest
import torch

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, TrainConfig, Transformer
from miniformer.checkpoint.stored_types import Integers
from miniformer.compression.aware import round_through
from miniformer.config import UserError
from miniformer.model.transforms import apply_transforms
from tests.kit import VERSE, tiny_model, write_jsonl

IDS = torch.arange(1, 11)[None]
SIZES = {"d_model": 32, "n_layers": 1, "d_ff": 64}
INT8 = {"type": "quantize_aware", "to": "int8"}
MODELS = {
    "decoder": {},
    "untied": {"tie_embeddings": False},
    "seq2seq": {"model": Seq2SeqTransformer, "causal": False},
    "classifier": {"causal": False, "output_dim": 2},
    "features": {"causal": False, "output_dim": 2, "input_dim": 32},
    "masked_lm": {"causal": False, "head": "masked_lm", "tie_embeddings": False},
}


@pytest.mark.catches("aware_training_rounds_the_layers_only")
@pytest.mark.parametrize("to", ["int8", "int4"])
@pytest.mark.parametrize("name", MODELS)
def test_a_directory_has_the_weights_of_training(name, to, tmp_path):
    model = apply_transforms(
        tiny_model(**SIZES, **MODELS[name]), [{"type": "quantize_aware", "to": to}]
    )
    assert model.state_dict().keys() == tiny_model(**SIZES, **MODELS[name]).state_dict().keys()
    model.save_pretrained(tmp_path / "trained")
    miniformer.quantize(tmp_path / "trained", tmp_path / "out", to=to)
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert not loaded.transforms
    inputs = (IDS, IDS) if name == "seq2seq" else (IDS,)
    if name == "features":
        inputs = (torch.randn(1, 10, 32),)
    torch.testing.assert_close(loaded(*inputs), model(*inputs), rtol=1e-6, atol=1e-6)
    types = []
    for source in (tmp_path / "trained", tiny_model(**SIZES, **MODELS[name])):
        folder = tmp_path / f"types{len(types)}"
        miniformer.quantize(source, folder, to=to)
        types.append(json.loads((folder / "quantization.json").read_text())["matrices"])
    different = {key for key in types[1] if types[0].get(key) != types[1][key]}
    assert different == ({"head"} if name == "masked_lm" else set())


@pytest.mark.catches("aware_training_has_no_gradient")
@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_are_those_at_the_rounded_weights(bits):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    rounded = Integers.decode(Integers.encode(weight, bits=bits), bits=bits).requires_grad_()
    through = round_through(weight, bits)
    assert torch.equal(through, rounded)
    (x @ through.T).square().sum().backward()
    (x @ rounded.T).square().sum().backward()
    assert torch.equal(weight.grad, rounded.grad)


@pytest.mark.catches("aware_evaluation_has_float_weights", "aware_training_has_no_gradient")
def test_validation_has_the_loss_of_the_converted_directory(tmp_path):
    rows = [VERSE[n : n + 40] for n in range(0, 60, 2)]
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    val = write_jsonl(tmp_path / "val.jsonl", rows[::3])
    settings = {
        "val_path": str(val), "tokenizer": "byte", "seq_len": 32, "batch_size": 8, "max_steps": 6,
        "logger": "none", "precision": "float32", "accelerator": "cpu", "work_dir": str(tmp_path),
        "model_config": {**SIZES, "n_heads": 2}, "lr": 0.01, "quiet": True,
    }  # fmt: skip
    result = miniformer.train(str(train), experiment_name="int4", quantize_aware="int4", **settings)
    weight = Transformer.from_pretrained(result.model).layers[0].feed_forward.up_proj.weight
    weight = weight.detach()
    assert not torch.equal(Integers.decode(Integers.encode(weight, bits=4), bits=4), weight)
    out = tmp_path / "out"
    converted = miniformer.quantize(result.model, out, to="int4", data=str(val))
    assert converted.losses == pytest.approx((result.metrics["val_loss"],) * 2, rel=1e-6)
    miniformer.quantize(result.model, tmp_path / "budget", to="int4", data=str(val), budget="50%")
    for name in ("config.json", "quantization.json", "model.safetensors"):
        files = [(folder / name).read_bytes() for folder in (out, tmp_path / "budget")]
        assert files[0] == files[1]
    (run,) = (tmp_path / "int4").glob("metrics.jsonl")
    losses = [
        row["val_loss"]
        for row in map(json.loads, run.read_text().splitlines())
        if "val_loss" in row
    ]
    assert min(losses) == pytest.approx(converted.losses[1], rel=1e-6)


def test_a_run_of_a_model_that_was_trained_so_rounds_once():
    transforms = [{"type": "quantize_aware", "to": "int4"}]
    config = TrainConfig(train_path="t.jsonl", transforms=transforms, quantize_aware="int4")
    assert config.all_transforms() == transforms


def test_what_is_refused(tmp_path):
    model = apply_transforms(tiny_model(**SIZES), [INT8])
    with pytest.raises(UserError, match=r"was trained as int8 \(quantize_aware\); use to=int8"):
        miniformer.quantize(_saved(model, tmp_path), tmp_path / "out", to="int4")
    with pytest.raises(UserError, match="to must be int8 or int4, not 'bf16'"):
        apply_transforms(tiny_model(**SIZES), [{"type": "quantize_aware", "to": "bf16"}])
    with pytest.raises(UserError, match="no matrix has a multiple of 32 inputs"):
        apply_transforms(tiny_model(d_ff=24), [INT8])
    with pytest.raises(UserError, match="quantize_aware trains all weights and adapter a few"):
        TrainConfig(train_path="t.jsonl", quantize_aware="int4", adapter="lora", init_from="m")
    with pytest.raises(UserError, match="pretrain and quantize_aware exclude each other"):
        TrainConfig(
            train_path="t.jsonl", quantize_aware="int4", pretrain={"max_epochs": 1},
            task="classification",
        )  # fmt: skip


def _saved(model, folder):
    model.save_pretrained(folder / "model")
    return folder / "model"


def test_calibration_of_trained_integers_is_refused(tmp_path):
    tokenizer = miniformer.Tokenizer.train("byte", [])
    model = tiny_model(**SIZES, vocab_size=tokenizer.vocab_size)
    model = apply_transforms(model, [{"type": "quantize_aware", "to": "int4"}])
    from miniformer.tasks.language_modeling import LanguageModeling

    pipeline = Pipeline(model, tokenizer, LanguageModeling())
    with pytest.raises(UserError, match="calibrate would change weights that were trained"):
        miniformer.quantize(pipeline, tmp_path / "out", to="int4", calibrate=[{"text": "a"}] * 32)
