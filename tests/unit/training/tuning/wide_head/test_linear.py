"""Wide heads of outputs of each kind: tiny runs, compared with scikit-learn on the same records."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import f1_score
from sklearn.multioutput import MultiOutputClassifier

import miniformer

LENGTH, WIDTH = 4, 2
HEAD = [{"type": "numbers", "size": LENGTH * WIDTH}]
SHAPE = {"d_model": 8, "n_heads": 2, "n_layers": 1, "dropout": 0.0, "wide_head": HEAD}


def series(count, seed):
    """Vectors whose first number is a random walk at any level."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, LENGTH, WIDTH))
    vectors[..., 0] = vectors[..., 0].cumsum(1) + 20 * random.normal(size=(count, 1))
    return vectors, random.normal(size=(count, 2))


def next_value(x, noise):
    """The walk continues its last step; inputs are read relative to their level and scale."""
    return x[:, -1, 0] + 0.8 * (x[:, -1, 0] - x[:, -2, 0]) + 0.1 * noise[:, 0]


def several_values(x, noise):
    """Values in different units."""
    return np.stack([100 * x[:, 0, 1] + 10 * noise[:, 0], x[:, 3, 1] - x[:, 2, 1]], 1)


def labels(x, noise):
    """Two, one or none of two labels."""
    return np.stack([x[:, :, 1].sum(1) > 0, x[:, 3, 0] > x[:, 0, 0]], 1)


def run(tmp_path, task, targets, fields, **task_config):
    """Vectors and targets of 150 training and 60 validation records; metrics and predictions."""
    parts = []
    for count, seed in ((150, 0), (60, 1)):
        x, noise = series(count, seed)
        y = targets(x, noise)
        records = [{"input": a.tolist(), **fields(b)} for a, b in zip(x, y, strict=True)]
        parts.append((x.reshape(count, -1), y, records))
    (*train, records), (*val, val_records) = parts
    result = miniformer.train(
        records, val=val_records, work_dir=str(tmp_path), task=task, task_config=task_config,
        model_config=SHAPE, max_epochs=1, precision="float32", logger="none", quiet=True,
    )  # fmt: skip
    pipeline = miniformer.load(result.model)
    assert pipeline.model.wide_head.mix[1] > 0.8
    predictions = pipeline.predict([record["input"] for record in val_records])
    return train, val, result.metrics, predictions


def rmse(predictions, values):
    return np.sqrt(np.mean((np.asarray(predictions) - values) ** 2, axis=0))


def test_wide_head_of_a_target_delta_predicts_the_change(tmp_path):
    train, (x, y), metrics, predictions = run(
        tmp_path, "regression", next_value, lambda value: {"value": float(value)}, target_delta_of=0
    )
    error = rmse(predictions, y)
    assert error == pytest.approx(metrics["val_rmse"], rel=1e-3)
    assert error < 1.5 * rmse(LinearRegression().fit(*train).predict(x), y)
    assert error < 0.3 * rmse(x.reshape(-1, LENGTH, WIDTH)[:, -1, 0], y)


@pytest.mark.catches("all_wide_outputs_are_fitted_to_the_first")
def test_wide_head_of_several_values_predicts_each_in_its_units(tmp_path):
    train, (x, y), metrics, predictions = run(
        tmp_path, "regression", several_values, lambda values: {"value": values.tolist()}
    )
    errors = rmse(predictions, y)
    assert errors == pytest.approx([metrics["val_rmse_1"], metrics["val_rmse_2"]], rel=1e-3)
    reference = rmse(LinearRegression().fit(*train).predict(x), y)
    assert (errors < 1.5 * reference + 0.05 * y.std(0)).all()


@pytest.mark.catches("all_wide_outputs_are_fitted_to_the_first")
def test_wide_head_of_labels_predicts_each_label_of_a_series(tmp_path):
    names = np.array(["sum", "rise"])
    train, (x, y), metrics, predictions = run(
        tmp_path, "multilabel_classification", labels, lambda row: {"labels": names[row].tolist()}
    )
    predicted = np.array([[name in row["labels"] for name in names] for row in predictions])
    macro = f1_score(y, predicted, average="macro")
    assert macro == pytest.approx(metrics["val_macro_f1"], abs=1e-6)
    reference = MultiOutputClassifier(LogisticRegression(C=100, max_iter=1000)).fit(*train)
    assert macro > f1_score(y, reference.predict(x), average="macro") - 0.05
