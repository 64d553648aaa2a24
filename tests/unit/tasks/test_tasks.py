"""Classification, regression, seq2seq and prefix language modeling against plain code."""

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer import registry
from miniformer.config import ConfigError, GenerationConfig, TransformerConfig, UserError
from miniformer.data.batching.length_bucketing import LengthBucketBatcher
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.classification import Classification
from miniformer.tasks.common.input_encoding import collate_inputs
from miniformer.tasks.common.seq2seq_batch import collate_seq2seq
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.prefix_language_modeling import PrefixLanguageModeling, collate_prefixes
from miniformer.tasks.regression import Regression
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import a_series, tiny_config, tiny_model
from tests.kit.tasks import batches_of

BYTES = Tokenizer.train("byte", [])
B = BYTES.eos_id
WORDS = st.text("abcdef ", max_size=12)


def model_for(task, model=None, **changes):
    """A tiny model with the config of the task."""
    kind = Seq2SeqTransformer if model == "seq2seq" else None
    given = {"vocab_size": 258, "max_seq_len": 64, "causal": False, **changes}
    fields = {**given, **task.model_config({}, None)}
    return tiny_model(**fields) if kind is None else tiny_model(model=kind, **fields)


def served(task, records, **options):
    return batches_of(task, records, BYTES, **{"seq_len": 64, "batch_size": 4, **options})


TEXTS = [{"input": "ab" * n, "label": "odd" if n % 2 else "even"} for n in range(12)]
PAIRS = [{"input": ["ab" * n, "c" * (12 - n)], "value": float(n)} for n in range(12)]
VECTORS = [{"input": [[0.1 * n, 1.0]] * (1 + n % 5), "value": 3.0 * n - 5} for n in range(12)]
TARGETS = [{"source": "ab" * n, "target": "c" * (n % 5)} for n in range(12)]
FITTED = {
    "text": (Classification(), TEXTS, None),
    "pair": (Regression(), PAIRS, None),
    "features": (Regression(), VECTORS, None),
    "weighted": (Classification(class_weights="balanced", label_smoothing=0.1), TEXTS[1:], None),
    "seq2seq": (Seq2Seq(), TARGETS, "seq2seq"),
    "prefix": (PrefixLanguageModeling(), [{"text": "ab" * n} for n in range(1, 12)], "seq2seq"),
    "causal": (LanguageModeling(), [{"text": "ab" * n} for n in range(1, 12)], None),
}


