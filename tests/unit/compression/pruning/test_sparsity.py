"""Models with zeros: which matrices, how many, and by which inputs."""

import copy
import json

import pytest
import torch

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, Transformer, UserError, cli
from miniformer.compression.calibration.data import CalibrationData, input_moments
from miniformer.compression.pruning.magnitude import magnitude_mask, wanda_mask
from miniformer.compression.pruning.sparsegpt import sparse_matrix
from miniformer.compression.pruning.sparsity import sparse_model
from miniformer.model.matrices import weight_matrices
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import tiny_model
from tests.unit.compression.conftest import TOKENIZER, texts

RECORDS = [{"text": text} for text in texts(60, seed=5)]


def linear_weights(model):
    return {x.name: x.weight.detach() for x in weight_matrices(model) if x.layer is not None}


@pytest.mark.catches("zeros_are_counted_in_all_matrices")
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
def test_zeros_are_counted_exactly(method, sparsity, trained, tmp_path):
    before = {name: x.clone() for name, x in trained.model.state_dict().items()}
    records = {} if method == "magnitude" else {"calibrate": RECORDS}
    result = miniformer.prune(
        trained, tmp_path / "out", sparsity=sparsity, method=method, **records
    )
    model = miniformer.load(tmp_path / "out").model
    weights = linear_weights(model)
    assert all(int((x == 0).sum()) * 2 == x.numel() for x in weights.values())
    total = sum(x.numel() for x in weights.values())
    assert f"{total // 2:,} of {total:,} weights of 12 matrices (50.00 %)" in str(result)
    assert "no faster here" in str(result)
    assert all(torch.equal(before[name], x) for name, x in trained.model.state_dict().items())
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {f"{name}.weight" for name in weights}
    if sparsity == "2:4":
        groups = [(x == 0).reshape(-1, 4).sum(1) for x in weights.values()]
        assert all((counts == 2).all() for counts in groups)


@pytest.mark.catches("inputs_are_those_of_the_dense_model")
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_inputs_are_those_from_the_pruned_layers_before(method, trained):
    data = CalibrationData(trained, RECORDS)
    model = sparse_model(trained.model, 0.5, method, data)
    original, pruned = linear_weights(trained.model), linear_weights(model)
    result = {name: x.clone() for name, x in pruned.items()}
    model.layers[1].load_state_dict(trained.model.layers[1].state_dict())  # layer 0 stays pruned
    modules = {name: model.get_submodule(name) for name in pruned if name.startswith("layers.1")}
    moments = input_moments(model, modules, data)
    for name in modules:
        if method == "wanda":
            expected = original[name] * wanda_mask(original[name], moments[name], 0.5)
        else:
            expected = sparse_matrix(original[name], moments[name], 0.5)
        torch.testing.assert_close(result[name], expected)


def test_a_translator_and_unused_matrices(tmp_path):
    model = tiny_model(
        model=Seq2SeqTransformer, causal=False, vocab_size=TOKENIZER.vocab_size, n_decoder_layers=1
    )
    model.decoder.layers[0].spare = torch.nn.Linear(16, 8)
    pipeline = Pipeline(model, TOKENIZER, Seq2Seq())
    records = [{"source": x, "target": x[::-1]} for x in texts(40)]
    result = sparse_model(model, 0.5, "sparsegpt", CalibrationData(pipeline, records))
    weights = linear_weights(result)
    assert {"encoder", "decoder"} == {name.partition(".")[0] for name in weights}
    assert all(int((x == 0).sum()) * 2 == x.numel() for x in weights.values())
    spare = model.decoder.layers[0].spare.weight.detach()
    assert torch.equal(weights["decoder.layers.0.spare"], spare * magnitude_mask(spare, 0.5))


