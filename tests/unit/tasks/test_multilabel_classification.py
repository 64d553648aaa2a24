"""Multi-label classification: loss, metrics and thresholds against scikit-learn and plain code."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss

import miniformer
from miniformer import trainer
from miniformer.config import GenerationConfig, UserError
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.multilabel_classification import MultiLabelClassification
from tests.kit import tiny_model

BYTES = Tokenizer.train("byte", [])
TEXTS = [
    {"input": text, "labels": [name for name in "ab" if name in text]}
    for text in ("a", "ab", "b", "c", "ca", "bab", "cc", "acb")
]


def fitted(records=TEXTS, **options):
    task = MultiLabelClassification(**options)
    return task.fit(as_records(records, task.schema))


def model_for(task):
    return tiny_model(vocab_size=258, causal=False, **task.model_config({}, None))


def eval_stats(task, model, records=TEXTS, batch_size=3):
    data = MiniFormerDataModule(
        records, val_path=records, task=task, tokenizer=BYTES, seq_len=16, batch_size=batch_size
    )
    with torch.no_grad():
        return [task.eval_step(model, batch) for batch in data.val_dataloader()]


def test_multilabel_encodes_labels_by_class():
    task = fitted()
    assert (task.classes, task.class_counts) == (["a", "b"], [5, 4])
    rows = [example["labels"].tolist() for example in task.encode(TEXTS, BYTES, 16)]
    assert rows == [[int(name in record["labels"]) for name in "ab"] for record in TEXTS]


@pytest.mark.catches("multilabel_loss_counts_records")
def test_multilabel_loss_is_the_mean_over_records_and_labels():
    task = fitted()
    model = model_for(task)
    stats = eval_stats(task, model)
    probs = torch.cat([batch["probs"] for batch in stats]).double().numpy()
    labels = torch.cat([batch["labels"] for batch in stats]).numpy()
    expected = np.mean([log_loss(labels[:, n], probs[:, n], labels=[0, 1]) for n in range(2)])
    assert task.compute_metrics(stats)["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.catches("multilabel_weights_are_of_negatives")
def test_multilabel_weights_and_smoothing_match_the_formula():
    task = fitted(class_weights="balanced", label_smoothing=0.2)
    assert task.class_weights == pytest.approx([3 / 5, 4 / 4])  # negative per positive records
    logits, labels = torch.randn(4, 2), torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])
    loss, count = task._cross_entropy(logits, labels, 0.2)
    expected = 0.0
    for row, truth in zip(logits.sigmoid().tolist(), labels.tolist(), strict=True):
        for p, y, weight in zip(row, truth, task.class_weights, strict=True):
            target = 0.9 if y else 0.1
            expected -= weight * target * np.log(p) + (1 - target) * np.log(1 - p)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert int(count) == 8
    model = model_for(task)
    (batch,) = MiniFormerDataModule(
        TEXTS, val_path=TEXTS, task=task, tokenizer=BYTES, seq_len=16, batch_size=99
    ).val_dataloader()
    model.train()
    smoothed = float(task.loss(model, batch)[0].detach())
    model.eval()
    assert float(task.loss(model, batch)[0].detach()) != pytest.approx(smoothed)


def test_multilabel_metrics_match_scikit_learn():
    task = fitted(thresholds=[0.3, 0.6], classes=["a", "b"])
    stats = eval_stats(task, model_for(task))
    labels = torch.cat([batch["labels"] for batch in stats]).numpy()
    predicted = torch.cat([batch["probs"] for batch in stats]).numpy() >= np.array([0.3, 0.6])
    metrics = task.compute_metrics(stats)
    assert metrics["subset_accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    for average in ("macro", "micro", "samples"):
        expected = f1_score(
            labels, predicted, average=average, zero_division=float(average == "samples")
        )
        assert metrics[f"{average}_f1"] == pytest.approx(expected)
    assert metrics.keys() == set(task.metrics)


def test_multilabel_thresholds_are_those_given_or_tuned():
    model = model_for(fitted())
    stats = eval_stats(fitted(), model)
    for given in (0.25, [0.3, 0.6]):
        assert (
            fitted(thresholds=given, classes=["a", "b"]).fit_to_validation(stats).thresholds
            == given
        )
    assert fitted(threshold_tuning="none").fit_to_validation(stats).thresholds is None
    assert fitted().fit_to_validation([]).thresholds is None
    tuned = fitted(threshold_tuning="common").fit_to_validation(stats)
    before, after = (task.compute_metrics(stats)["macro_f1"] for task in (fitted(), tuned))
    assert after >= before


def test_multilabel_predictions_follow_the_thresholds():
    task = fitted()
    model = model_for(task)
    for thresholds in (None, [0.0, 1.0]):
        decided = fitted(thresholds=thresholds, classes=["a", "b"])
        for text in ("abc", "c"):
            (answer,) = decided.predict(model, BYTES, [text], GenerationConfig())
            ids = torch.tensor([[BYTES.eos_id, *BYTES.encode(text)]])
            probs = model.classify(ids).sigmoid()[0].tolist()
            assert list(answer["scores"].values()) == pytest.approx(probs, rel=1e-4)
            limits = [0.5, 0.5] if thresholds is None else thresholds
            expected = [n for n, p, t in zip("ab", probs, limits, strict=True) if p >= t]
            assert answer["labels"] == expected


@pytest.mark.catches("unknown_label_of_several_passes")
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ('"a"', "'labels' must be a list of names or integers, which may be empty, not the str"),
        ('["a", "b", "a"]', "'labels' has 'a' more than once; keep one"),
        ('["a", 1]', "'labels' mixes names and integers: 'a' and 1"),
        ('["a", ""]', "'labels' has label 2, which is an empty name"),
        ('["a", 1.5]', "'labels' has label 2, which must be an integer or a name, not 1.5"),
    ],
)
def test_multilabel_rejects_invalid_labels_with_their_line(tmp_path, labels, message):
    path = tmp_path / "t.jsonl"
    path.write_text('{"input": "x", "labels": ["a"]}\n' + f'{{"input": "y", "labels": {labels}}}\n')
    task = MultiLabelClassification()
    with pytest.raises(UserError) as caught:
        task.fit(as_records(str(path), task.schema))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)
    known = fitted()
    with pytest.raises(UserError, match="has label 1, which is 'z', which is none of the classes"):
        list(as_records([{"input": "x", "labels": ["z"]}], known.schema))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"input": "x", "labels": []}] * 2, "no record has a label"),
        ([{"input": "x", "labels": ["a"]}], "every label is 'a'"),
        (
            [{"input": "x", "labels": ["a"]}, {"input": "x", "labels": [1]}],
            "'labels' is 1, a number, but that of record 0 is a name",
        ),
    ],
)
def test_multilabel_rejects_unsuitable_data(records, message):
    with pytest.raises(UserError, match=message):
        fitted(records)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": [0.5]}, "thresholds need classes"),
        ({"thresholds": [0.5], "classes": ["a", "b"]}, "thresholds has 1 numbers for 2 classes"),
        ({"thresholds": [0.5, 2.0], "classes": ["a", "b"]}, "thresholds must be from 0 to 1"),
    ],
)
def test_multilabel_options_reject_invalid_values(options, message):
    with pytest.raises(UserError, match=message):
        MultiLabelClassification(**options)


@pytest.mark.catches("thresholds_are_fitted_to_the_test", "thresholds_are_not_saved")
def test_multilabel_end_to_end(tmp_path, capsys):
    """Thresholds of the best validation decide its metrics, the test and predictions."""
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcdef"), 5)) for _ in range(300)]
    records = [
        {"input": t, "labels": [name for name in "ab" if (name in t) == (random.random() < 0.8)]}
        for t in texts
    ]
    for name, part in (("t", records[:200]), ("v", records[200:250]), ("x", records[250:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    arguments = ["--task", "multilabel_classification", "--tokenizer", "byte", "--logger", "none"]
    for flag, name in (("train", "t"), ("val", "v"), ("test", "x")):
        arguments += [f"--{flag}_path", str(tmp_path / f"{name}.jsonl")]
    arguments += [
        "--wide_head",
        "off",  # so that the best thresholds of both splits differ
        "--max_steps",
        "20",
        "--precision",
        "float32",
        "--work_dir",
        str(tmp_path / "runs"),
        "--model_config",
    ]
    arguments += ['{"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 16}']
    assert trainer.main(arguments) == 0
    out = capsys.readouterr().out
    best = tmp_path / "runs" / "multilabel_classification" / "best"
    m = miniformer.load(best)
    assert len(m.task.thresholds) == 2
    assert len(miniformer.load(best.parent / "last").task.thresholds) == 2
    card = (best / "README.md").read_text()
    for split, part in (("validation", records[200:250]), ("test", records[250:])):
        answers = m.predict([record["input"] for record in part])
        predicted, labels = (
            np.array([[name in item["labels"] for name in "ab"] for item in items])
            for items in (answers, part)
        )
        for average in ("macro", "micro"):
            value = f1_score(labels, predicted, average=average)
            assert f"| {split} {average} f1 | {value:.4g} |" in card
    assert "| label | threshold | precision | recall | F1 | records |" in card
    assert f"predict {best}" in out
