"""Standardized features against numpy: in training, prediction, embedding, and after loading."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import miniformer
from miniformer.checkpoint.artifacts import MODEL_CLASSES
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import ConfigError, GenerationConfig, UserError
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.reading.records import as_records
from miniformer.tasks.classification import Classification
from miniformer.tasks.regression import Regression
from miniformer.train_config import TrainConfig
from miniformer.training.setup.init_from import config_from_pretrained
from tests.kit import tiny_model

CENTERS, SPREADS = np.array([1.7e9, -3.0, 5e-4, 7.0]), np.array([250.0, 40.0, 1e-5, 0.0])


def records(count=50, seed=0):
    """Vectors with a Unix time and a constant feature."""
    random = np.random.default_rng(seed)
    inputs = [
        CENTERS + SPREADS * random.normal(size=(random.integers(1, 5), 4)) for _ in range(count)
    ]
    return [
        {"input": x.tolist(), "value": float(x[0, 1]), "label": int(x[0, 1] > -3)} for x in inputs
    ]


def by_hand(sample, over):
    """Inputs, standardized over all vectors, float32."""
    full = np.concatenate([np.array(record["input"]) for record in over])
    stds = full.std(0)
    stds[3] = 1.0
    return [
        ((np.array(record["input"]) - full.mean(0)) / stds).astype(np.float32) for record in sample
    ]


TASKS = [Classification(), Regression(target_delta_of="none")]


def fitted(task, sample):
    return task.fit(as_records(sample, task.schema))


def model_for(task):
    return tiny_model(causal=False, **task.model_config({}, None))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.catches("features_in_float32", "features_as_they_stand")
def test_features_are_standardized_by_statistics_of_the_training_data(task):
    train, val = records(), records(20, seed=1)
    data = MiniFormerDataModule(train, val_path=val, task=task, tokenizer=None, batch_size=4)
    data.setup()
    full = np.concatenate([np.array(record["input"]) for record in train])
    np.testing.assert_allclose(data.task.feature_means, full.mean(0), rtol=1e-12)
    np.testing.assert_allclose(data.task.feature_stds[:3], full.std(0)[:3], rtol=1e-6)
    assert data.task.feature_stds[3] == 1.0
    for name, sample in (("train", train), ("val", val)):  # both by the statistics of train
        retained = data.chunks[name].in_memory
        for number, expected in enumerate(by_hand(sample, train)):
            np.testing.assert_allclose(retained[number]["inputs"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.catches("embed_reads_features_as_they_stand")
def test_predict_and_embed_read_features_as_training_does(task, tmp_path):
    train = records()
    task = fitted(task, train)
    model = model_for(task)
    Pipeline(model, None, task=task, generation=GenerationConfig()).save(tmp_path / "model")
    m = miniformer.load(tmp_path / "model")
    assert m.task == task
    sample = records(5, seed=2)
    inputs = [record["input"] for record in sample]
    rows = [torch.from_numpy(row)[None] for row in by_hand(sample, train)]
    with torch.no_grad():
        outputs = torch.cat([model.classify(row) for row in rows])
        vectors = torch.cat([model.embed(row) for row in rows])
    torch.testing.assert_close(m.embed(inputs), vectors, rtol=1e-3, atol=1e-4)
    answers = m.predict(inputs)
    if task.name == "regression":
        expected = task.target_mean + task.target_std * outputs[:, 0].double().numpy()
        np.testing.assert_allclose(answers, expected, rtol=1e-3, atol=1e-3)
    else:
        probabilities = [list(answer["scores"].values()) for answer in answers]
        np.testing.assert_allclose(probabilities, outputs.softmax(-1).numpy(), rtol=1e-3, atol=1e-4)


def test_embed_of_a_series_normalizes_it():
    random = np.random.default_rng(0)
    sample = [
        {"input": random.normal(100, 9, (4, 2)).tolist(), "value": float(n)} for n in range(20)
    ]
    task = fitted(Regression(target_delta_of=1), sample)
    model = model_for(task)
    m = Pipeline(model, None, task=task, generation=GenerationConfig())
    rows = torch.from_numpy(np.stack([e["inputs"] for e in task.encode(sample, None, 9)]))
    with torch.no_grad():
        expected = model.embed(rows)
    torch.testing.assert_close(m.embed([record["input"] for record in sample]), expected)


def test_features_are_unchanged_without_statistics(tmp_path):
    """Model directories of earlier versions."""
    task = dataclasses.replace(
        fitted(Classification(), records()), feature_means=None, feature_stds=None
    )
    model = model_for(task)
    Pipeline(model, None, task=task, generation=GenerationConfig()).save(tmp_path / "model")
    path = tmp_path / "model" / "task.json"
    described = json.loads(path.read_text())
    for name in ("standardize", "feature_means", "feature_stds"):
        del described[name]
    path.write_text(json.dumps(described))
    m = miniformer.load(tmp_path / "model")
    inputs = [[[0.5, -1.0, 2.0, 0.25]], [[1.0, 0.0, -1.0, 3.0], [0.0, 0.5, 0.5, 1.0]]]
    with torch.no_grad():
        expected = [model.classify(torch.tensor([x])).softmax(-1)[0].tolist() for x in inputs]
    probabilities = [list(answer["scores"].values()) for answer in m.predict(inputs)]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


def test_standardize_keeps_given_statistics():
    given = Classification(feature_means=[0.0, 1, 2, 3], feature_stds=[1.0, 2, 3, 4])
    task = fitted(given, records())
    assert (task.feature_means, task.feature_stds) == ([0.0, 1, 2, 3], [1.0, 2, 3, 4])
    (example,) = task.encode([{"input": [[2.0, 3, 5, 7]], "label": 0}], None, 8)
    np.testing.assert_array_equal(example["inputs"], np.array([[2, 1, 1, 1]], dtype=np.float32))
    task = fitted(Classification(standardize=False), records())
    assert (task.feature_means, task.feature_stds) == (None, None)
    (example,) = task.encode([{"input": [[2.0, 3, 5, 7]], "label": 0}], None, 8)
    np.testing.assert_array_equal(example["inputs"], np.array([[2, 3, 5, 7]], dtype=np.float32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_means": [1.0]}, "feature_means and feature_stds need each other"),
        ({"feature_means": [1.0], "feature_stds": [1.0, 2.0]}, "has 1 numbers and feature_stds 2"),
        ({"feature_means": [1.0], "feature_stds": [1.0], "input_dim": 2}, "input_dim is 2"),
        ({"feature_means": [1.0], "feature_stds": [0.0]}, "finite and above 0"),
        ({"feature_means": [1.0], "feature_stds": [1.0], "standardize": False}, "have no effect"),
    ],
)
def test_standardize_rejects_invalid_statistics(settings, message):
    with pytest.raises(ConfigError, match=message):
        Classification(**settings)


def test_standardize_is_for_vectors():
    texts = [{"input": "a", "label": 0}, {"input": "b", "label": 1}]
    with pytest.raises(UserError, match="standardize is for vectors, and inputs are texts"):
        fitted(Classification(standardize=False), texts)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "kept"),
        ({"feature_means": [0.0], "feature_stds": [2.0]}, {"feature_means": [0.0],
          "feature_stds": [2.0]}),
        ({"standardize": False}, {"standardize": False}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("old", [False, True])
def test_init_from_keeps_feature_statistics(tmp_path, changes, expected, old):
    sample = [{"input": [[float(n)]], "label": n % 2} for n in range(9)]
    task = fitted(Classification(standardize=not old), sample)
    model = MODEL_CLASSES["encoder"](model_for(task).config)
    Pipeline(model, None, task=task, generation=GenerationConfig()).save(tmp_path / "model")
    config = TrainConfig(
        train_path="x.jsonl", task="classification", init_from=str(tmp_path / "model"),
        task_config=changes,
    )  # fmt: skip
    if expected == "kept":
        own = {"feature_means": task.feature_means, "feature_stds": task.feature_stds}
        expected = {"standardize": False} if old else own
    actual = config_from_pretrained(config, "encoder").task_config
    names = ("standardize", "feature_means", "feature_stds")
    assert {name: actual[name] for name in names if name in actual} == expected


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "1e39"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_standardize_rejects_infinite_features_with_their_line(tmp_path, number, task):
    path = tmp_path / "train.jsonl"
    good = '{"input": [[1.0], [%s]], "value": %d, "label": %d}\n'
    path.write_text(good % ("1.0", 0, 0) + good % (number, 1, 1))
    data = MiniFormerDataModule(path, task=task, tokenizer=None)
    with pytest.raises(UserError, match=r"train.jsonl:2: 'input' vector 2 contains .* at 1; "):
        data.setup()