@pytest.mark.catches("padding_of_inputs_is_read")
@pytest.mark.parametrize("name", FITTED)
def test_task_loss_of_batches_matches_single_records(name):
    """Bucketing, padding and masks do not change sums over records."""
    task, records, kind = FITTED[name]
    task = task.fit(as_records(records, task.schema))
    model = model_for(task, kind, max_seq_len=150)

    def loss_and_gradients(groups):
        model.zero_grad()
        losses, counts = zip(*(task.loss(model, batch) for batch in groups), strict=True)
        sum(losses).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return float(sum(losses).detach()), float(sum(counts)), gradients

    # A window that splits no document, since a split loses context.
    alone = [
        batch for record in records for batch in served(task, [record], batch_size=1, seq_len=150)
    ]
    loss, count, gradients = loss_and_gradients(alone)
    for options in ({"batch_size": 5}, {"batch_tokens": 30}, {"batch_size": 100}):
        actual = loss_and_gradients(served(task, records, **options, seq_len=150))
        assert actual[0] == pytest.approx(loss, rel=1e-5)
        assert actual[1] == pytest.approx(count)
        for first, second in zip(actual[2], gradients, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.catches("second_text_of_a_pair_is_cut_first")
@given(WORDS, WORDS, st.integers(4, 14))
def test_pair_layout_and_truncation(first, second, seq_len):
    task = Regression(target_mean=0.0, target_std=1.0, input_kind="pair", shared_token_types=False)
    (example,) = task.encode([{"input": [first, second], "value": 1}], BYTES, seq_len)
    ids, types = example["inputs"].tolist(), example["token_types"].tolist()
    middle = types.index(1)
    assert [ids[0], ids[middle]] == [B, B]
    assert types == sorted(types)
    a, b = BYTES.decode(ids[1:middle]), BYTES.decode(ids[middle + 1 :])
    assert first.startswith(a)
    assert second.startswith(b)
    lost = len(first) - len(a) + len(second) - len(b)
    assert example["cut"] == lost == max(0, len(first) + len(second) + 2 - seq_len)
    if lost:  # the longer one is cut, and no more than down to the other's length
        assert len(ids) == seq_len
        for text, retained, other_text in ((first, a, b), (second, b, a)):
            assert len(retained) == len(text) or len(retained) >= len(other_text) - 1


@given(WORDS, WORDS, st.integers(6, 30))
def test_shared_token_types_of_a_pair(first, second, seq_len):
    task = Regression(target_mean=0.0, target_std=1.0, input_kind="pair", shared_token_types=True)
    (example,) = task.encode([{"input": [first, second], "value": 1}], BYTES, seq_len)
    (plain,) = Regression(
        target_mean=0.0, target_std=1.0, input_kind="pair", shared_token_types=False
    ).encode([{"input": [first, second], "value": 1}], BYTES, seq_len)
    ids, types = example["inputs"].tolist(), plain["token_types"].tolist()
    texts = [{i for i, t in zip(ids, types, strict=True) if t == n and i != B} for n in (0, 1)]
    required = [t + 2 * (i in texts[0] & texts[1]) for i, t in zip(ids, types, strict=True)]
    assert example["token_types"].tolist() == required
    assert task.model_config({}, BYTES)["token_types"] == 4


def test_shared_token_types_need_pairs_and_type_vocab():
    config = TransformerConfig(vocab_size=258, d_model=16, n_heads=2, output_dim=1)
    task = Regression(target_mean=0.0, target_std=1.0, input_kind="text", shared_token_types=True)
    with pytest.raises(UserError, match="shared_token_types is for pairs of texts; leave it out"):
        task.check(config, BYTES)
    task = Regression(target_mean=0.0, target_std=1.0, input_kind="pair", shared_token_types=True)
    for types, shown in ((2, "2"), (None, "null")):
        small_config = TransformerConfig(**{**config.to_dict(), "token_types": types})
        required = (
            f"must be 4 for pairs of texts, not {shown}; leave it out, or set shared_token_types"
        )
        with pytest.raises(UserError, match=required):
            task.check(small_config, BYTES)


@pytest.mark.catches("decoder_sees_its_label")
def test_seq2seq_decoder_inputs_are_shifted_labels():
    rows = [[3, 1, 4], [1], [5, 9]]
    examples = [{"source": np.array([7]), "labels": np.array(row)} for row in rows]
    batch = collate_seq2seq(examples, start_id=2)
    assert [row.tolist() for row in batch["labels"]] == [
        [3, 1, 4], [1, IGNORE_INDEX, IGNORE_INDEX], [5, 9, IGNORE_INDEX],
    ]  # fmt: skip
    for row, target in zip(rows, batch["target"].tolist(), strict=True):
        assert target[: len(row)] == [2, *row[:-1]]


@pytest.mark.catches("encoder_sees_the_first_label")
@given(st.lists(st.integers(1, 9), min_size=2, max_size=20), st.none() | st.integers(0, 5))
def test_prefix_lm_labels_are_not_in_the_source(ids, seed):
    row = np.array(ids, dtype=np.uint16)
    random = None if seed is None else np.random.default_rng(seed)
    batch = collate_prefixes([{"ids": row, "bytes": 10.0}], random, boundary_id=0)
    source, labels = batch["source"][0].tolist(), batch["labels"][0].tolist()
    assert source + labels == ids
    assert batch["target"][0].tolist() == [0, *labels[:-1]]
    assert source
    assert labels
    assert batch["bytes"] == pytest.approx(10.0 * len(labels) / len(ids))
    if seed is None:
        assert abs(len(source) - len(labels)) <= 1


def test_prefix_lm_windows_do_not_cross_documents():
    task = LanguageModeling().for_model("seq2seq")
    records = [{"text": "abcdefghij"}, {"text": ""}, {"text": "xy"}]
    examples = task.encode(records, BYTES, seq_len=5)
    texts = [BYTES.decode(example["ids"].tolist()) for example in examples]
    assert "".join(texts) == "abcdefghijxy"
    assert all(not ("x" in piece and "j" in piece) for piece in texts)
    assert max(len(example["ids"]) for example in examples) <= 5
    assert sum(int(i) == B for e in examples for i in e["ids"]) == 6, "each begins and ends"
    running = LanguageModeling(prepend_bos=False).for_model("seq2seq")
    middle = [{"text": "abc", "continues": True}]
    (example,) = running.encode(middle, BYTES, seq_len=8)
    assert BYTES.decode(example["ids"].tolist()) == "abc"
    assert B not in example["ids"], "nobody knows where running text ends"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_classification_metrics_match_their_formulas(pairs):
    task = Classification(classes=list("abcd"), input_kind="text")
    labels, predictions = (torch.tensor(column) for column in zip(*pairs, strict=True))
    batch_stats = [{"loss": 1.0, "count": 1.0, "labels": labels, "predictions": predictions}]
    metrics = task.compute_metrics(batch_stats)
    counts = Counter(pairs)
    n = len(pairs)
    assert metrics["accuracy"] == pytest.approx(sum(counts[c, c] for c in range(4)) / n)
    f1 = []
    for c in range(4):
        true = sum(v for (label, _), v in counts.items() if label == c)
        taken = sum(v for (_, predicted), v in counts.items() if predicted == c)
        if true + taken:  # a class that is nowhere has no F1
            f1.append(2 * counts[c, c] / (true + taken))
    assert metrics["macro_f1"] == pytest.approx(sum(f1) / len(f1), abs=1e-6)
    x = np.eye(4)[labels.numpy()] - np.eye(4)[labels.numpy()].mean(0)
    y = np.eye(4)[predictions.numpy()] - np.eye(4)[predictions.numpy()].mean(0)
    under = math.sqrt((x * x).sum() * (y * y).sum())
    required = (x * y).sum() / under if under > 1e-12 else None
    if required is not None:  # Gorodkin 2004: the correlation of two one-hot tables
        assert metrics["mcc"] == pytest.approx(required, abs=1e-5)
    matrix = task.confusion_matrix(batch_stats)
    assert {(r, c): int(matrix[r, c]) for r in range(4) for c in range(4) if matrix[r, c]} == counts
    assert f"| a | {' | '.join(str(counts[0, c]) for c in range(4))} |" in task.report_markdown(
        batch_stats
    )


@given(
    st.lists(st.tuples(st.integers(-20, 20), st.integers(-20, 20)), min_size=3, max_size=30).filter(
        lambda rows: all(len({row[i] for row in rows}) > 1 for i in range(2))
    )
)
def test_regression_metrics_are_in_the_units_of_the_data(rows):
    values, predictions = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    task = Regression(target_mean=7.0, target_std=2.5, input_kind="text")
    inside = {
        "values": torch.tensor((values - 7) / 2.5, dtype=torch.float32),
        "predictions": torch.tensor((predictions - 7) / 2.5, dtype=torch.float32),
        "bases": torch.zeros(len(rows)),
        "scales": torch.ones(len(rows)),
    }
    metrics = task.compute_metrics([inside])

    def ranks(x):  # the mean place of equal values
        return np.array([(x < item).sum() + ((x == item).sum() - 1) / 2 for item in x])

    assert metrics["mae"] == pytest.approx(np.abs(values - predictions).mean(), rel=1e-4, abs=1e-4)
    rmse = np.sqrt(((values - predictions) ** 2).mean())
    assert metrics["rmse"] == pytest.approx(rmse, rel=1e-4, abs=1e-4)
    assert metrics["pearson"] == pytest.approx(np.corrcoef(values, predictions)[0, 1], abs=1e-4)
    spearman = np.corrcoef(ranks(values), ranks(predictions))[0, 1]
    assert metrics["spearman"] == pytest.approx(spearman, abs=1e-4)


def test_regression_correlation_with_a_constant_is_0():
    task = Regression(target_mean=0.0, target_std=1.0, input_kind="text")
    stats = {"values": torch.tensor([1.0, 2.0]), "predictions": torch.ones(2)}
    metrics = task.compute_metrics([{**stats, "bases": torch.zeros(2), "scales": torch.ones(2)}])
    assert metrics["pearson"] == metrics["spearman"] == 0.0


@pytest.mark.catches("predictions_are_standardized")
def test_regression_standardizes_targets_and_restores_predictions():
    records = [{"input": "a" * n, "value": 1000.0 + 50 * n} for n in range(10)]
    task = Regression().fit(as_records(records, Regression().schema))
    values = [record["value"] for record in records]
    assert task.target_mean == pytest.approx(np.mean(values))
    assert task.target_std == pytest.approx(np.std(values))
    inside = [example["labels"] for example in task.encode(records, BYTES, 64)]
    assert np.mean(inside) == pytest.approx(0.0, abs=1e-9)
    assert np.std(inside) == pytest.approx(1.0)
    model = model_for(task)
    inputs = [record["input"] for record in records]
    answers = task.predict(model, BYTES, inputs, GenerationConfig())
    for text, answer in zip(inputs, answers, strict=True):
        ids = torch.tensor([[B, *BYTES.encode(text)]])
        assert answer == pytest.approx(
            task.target_mean + task.target_std * float(model.classify(ids).detach()), rel=1e-5
        )


@pytest.mark.catches("weighted_loss_is_divided_by_records")
def test_classification_weights_and_smoothing_match_the_formula():
    task = Classification(
        classes=[0, 1, 2], class_weights=[1.0, 0.5, 3.0], label_smoothing=0.3, input_kind="text"
    )
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    loss, count = task._weighted_cross_entropy(logits, labels, task.label_smoothing)
    weights = np.array([1.0, 0.5, 3.0])
    log_probs = logits.log_softmax(-1).numpy()
    by_hand = 0.0
    for row, label in zip(log_probs, labels.tolist(), strict=True):
        required = np.full(3, 0.1)
        required[label] += 0.7
        by_hand -= (weights * required * row).sum()
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)
    assert float(count) == pytest.approx(weights[labels.numpy()].sum())
    balanced = Classification(class_weights="balanced")
    records = [{"input": "x", "label": name} for name in "aaab"]
    fitted = balanced.fit(as_records(records, balanced.schema))
    assert fitted.class_weights == pytest.approx([4 / 6, 4 / 2])


