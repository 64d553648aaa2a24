"""Sequence to sequence from vectors, compared with plain code."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import miniformer
from miniformer import MiniFormerDataModule, Seq2SeqTransformer, TransformerConfig, UserError, cli
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import InputError
from miniformer.data.reading.records import RecordError, as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.feature_seq2seq import FeatureSeq2Seq
from miniformer.tasks.seq2seq import Seq2Seq

RECORDS = [
    {"source": [[i + 0.5 * t, 1000.0 - t] for t in range(2 + i)], "target": "ab" * (i % 3 + 1)}
    for i in range(6)
]
FIELDS = {"d_model": 16, "n_heads": 4, "n_layers": 1, "max_seq_len": 12, "dropout": 0.0}


def fitted(**options):
    task = Seq2Seq(**options)
    return task.fit(as_records(RECORDS, task.schema))


@pytest.fixture(scope="module")
def pipeline():
    tokenizer = Tokenizer.train("char", [record["target"] for record in RECORDS])
    task = fitted(max_target_len=10)
    torch.manual_seed(0)
    config = TransformerConfig(**task.model_config(FIELDS, tokenizer))
    task.check(config, tokenizer)
    return Pipeline(Seq2SeqTransformer(config).eval(), tokenizer, task)


@pytest.mark.catches("sources_are_standardized_by_first_vectors")
@pytest.mark.catches("long_sources_of_vectors_are_not_cut")
def test_sources_are_standardized_by_all_training_vectors():
    task = fitted()
    vectors = np.concatenate([record["source"] for record in RECORDS])
    assert (task.source_kind, task.input_dim) == ("features", 2)
    np.testing.assert_allclose(task.feature_means, vectors.mean(0))
    np.testing.assert_allclose(task.feature_stds, vectors.std(0))
    tokenizer = Tokenizer.train("char", ["ab"])
    example = task.encode(RECORDS[3:4], tokenizer, 4)[0]
    expected = (np.array(RECORDS[3]["source"]) - vectors.mean(0)) / vectors.std(0)
    np.testing.assert_allclose(example["source"], expected[:4], rtol=1e-5)
    assert example["source"].dtype == np.float32
    assert example["cut"] == 1
    raw = fitted(standardize=False).encode(RECORDS[3:4], tokenizer, 9)[0]
    np.testing.assert_allclose(raw["source"], RECORDS[3]["source"])


def test_loss_is_the_cross_entropy_of_each_record_alone(pipeline):
    data = MiniFormerDataModule(
        RECORDS, task=pipeline.task, tokenizer=pipeline.tokenizer, seq_len=12, batch_size=6
    )
    batches = [*data.train_dataloader()]
    assert any("source_mask" in batch for batch in batches)
    sums = [pipeline.task.loss(pipeline.model, batch) for batch in batches]
    loss, count = (sum(values) for values in zip(*sums, strict=True))
    expected = 0.0
    for record in RECORDS:
        (example,) = pipeline.task.encode([record], pipeline.tokenizer, 12)
        labels = torch.from_numpy(example["labels"].astype(np.int64))[None]
        start = torch.tensor([[pipeline.tokenizer.eos_id]])
        target = torch.cat((start, labels[:, :-1]), 1)
        logits = pipeline.model(torch.from_numpy(example["source"])[None], target)
        expected += F.cross_entropy(logits[0], labels[0], reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert count == sum(len(record["target"]) + 1 for record in RECORDS)


@pytest.mark.catches("padding_of_vectors_is_read")
@pytest.mark.parametrize("num_beams", [1, 3])
def test_predictions_in_a_batch_are_those_of_each_alone(pipeline, num_beams):
    sources = [record["source"] for record in RECORDS]
    options = {"num_beams": num_beams, "max_new_tokens": 6}
    outputs = pipeline.predict(sources, **options)
    assert outputs == [pipeline.predict(source, **options) for source in sources]
    assert outputs == [pipeline.predict(np.array(source), **options) for source in sources]
    assert len({*outputs}) > 1


def test_predictions_from_a_file_and_of_the_loaded_directory(pipeline, tmp_path, capsys):
    pipeline.save(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "task.json").read_text())
    assert (settings["task"], settings["source_kind"]) == ("seq2seq", "features")
    loaded = miniformer.load(tmp_path / "model")
    assert isinstance(loaded.task, FeatureSeq2Seq)
    sources = [record["source"] for record in RECORDS]
    expected = pipeline.predict(sources)
    assert loaded.predict(sources) == expected
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    model, out = str(tmp_path / "model"), tmp_path / "out.jsonl"
    assert cli.main(["predict", model, "--input", str(path), "--output", str(out)]) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == expected
    capsys.readouterr()
    assert cli.main(["predict", model, json.dumps(sources[1])]) == 0
    assert capsys.readouterr().out.strip().strip('"') == expected[1]
    assert loaded.evaluate(RECORDS, num_resamples=0).metrics["loss"] > 0


def test_sources_of_another_kind_are_errors(pipeline):
    with pytest.raises(InputError, match="vectors of 3 numbers, where others have 2"):
        pipeline.predict([[[1.0, 2.0, 3.0]]])
    with pytest.raises(InputError, match="is 20 long; the model reads at most 12 vectors"):
        pipeline.predict([[[1.0, 2.0]] * 20])
    assert isinstance(pipeline.predict([[1.0, 2.0]] * 20, truncate=True), str)
    for call in (pipeline.generate, lambda text: list(pipeline.stream(text))):
        with pytest.raises(UserError, match="reads vectors, not texts; use predict"):
            call("ab")


def test_records_of_another_kind_name_the_record(tmp_path):
    path = tmp_path / "data.jsonl"
    for source, message in (
        ("ab", r"data.jsonl:7: .*is a string, where others are a list of vectors"),
        ([[1.0]], r"data.jsonl:7: .*has vectors of 1 numbers, where others have 2"),
        ([["a", "b"]], "data.jsonl:7: "),
        (["a", "b"], r"data.jsonl:7: 'source' is two strings, where others are a list of vectors"),
    ):
        lines = [*RECORDS, {"source": source, "target": "a"}]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        task = Seq2Seq()
        with pytest.raises(RecordError, match=message):
            task.fit(as_records(str(path), task.schema))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copy_noise": 0.5}, "copy_noise is for texts"),
        ({"feature_means": [0.0, 1.0]}, "feature_means and feature_stds need each other"),
        ({"feature_means": [0.0], "feature_stds": [1.0], "input_dim": 2}, "input_dim is 2"),
    ],
)
def test_options_of_vectors_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        fitted(**options)


def test_sources_of_texts_have_no_options_of_vectors():
    with pytest.raises(UserError, match="input_dim is for vectors, and sources are texts"):
        Seq2Seq(source_kind="text", input_dim=2)
    task = Seq2Seq().fit(as_records([{"source": "a", "target": "b"}], Seq2Seq().schema))
    assert type(task) is Seq2Seq
    assert task.source_kind == "text"
    with pytest.raises(UserError, match="input_dim must be null for this data, not 3"):
        task.check(TransformerConfig(**FIELDS, input_dim=3), None)


def test_pairs_of_texts_are_no_sources():
    with pytest.raises(UserError, match="'source' must be a string or a list of vectors, not a"):
        Seq2Seq().fit(as_records([{"source": ["a", "b"], "target": "a"}], Seq2Seq().schema))


def test_vectors_of_a_stream_need_their_kind_in_the_settings():
    tokenizer = Tokenizer.train("char", ["ab"])
    with pytest.raises(UserError, match="set source_kind=features and input_dim in task_config"):
        Seq2Seq().encode(RECORDS, tokenizer, 4)
