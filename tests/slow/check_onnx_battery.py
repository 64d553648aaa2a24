"""Models of all kinds as ONNX graphs, in onnxruntime: decoders of all pairs of parts, a translator,
its beams in `run.py`, and a classifier with a wide head.

Each position encoding is combined with norm, grouped queries, window, soft-cap and qk-norm, twice
with opposite choices, so that any two choices meet in a graph.
"""

import itertools
import json

import numpy as np
import onnxruntime
import pytest
import torch

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, Tokenizer, cli, registry
from miniformer.data.reading.records import as_records
from miniformer.evaluation.run_batches import BatchSettings, run_batches
from miniformer.exporters.onnx.graphs import write_graphs
from miniformer.exporters.onnx.runner import run
from miniformer.exporters.programs import make_programs
from miniformer.exporters.source import Source
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import VERSE, tiny_model
from tests.unit.exporters.onnx.test_graphs import Graphs, close, excerpts, ragged
from tests.unit.exporters.onnx.test_wide_head import a_batch, a_classifier

POSITIONS = ("rotary", "learned", "sinusoidal", "alibi", "t5_relative", "none")
CHOICES = {
    "norm": ("layernorm", "rmsnorm"),
    "n_kv_heads": (None, 2),
    "sliding_window": (None, 5),
    "logit_softcap": (None, 4.0),
    "qk_norm": (None, "head"),
}
# Rows of choices; those of a position and their opposites are two graphs.
ROWS = ((0, 0, 0, 0, 0), (0, 1, 0, 1, 1), (0, 0, 1, 1, 0), (0, 1, 1, 0, 1), (0, 1, 0, 0, 0),
        (0, 0, 0, 1, 1))  # fmt: skip
GRAPHS = [
    (position, tuple(choice ^ opposite for choice in row))
    for position, row in zip(POSITIONS, ROWS, strict=True)
    for opposite in (0, 1)
]


def test_any_two_choices_meet():
    for first, second in itertools.combinations(range(len(CHOICES)), 2):
        pairs = {(row[first], row[second]) for _, row in GRAPHS}
        assert len(pairs) == 4, (first, second)


@pytest.mark.parametrize(("position", "row"), GRAPHS)
def test_graphs_equal_their_models(position, row, tmp_path):
    fields = {name: values[n] for (name, values), n in zip(CHOICES.items(), row, strict=True)}
    graphs = Graphs(tmp_path, n_layers=2, d_model=32, position=position, **fields)
    for rows, side, past in itertools.product((1, 2, 5), ("left", "right"), (1, 7, 30)):
        ids, mask = ragged(rows, past + 1, side)
        if side == "right":
            mask[:, -1] = 1
        expected = graphs.model(torch.tensor(ids), torch.tensor(mask).bool())
        close(graphs.steps(ids, mask, [past, 1]), expected, mask)


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translator")
    return Graphs(folder, model=Seq2SeqTransformer, causal=False, n_layers=1, position="learned")


@pytest.mark.parametrize("side", ["left", "right"])
def test_translator_equals_the_model(translator, side):
    for rows in (1, 3):
        source, source_mask = ragged(rows, 7, side)
        ids, mask = ragged(rows, 6, "right")
        mask[:, -1] = 1
        cross = translator.run("encoder", input_ids=source, attention_mask=source_mask)
        cross = {"past_key_values" + name[len("present") :]: x for name, x in cross.items()}
        expected = translator.model(
            torch.tensor(source), torch.tensor(ids), torch.tensor(source_mask).bool(),
            torch.tensor(mask).bool(),
        )  # fmt: skip
        cross["encoder_attention_mask"] = source_mask
        close(translator.steps(ids, mask, [4, 1, 1], **cross), expected, mask)


def test_five_beams_on_100_sources(tmp_path):
    tokenizer = Tokenizer.train("bpe", [VERSE] * 3, 300)
    model = tiny_model(
        model=Seq2SeqTransformer, causal=False, n_layers=1, vocab_size=tokenizer.vocab_size,
        max_seq_len=64,
    )  # fmt: skip
    pipeline = Pipeline(model, tokenizer, task=Seq2Seq())
    miniformer.export(pipeline, tmp_path / "out", to="onnx")
    runner = run.Model(tmp_path / "out", threads=1)
    options = {"num_beams": 5, "num_return_sequences": 5, "max_new_tokens": 10}
    ends = [tokenizer.eos_id, *range(3, 300, 12)]
    expected = pipeline.generate_outputs(excerpts(100), stop_token_ids=ends, **options)
    outputs = runner.generate_outputs(excerpts(100), stop_token_ids=ends, **options)
    assert [x.tokens for _, x in outputs] == [x.tokens for _, x in expected]
    scores = [(x.score, y.score) for (_, x), (_, y) in zip(outputs, expected, strict=True)]
    assert max(abs(x - y) for x, y in scores) < 1e-4


def test_losses_of_a_classifier(tmp_path):
    settings = {"classes": ["a", "b"], "input_kind": "features", "input_dim": 3}
    task = registry.get("task", "classification").from_dict(settings)
    model = tiny_model(causal=False, n_layers=1, input_dim=3, output_dim=2, pooling="last")
    Pipeline(model, None, task).save(tmp_path / "model")
    dice = np.random.default_rng(0)
    records = [
        {"input": dice.normal(size=(length, 3)).tolist(), "label": "ab"[length % 2]}
        for length in range(1, 12)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    flags = ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "onnx"]
    assert cli.main([*flags, "--data", str(data), "--weights", "int8_dynamic"]) == 0
    losses = json.loads((tmp_path / "out/export.json").read_text())["losses"]
    expected, _ = run_batches(
        model, task, None, as_records(str(data), task.schema), BatchSettings()
    )
    assert losses["float32"] == pytest.approx(expected["loss"], abs=1e-5)
    assert losses["int8_dynamic"] == pytest.approx(expected["loss"], abs=0.1)
    assert losses["int8_dynamic"] != losses["float32"]


@torch.no_grad()
def test_classifier_with_a_wide_head_equals_the_model(tmp_path):
    model, task = a_classifier()
    write_graphs(make_programs(Source(model, None, task, None, tmp_path)), tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for rows, length in ((1, 1), (1, 2), (4, 20), (5, 32)):
        batch = a_batch(rows, length)
        names = ("input_ids", "attention_mask", "token_type_ids")
        arrays = [value.long().numpy() for value in batch.values()]
        (logits,) = session.run(None, dict(zip(names, arrays, strict=True)))
        np.testing.assert_allclose(logits, task.logits(model, batch), rtol=1e-5, atol=1e-5)