@pytest.mark.catches("validation_is_smoothed")
@pytest.mark.parametrize("name", ["classification", "language_modeling", "seq2seq"])
def test_label_smoothing_is_for_training_only(name):
    """The uniform part of a smoothed label costs the mean of all log-probabilities."""
    torch.manual_seed(0)
    ids, labels = torch.randint(1, 9, (3, 5)), torch.randint(0, 9, (3, 5))
    options = {"d_model": 16, "n_heads": 2, "n_layers": 1, "vocab_size": 9, "dropout": 0.0}
    if name == "seq2seq":
        model = Seq2SeqTransformer(TransformerConfig(**options))
        batch = {"source": ids, "target": ids, "labels": labels}
        logits = model(ids, ids)
    elif name == "language_modeling":
        model = Transformer(TransformerConfig(**options, causal=True))
        batch, logits = {"input_ids": ids, "labels": labels}, model(ids)
    else:
        model = Transformer(TransformerConfig(**options, output_dim=9))
        batch = {"inputs": ids, "labels": labels[:, 0]}
        labels, logits = batch["labels"], model.classify(ids)
    log_p = logits.detach().log_softmax(-1)
    plain = -log_p.gather(-1, labels[..., None]).sum()
    even = -log_p.mean(-1).sum()
    known = {"classes": list(range(9)), "input_kind": "text"} if name == "classification" else {}
    task = registry.get("task", name)(label_smoothing=0.2, **known)
    torch.testing.assert_close(task.loss(model.train(), batch)[0], 0.8 * plain + 0.2 * even)
    torch.testing.assert_close(task.loss(model.eval(), batch)[0], plain)