def test_odd_widths_of_two_of_four(tmp_path):
    model = tiny_model(d_ff=30)
    result = miniformer.prune(model, tmp_path / "out", sparsity="2:4")
    names = [f"layers.{n}.feed_forward.down_proj" for n in (0, 1)]
    assert result.zeros.unchanged == tuple(names)
    assert f"as they were: {', '.join(names)}" in str(result)
    weights = linear_weights(Transformer.from_pretrained(tmp_path / "out"))
    for name, weight in weights.items():
        assert int((weight == 0).sum()) == (0 if name in names else weight.numel() // 2)
    odd = tiny_model(d_model=10, n_heads=2, head_dim=5, d_ff=14, position="learned")
    with pytest.raises(UserError, match="no matrix within the layers has a multiple of 4 inputs"):
        miniformer.prune(odd, tmp_path / "other", sparsity="2:4")


def test_parts_are_removed_before(trained, tmp_path):
    miniformer.prune(trained, tmp_path / "small", remove="ffn=0.5", data=RECORDS)
    miniformer.prune(
        tmp_path / "small", tmp_path / "two", sparsity=0.5, method="wanda", data=RECORDS
    )
    miniformer.prune(
        trained, tmp_path / "one", remove="ffn=0.5", sparsity=0.5, method="wanda", data=RECORDS
    )
    one, two = (miniformer.load(tmp_path / name).model.state_dict() for name in ("one", "two"))
    assert all(torch.equal(x, two[name]) for name, x in one.items())


@pytest.mark.catches("prune_chooses_by_the_data")
def test_the_command(trained, tmp_path, capsys):
    trained.save(tmp_path / "model")
    for name, records in (("train", RECORDS), ("val", RECORDS[:9])):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    flags = [
        "prune",
        str(tmp_path / "model"),
        str(tmp_path / "out"),
        "--sparsity",
        "0.5",
        "--no-compare",
    ]
    files = ["--calibrate", str(tmp_path / "train.jsonl"), "--data", str(tmp_path / "val.jsonl")]
    assert cli.main([*flags, *files]) == 0
    text = capsys.readouterr().out
    assert "zeros (0.5, sparsegpt): " in text
    losses = [
        miniformer.load(tmp_path / name).evaluate(RECORDS[:9], num_resamples=0).metrics["loss"]
        for name in ("model", "out")
    ]
    assert f"loss: {losses[0]:.5f} before, {losses[1]:.5f} after" in text
    files[1] = files[3]
    assert cli.main([*flags[:2], str(tmp_path / "few"), *flags[3:], *files]) == 2
    assert "val.jsonl has 9 records, and 32 are needed" in capsys.readouterr().err
    assert not (tmp_path / "few").exists()


@pytest.mark.catches("shares_of_all_weights_are_taken")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "prune needs remove or sparsity"),
        ({"sparsity": 1.5}, "sparsity=1.5 must be a share between 0 and 1, such as 0.5, or 2:4"),
        ({"sparsity": "1:4"}, "sparsity='1:4' must be a share"),
        ({"sparsity": 0}, "sparsity=0 must be a share"),
        ({"sparsity": True}, "sparsity=True must be a share"),
        ({"sparsity": 1e-5}, r"sparsity=1e-05 of the 1,024 weights of .*q_proj is none of them"),
        ({"sparsity": 0.99, "method": "wanda", "data": RECORDS}, "a row of .*q_proj is all of"),
        ({"sparsity": 0.5, "method": "wando"}, "'wando' is none of .*; did you mean 'wanda'"),
        ({"sparsity": 0.5, "method": "sparsegpt"}, "method=sparsegpt needs calibrate: records"),
        ({"sparsity": 0.5, "method": "wanda", "calibrate": RECORDS[:31]}, "31 records, and 32 are"),
        ({"sparsity": 0.5, "calibrate": [{"input": "x"}] * 40}, "task language_modeling"),
        ({"remove": "ffn=0.5", "method": "wanda"}, "method is for sparsity"),
        ({"sparsity": 0.5, "method": "magnitude", "calibrate": RECORDS}, "calibrate has no effect"),
        ({"sparsity": 0.5, "text_field": "text"}, "text_field is for data and calibrate and heal"),
        ({"sparsity": 0.5, "heal": [{"input": "x"}]}, "heal: .*'text'.*task language_modeling"),
        ({"remove": {}}, "prune needs remove or sparsity"),
        ({"sparsity": 0.5, "steps": 5}, "steps=5 needs heal"),
        ({"sparsity": 0.5, "heal": RECORDS, "steps": 0}, "steps=0 must be at least 1"),
        ({"sparsity": 0.5, "heal": RECORDS, "steps": "9"}, "steps=9 must be at least 1"),
        ({"sparsity": 0.5, "tekst_field": "text", "data": RECORDS}, "tekst_field"),
    ],
)
def test_bad_requests(options, message, trained, tmp_path):
    with pytest.raises(UserError, match=message):
        miniformer.prune(trained, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_models_that_are_refused(trained, tmp_path):
    miniformer.quantize(trained, tmp_path / "int8", to="int8")
    with pytest.raises(UserError, match="the model is quantized already"):
        miniformer.prune(tmp_path / "int8", tmp_path / "out", sparsity=0.5)
    with pytest.raises(UserError, match="calibrate needs a model with its task"):
        miniformer.prune(tiny_model(), tmp_path / "out", sparsity=0.5, calibrate=RECORDS)
    broken = tiny_model()
    broken.layers[1].attention.k_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"layers.1.attention.k_proj.*: has weights that are not"):
        miniformer.prune(broken, tmp_path / "out", sparsity=0.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.catches("infinite_inputs_are_calibration")
@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.5, "method": "wanda"},
        {"sparsity": 0.5, "method": "sparsegpt"},
        {"remove": "ffn=0.5"},
        {"remove": "layers=1"},
    ],
)
def test_records_with_infinite_inputs_are_refused(options, trained, tmp_path):
    broken = Pipeline(copy.deepcopy(trained.model), TOKENIZER, trained.task)
    broken.model.layers[0].feed_forward.up_proj.weight.data.mul_(1e38)
    with pytest.raises(UserError, match=r"(inputs|values) on these records that are not finite"):
        miniformer.prune(broken, tmp_path / "out", calibrate=RECORDS, **options)
    if "method" in options:
        with pytest.raises(UserError, match="that are not finite, or too large"):
            miniformer.quantize(broken, tmp_path / "out", to="int4", calibrate=RECORDS)
    assert not (tmp_path / "out").exists()