@pytest.mark.catches("r_drop_compares_a_pass_with_itself")
def test_r_drop_of_classification():
    """R-Drop by its formula, from the outputs of two passes."""
    task = Classification(classes=[0, 1, 2], input_kind="text", r_drop=0.7)
    config = TransformerConfig(
        d_model=16, n_heads=2, n_layers=1, vocab_size=9, dropout=0.5, output_dim=3
    )
    model, labels = Transformer(config).train(), torch.tensor([0, 1, 2, 1])
    torch.nn.init.normal_(model.head.weight)  # answers that are far apart
    batch = {"inputs": torch.randint(1, 9, (4, 5)), "labels": labels}
    torch.manual_seed(1)
    loss, count = task.loss(model, batch)
    torch.manual_seed(1)
    p, q = (model.classify(batch["inputs"]).detach().softmax(-1) for _ in range(2))
    apart = [float((a * (a / b).log()).sum()) for a, b in ((p, q), (q, p))]
    wrong = [-float(item[range(4), labels].log().sum()) for item in (p, q)]
    assert float(loss.detach()) == pytest.approx(np.mean(wrong) + 0.7 * np.mean(apart), rel=1e-4)
    assert np.mean(apart) > 0.05
    assert int(count) == 4
    model.eval()
    plain = Classification(classes=[0, 1, 2], input_kind="text")
    torch.testing.assert_close(task.loss(model, batch)[0], plain.loss(model, batch)[0])


def test_r_drop_of_seq2seq():
    """R-Drop by its formula, token by token, without padding."""
    config = TransformerConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=9, dropout=0.5)
    model = Seq2SeqTransformer(config).train()
    torch.nn.init.normal_(model.embedding.weight)
    ids, labels = torch.randint(1, 9, (2, 3, 5)), torch.randint(1, 9, (3, 5))
    labels[1, 3:] = IGNORE_INDEX
    batch = {"source": ids[0], "target": ids[1], "labels": labels}
    torch.manual_seed(1)
    loss, count = Seq2Seq(r_drop=0.7).loss(model, batch)
    torch.manual_seed(1)
    retained = labels != IGNORE_INDEX
    p, q = (model(ids[0], ids[1]).detach()[retained].softmax(-1) for _ in range(2))
    apart = [float((a * (a / b).log()).sum()) for a, b in ((p, q), (q, p))]
    wrong = [-float(item[range(13), labels[retained]].log().sum()) for item in (p, q)]
    assert float(loss.detach()) == pytest.approx(np.mean(wrong) + 0.7 * np.mean(apart), rel=1e-4)
    assert np.mean(apart) > 0.05
    assert int(count) == 13
    model.eval()
    torch.testing.assert_close(Seq2Seq(r_drop=0.7).loss(model, batch), Seq2Seq().loss(model, batch))


def test_filler_batch_of_a_rank_counts_nothing():
    task = Classification(classes=[0, 1], class_weights=[1.0, 2.0], input_kind="text")
    for item in (task, Classification(classes=[0, 1], input_kind="text")):
        loss, count = item._weighted_cross_entropy(
            torch.randn(3, 2), torch.full((3,), IGNORE_INDEX)
        )
        assert float(loss) == float(count) == 0.0


def test_classification_classes_are_the_sorted_labels():
    def classes(labels):
        records = [{"input": "x", "label": label} for label in labels]
        return Classification().fit(as_records(records, Classification().schema)).classes

    assert classes(["b", "a", "c", "a"]) == ["a", "b", "c"]
    assert classes([10, 9, 2]) == [2, 9, 10]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"input": "a", "label": 1}, {"input": "b", "label": "one"}],
         r"record 1: 'label' is 'one', a name, but that of record 0 is a number; use one of them"),
        ([{"input": "a", "label": 1}] * 3, r"every label is 1; there must be two classes or more"),
        ([{"input": "a", "label": 1}, {"input": ["a", "b"], "label": 2}],
         r"record 1: 'input' is two strings, where others are a string; all must be of one kind"),
        ([{"input": [[1, 2]], "label": 1}, {"input": [[1]], "label": 2}],
         r"record 1: 'input' has vectors of 1 numbers, where others have 2"),
    ],
)  # fmt: skip
def test_classification_rejects_unsuitable_data(records, message):
    data = MiniFormerDataModule(records, tokenizer=BYTES, task="classification")
    with pytest.raises(UserError, match=message):
        data.setup()


@pytest.mark.catches("label_that_training_never_saw_passes")
def test_classification_names_an_unknown_label_with_its_line(tmp_path):
    val = tmp_path / "val.jsonl"
    val.write_text('{"input": "a", "label": "odd"}\n{"input": "b", "label": "prime"}\n')
    data = MiniFormerDataModule(TEXTS, val_path=val, tokenizer=BYTES, task="classification")
    required = (
        r"val.jsonl:2: 'label' is 'prime', which is none of the classes trained on: 'even', 'odd'"
    )
    with pytest.raises(UserError, match=required):
        data.setup()


def test_regression_rejects_constant_targets():
    records = [{"input": "a", "value": 2.5}] * 3
    with pytest.raises(UserError, match=r"every value is 2\.5; there is nothing to learn"):
        MiniFormerDataModule(records, tokenizer=BYTES, task="regression").setup()


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (Classification, {"class_weights": "heavy"}, "class_weights must be balanced or a list"),
        (Classification, {"class_weights": [1.0]}, "set classes, too"),
        (Classification, {"classes": [0, 1], "class_weights": [1.0]}, "1 weights for 2 classes"),
        (Classification, {"classes": [0, 1], "class_weights": [-1.0, 1]}, "must be at least 0"),
        (Classification, {"classes": [0]}, "classes must be two or more"),
        (Classification, {"classes": [0, 0]}, "classes must differ"),
        (Classification, {"classes": [0, "a"]}, "all names or all integers"),
        (Classification, {"classes": [0.5, 1]}, "classes must be names or integers, not 0.5"),
        (Classification, {"label_smoothing": 1.0}, "label_smoothing must be at most 0.99"),
        (Classification, {"clases": [0, 1]}, "did you mean 'classes'"),
        (Regression, {"target_std": 0.0}, "target_std must be above 0"),
        (Seq2Seq, {"max_target_len": 1}, "max_target_len must be at least 2"),
    ],
)
def test_task_options_reject_invalid_values(task, options, message):
    with pytest.raises(ConfigError, match=message):
        task.from_dict(options)


@pytest.mark.parametrize(("task", "kind"), [("classification", "seq2seq"), ("seq2seq", "encoder")])
def test_task_rejects_unsuitable_architectures(task, kind):
    with pytest.raises(UserError, match=f"task={task} needs model="):
        registry.get("task", task)().for_model(kind)


def fitted(records, **settings):
    return Regression(**settings).fit(as_records(records, Regression().schema))


def test_series_targets_are_normalized_and_predictions_restored():
    """Metrics and predictions are in the units of values; shift and scale do not change inputs."""
    records = a_series(np.random.default_rng(0))
    task = fitted(records, target_delta_of=1)
    inputs = [record["input"] for record in records]
    walks = [np.array(x)[:, 1] for x in inputs]
    values = np.array([record["value"] for record in records])
    assert task.scale_epsilon == pytest.approx(0.05 * np.mean([walk.std() for walk in walks]))
    last = np.array([walk[-1] for walk in walks])
    scales = np.array([walk.std() for walk in walks]) + task.scale_epsilon
    deltas = (values - last) / scales
    assert (task.target_mean, task.target_std) == pytest.approx((deltas.mean(), deltas.std()))
    examples = task.encode(records, None, 64)
    all_inputs = np.concatenate(inputs)
    for example, x, base, scale in zip(examples, inputs, last, scales, strict=True):
        required = (np.array(x) - all_inputs.mean(0)) / all_inputs.std(0)
        required[:, 1] = (np.array(x)[:, 1] - base) / scale
        np.testing.assert_allclose(example["inputs"], required, rtol=1e-5, atol=1e-6)
    labels = np.array([example["labels"] for example in examples])
    np.testing.assert_allclose(
        last + scales * (task.target_mean + task.target_std * labels), values
    )
    model = model_for(task)
    assert model.config.pooling == "last"
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
    answers = task.predict(model, None, inputs, GenerationConfig())
    np.testing.assert_allclose(answers, last + scales * task.target_mean, rtol=1e-5)
    metrics = task.compute_metrics([task.eval_step(model, collate_inputs(examples))])
    assert metrics["loss"] == pytest.approx(1.0, rel=1e-4)  # in units of the normalized target
    wrong = values - answers
    assert metrics["rmse"] == pytest.approx(np.sqrt((wrong**2).mean()), rel=1e-4)
    assert metrics["mae"] == pytest.approx(np.abs(wrong).mean(), rel=1e-4)
    assert metrics["pearson"] == pytest.approx(np.corrcoef(values, answers)[0, 1], abs=1e-4)
    for example in examples:
        example["bases"] += 1e8  # relative to which a change is below float32 precision
    far = task.compute_metrics([task.eval_step(model, collate_inputs(examples))])
    assert far["rmse"] == pytest.approx(metrics["rmse"], rel=1e-6)


@given(st.integers(0, 99), st.floats(-50, 50), st.floats(0.5, 4))
def test_series_inputs_do_not_depend_on_level_and_scale(seed, higher, wider):
    records = a_series(np.random.default_rng(seed), 8)
    task = dataclasses.replace(fitted(records, target_delta_of=1), scale_epsilon=1e-12)
    torch.manual_seed(0)
    model = model_for(task)
    inputs = [np.array(record["input"]) for record in records]
    moved = [x * [1, wider, 1] + [0, higher, 0] for x in inputs]
    once, reloaded = (
        np.array(task.predict(model, None, [x.tolist() for x in item], GenerationConfig()))
        for item in (inputs, moved)
    )
    np.testing.assert_allclose(reloaded, once * wider + higher, rtol=1e-3, atol=1e-3 * wider)


@pytest.mark.catches("keys_of_objects_have_no_order")
def test_series_feature_of_named_vectors():
    """The index of a feature is its position among the sorted names."""
    plain = [{"input": [[1.0, n], [2.0, 3.0 * n]], "value": n * n} for n in (1.0, 2.0, 4.0)]
    named = [
        {"input": [{"b": b, "a": a} for a, b in item["input"]], "value": item["value"]}
        for item in plain
    ]
    first, second = (fitted(records, target_delta_of=1) for records in (plain, named))
    assert first == second
    for a, b in zip(first.encode(plain, None, 8), first.encode(named, None, 8), strict=True):
        np.testing.assert_array_equal(a["inputs"], b["inputs"])
        assert a["labels"] == b["labels"]


def test_series_that_cannot_be_learned_is_refused():
    records = a_series(np.random.default_rng(0))
    with pytest.raises(
        UserError, match="target_delta_of=1 needs its last vector: raise seq_len, or set"
    ):
        fitted(records, target_delta_of=1).encode(records, None, 2)
    assert (
        fitted(
            [{"input": [[0.5]], "value": float(n)} for n in range(4)], target_delta_of=0
        ).scale_epsilon
        == 1
    )
    same = [{"input": [[float(n)]], "value": n + 1.0} for n in range(4)]
    with pytest.raises(UserError, match=r"every change is .*; there is nothing to learn"):
        fitted(same, target_delta_of=0)
    with pytest.raises(ConfigError, match="index of a feature or none, not 'rides'"):
        Regression(target_delta_of="rides")


@pytest.mark.parametrize(
    ("given", "message"),
    [([[1.0, 2.0]], "inputs are vectors of 2; the first is 0"), ("a", "inputs are texts here")],
)
def test_series_feature_index_is_checked(given, message):
    expected = f"task_config: target_delta_of=2 is the index of a feature, and {message}"
    with pytest.raises(UserError, match=expected):
        fitted([{"input": given, "value": 1.0}], target_delta_of=2)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (Classification(classes=[0, 1, 2], input_kind="text"), {"output_dim": 2},
         "output_dim must be 3 for this data, not 2"),
        (Regression(target_mean=0.0, target_std=1.0, input_kind="features", input_dim=4),
         {"input_dim": 3},
         "input_dim must be 4 for this data, not 3"),
        (Regression(target_mean=0.0, target_std=1.0, input_kind="text"), {"vocab_size": 100},
         "vocab_size=100 is smaller than the tokenizer's 258 ids"),
        (Regression(target_mean=0.0, target_std=1.0, input_kind="pair", shared_token_types=False),
         {"token_types": 1},
         "token_types must be 2 or null for pairs of texts, not 1; leave it out$"),
        (Seq2Seq(), {"vocab_size": 100}, "vocab_size=100 is smaller"),
        (PrefixLanguageModeling(), {"output_dim": 3}, "output_dim must be null"),
    ],
)  # fmt: skip
def test_task_rejects_unsuitable_model_configs(task, changes, message):
    config = tiny_config(**{**task.model_config({"vocab_size": 258}, None), **changes})
    with pytest.raises(UserError, match=message):
        task.check(config, BYTES)


def test_task_settings_json_round_trip():
    tasks = [
        Classification(classes=["a", "b"], class_weights=[1.0, 2.0], input_kind="text"),
        Regression(target_mean=1.5, target_std=0.1, input_kind="features", input_dim=3),
        Seq2Seq(max_target_len=9),
        LanguageModeling(prepend_bos=False),
    ]
    for task in tasks:
        settings = json.loads(json.dumps(task.settings()))
        assert registry.get("task", settings.pop("task")).from_dict(settings) == task


@pytest.mark.catches("answers_come_in_another_order")
def test_predict_keeps_the_order_of_inputs():
    task = Classification(classes=["x", "y", "z"], input_kind="text")
    model = model_for(task)
    inputs = ["ab" * (n * 7 % 23) for n in range(40)]
    answers = task.predict(model, BYTES, inputs, GenerationConfig())
    for text, answer in zip(inputs, answers, strict=True):
        probabilities = (
            model.classify(torch.tensor([[B, *BYTES.encode(text)]]))[0].softmax(-1).tolist()
        )
        assert list(answer["scores"].values()) == pytest.approx(probabilities, abs=1e-5)
        assert answer["score"] == max(answer["scores"].values())
        assert answer["scores"][answer["label"]] == answer["score"]
    translate, writer = Seq2Seq(), model_for(Seq2Seq(), "seq2seq")
    options = GenerationConfig(max_new_tokens=6, temperature=0.0, eos_id=B)
    written = translate.predict(writer, BYTES, inputs, options)
    assert written == [translate.predict(writer, BYTES, [text], options)[0] for text in inputs]


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        (Classification(classes=[0, 1], input_kind="text"), ["a", 3], "input 1 must be a string"),
        (Classification(classes=[0, 1], input_kind="text"), ["a" * 80],
         "input 0 is 81 long; the model reads at most 64; shorten it"),
        (Regression(target_mean=0.0, target_std=1.0, input_kind="features", input_dim=2), [[[1.0]]],
         "input 0 has vectors of 1 numbers, where others have 2"),
        (Regression(target_mean=0.0, target_std=1.0, input_kind="pair"), ["a"],
         "input 0 is a string, where others are two strings"),
        (Seq2Seq(), ["a", None], "input 1 must be a string, not None"),
        (Seq2Seq(), ["a" * 80], "input 0 is 17 tokens longer than the model reads"),
        (LanguageModeling(), ["a"], "only generates text; use generate"),
    ],
)  # fmt: skip
def test_predict_rejects_invalid_inputs(task, given, message):
    kind = "seq2seq" if isinstance(task, Seq2Seq) else None
    with pytest.raises(UserError, match=message):
        task.predict(model_for(task, kind), BYTES, given, GenerationConfig(max_new_tokens=3))


def test_samples_continue_the_first_text():
    assert Seq2Seq().sample_prompts([{"source": f"s{i}", "target": "t"} for i in range(3)]) == [
        "s0"
    ]
    for text, prompt in (
        ("one two three fourteen fifteen", "one two three fourteen"),  # complete words of 24
        ("o" * 30, "o" * 24),
        ("ab", "ab"),
    ):
        records = [{"text": " "}, {"text": text}, {"text": "later"}]
        assert LanguageModeling().sample_prompts(records) == [prompt]


@pytest.mark.parametrize("count", [20, 21])
def test_confusion_matrix_is_reported_for_at_most_twenty_classes(count):
    task = Classification(classes=[f"c{i}" for i in range(count)], input_kind="text")
    labels, predictions = torch.arange(count), torch.arange(count).roll(1)
    lines = task.report_markdown([{"labels": labels, "predictions": predictions}]).splitlines()
    if count > 20:
        assert lines == []
        return
    names = [f"c{i}" for i in range(count)]
    assert lines[0] == f"| class | predicted as {' | '.join(names)} |"
    assert set(lines[1]) == set("|-")
    assert lines[1].count("|") == count + 2
    for i, name in enumerate(names):  # each class is taken for the one before it
        row = ["1" if j == (i - 1) % count else "0" for j in range(count)]
        assert lines[2 + i] == f"| {name} | {' | '.join(row)} |"
    assert len(lines) == 2 + count


@pytest.mark.usefixtures("real_pictures")
@pytest.mark.catches("picture_of_values_is_not_written")
@pytest.mark.parametrize("name", ["text", "features"])
def test_task_plots_of_predictions(name, tmp_path):
    task, records, _ = FITTED[name]
    task = task.fit(as_records(records, task.schema))
    model = model_for(task)
    batch_stats = [task.eval_step(model, batch) for batch in served(task, records)]
    assert task.plot(batch_stats, tmp_path / "answers.png")
    assert (tmp_path / "answers.png").read_bytes().startswith(b"\x89PNG")


def uniform(task, vocabulary, count, random):
    """Records of uniformly random tokens; the best possible loss is that of a uniform guess."""

    def text(length):
        return "".join(random.choice(list(vocabulary), length))

    if isinstance(task, Seq2Seq):
        return [{"source": text(8), "target": text(8)} for _ in range(count)]
    if isinstance(task, Classification):
        return [{"input": text(8), "label": str(random.integers(4))} for _ in range(count)]
    return [{"text": text(16)} for _ in range(count)]


@pytest.mark.parametrize("name", ["causal", "prefix", "seq2seq", "text"])
def test_loss_on_random_tokens_does_not_fall_below_chance(name):
    """Leak test: a validation loss below that of a uniform guess would mean that labels leak."""
    random = np.random.default_rng(0)
    task, _, kind = FITTED[name]
    train, val = (uniform(task, "abcdefgh", n, random) for n in (400, 200))
    data = MiniFormerDataModule(
        train, val_path=val, task=task, tokenizer=BYTES, batch_size=32, seq_len=17
    )
    data.setup()
    task = data.task
    model = model_for(task, kind).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(6):
        for batch in data.train_dataloader():
            loss, count = task.loss(model, batch)
            optimizer.zero_grad()
            (loss / count).backward()
            optimizer.step()
    with torch.no_grad():
        batch_stats = [task.eval_step(model.eval(), batch) for batch in data.val_dataloader()]
    metrics = task.compute_metrics(batch_stats)
    if name == "text":
        assert metrics["loss"] > math.log(4) - 0.02
        assert abs(metrics["accuracy"] - 0.25) < 0.1
        return
    # EOS of a text of known length is predictable: one certain token.
    certain = {"causal": 17, "prefix": 9, "seq2seq": 9}[name]
    floor = math.log(8) * (certain - 1) / certain
    assert floor - 0.02 < metrics["loss"] < math.log(8) + 0.7


def test_length_buckets_are_used_by_unpacked_tasks():
    for name, (task, records, _) in FITTED.items():
        fitted = task.fit(as_records(records, task.schema))
        batcher = fitted.batcher(BYTES, seq_len=16, batch_size=2, batch_tokens=None, training=True)
        assert isinstance(batcher, LengthBucketBatcher) == (name != "causal")


@pytest.mark.catches("sources_take_the_tokenizer_of_targets")
def test_seq2seq_encodes_with_separate_tokenizers():
    targets = Tokenizer.train("char", ["xyz"])
    targets.separate_source_tokenizer = Tokenizer.train("char", ["abcdef"])
    record = {"source": "fed", "target": "xyzzy"}
    (example,) = Seq2Seq().encode([record], targets, 16)
    source, target = example["source"].tolist(), example["labels"].tolist()
    assert source == [
        *targets.separate_source_tokenizer.encode("fed"),
        targets.separate_source_tokenizer.eos_id,
    ]
    assert target == [*targets.encode("xyzzy"), targets.eos_id]
    assert targets.separate_source_tokenizer.decode(source) == "fed"
