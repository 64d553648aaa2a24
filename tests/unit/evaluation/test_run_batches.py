"""The metrics of an evaluation are those of training; results of records add up to them."""

import math

import numpy as np
import pytest
import torch

from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.evaluation.run_batches import BatchSettings, run_batches
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.masked_lm import MaskedLM
from miniformer.tasks.prefix_language_modeling import PrefixLanguageModeling
from miniformer.tasks.regression import Regression
from miniformer.tasks.seq2seq import Seq2Seq
from miniformer.tasks.token_classification import TokenClassification
from miniformer.training.lit_module import MiniFormerLitModule
from tests.kit import a_series, tiny_model
from tests.kit.training import cpu_trainer

BYTES = Tokenizer.train("byte", [])
SIZES = BatchSettings(seq_len=24, batch_size=4)
ONE_BY_ONE = BatchSettings(seq_len=24, batch_tokens=1)
WORDS = ["ab", "aba", "cabb", "bca bc", "a", "ccab ab a", "bb ca", "cab", "abc abc ab", "b"]
TEXTS = [{"text": f"{word} {ending}"} for word in WORDS for ending in WORDS[:3]]
LABELS = [{"input": word, "label": "xyz"[len(word) % 3]} for word in WORDS * 2]
VALUES = [{"input": [word, "b"], "value": 0.3 * len(word) + n} for n, word in enumerate(WORDS * 2)]
TARGETS = [{"source": word, "target": word[::-1] + "a"} for word in WORDS]
SERIES = a_series(np.random.default_rng(0))
TAGS = [
    {"tokens": text.split(), "tags": ["B-x" if word < "b" else "O" for word in text.split()]}
    for text in (record["text"] for record in TEXTS)
]
CLASSES = [{**record, "tags": [len(t) for t in record["tokens"]]} for record in TAGS]
DATA = {
    "classification": (Classification(), LABELS, None),
    "weighted": (Classification(class_weights="balanced"), LABELS, None),
    "regression": (Regression(), VALUES, None),
    "series": (Regression(target_delta_of=1), SERIES, None),
    "seq2seq": (Seq2Seq(), TARGETS, "seq2seq"),
    "prefix": (PrefixLanguageModeling(), TEXTS, "seq2seq"),
    "causal": (LanguageModeling(), TEXTS, None),
    "tags": (TokenClassification(), TAGS, None),
    "classes of tokens": (TokenClassification(), CLASSES, None),
    "masked": (MaskedLM(mask_share=0.4), TEXTS, None),
}


def fitted(name):
    """Records, the task fitted to them, and a random model."""
    task, data, kind = DATA[name]
    records = as_records(data, task.schema)
    task = task.fit(records)
    tokenizer = BYTES if task.reads_text() else None
    if name == "masked":
        tokenizer = Tokenizer.train("bpe", [record["text"] for record in data], vocab_size=300)
    fields = task.model_config({}, tokenizer)
    cls = Seq2SeqTransformer if kind else Transformer
    model = tiny_model(model=cls, **{"causal": False, "max_seq_len": 48, **fields})
    return records, task, tokenizer, model


@pytest.fixture(scope="module", params=DATA)
def case(request):
    records, task, tokenizer, model = fitted(request.param)
    metrics, results = run_batches(model, task, tokenizer, records, SIZES)
    return request.param, records, task, tokenizer, model, metrics, results


@pytest.mark.catches("precision_of_the_test_is_that_of_training")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_run_batches_metrics_are_those_of_a_test_in_training(case, precision):
    """Every metric has the same bits as that of `trainer.test`."""
    _, records, task, tokenizer, model, metrics, _ = case
    data = MiniFormerDataModule(
        records, test_path=records, task=task, tokenizer=tokenizer, seq_len=24, batch_size=4
    )
    module = MiniFormerLitModule(model, task=task, tokenizer=tokenizer)
    trainer = cpu_trainer(precision=precision)
    trainer.test(module, data, verbose=False)
    model.eval()
    expected = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert expected == {
        f"test_{name}": torch.tensor(value).item() for name, value in metrics.items()
    }


@pytest.mark.catches("results_keep_the_order_of_batches")
def test_resampled_metrics_of_all_records_are_the_metrics(case):
    _, records, task, *_, metrics, results = case
    assert results.records.tolist() == list(range(len(records)))
    sums = task.resampled_metrics(results, np.ones((1, len(records)), np.int64))
    assert {name: value.item() for name, value in sums.items()} == pytest.approx(metrics, rel=1e-5)


@pytest.mark.catches("resample_ignores_repetitions", "ranks_are_those_of_all_records")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", sorted(DATA.keys() - {"causal", "masked"}), indirect=True)
def test_resampled_metrics_are_those_of_the_repeated_records(case, seed):
    """A resample has the metrics of a file in which each record is repeated.

    Packed windows and masks also depend on the other records.
    """
    _, records, task, tokenizer, model, *_ = case
    drawn = np.random.default_rng(seed).integers(len(records), size=len(records))
    counts = np.bincount(drawn, minlength=len(records))[None]
    repeated = as_records([records[index] for index in drawn], task.schema)
    # One by one: rounding that depends on the batch would order equal predictions.
    expected, _ = run_batches(model, task, tokenizer, repeated, ONE_BY_ONE)
    _, results = run_batches(model, task, tokenizer, records, ONE_BY_ONE)
    sums = task.resampled_metrics(results, counts)
    assert {key: value.item() for key, value in sums.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.catches("label_belongs_to_the_next_text", "token_losses_are_means")
def test_results_of_texts_are_losses_of_their_own_tokens():
    """Each token of packed windows counts for the text that it is of; plain loops agree."""
    records, task, tokenizer, model = fitted("causal")
    _, results = run_batches(model, task, tokenizer, records, SIZES)
    ids = [BYTES.eos_id]
    owners = []
    for number, record in enumerate(records):
        ids += [*BYTES.encode_batch([record["text"]])[0], BYTES.eos_id]
        owners += [number] * (len(record["text"]) + 1)
    losses = np.zeros(len(records))
    for start in range(0, len(owners), 24):
        window = ids[start : start + 24]
        for position in range(min(24, len(owners) - start)):
            # The context is the text's own, back to its BOS token or to the window's start.
            first = max(i for i in range(position + 1) if window[i] == BYTES.eos_id or i == 0)
            logits = model(torch.tensor([window[first : position + 1]]))[0, -1]
            label = ids[start + position + 1]
            losses[owners[start + position]] -= logits.log_softmax(-1)[label].item()
    assert results.losses * results.weights == pytest.approx(losses, rel=1e-4)
    assert results.statistics["bytes"].tolist() == [len(record["text"]) for record in records]


@pytest.mark.catches("results_belong_to_other_records")
def test_results_of_classes_are_probabilities_of_single_inputs():
    records, task, tokenizer, model = fitted("classification")
    _, results = run_batches(model, task, tokenizer, records, SIZES)
    for row, record in enumerate(records):
        single = task.predict(model, tokenizer, [record["input"]], None)[0]
        assert results.predictions[row] == single["label"]
        assert results.scores[row] == pytest.approx(single["score"], rel=1e-5)
        assert results.truths[row] == record["label"]
        loss = -math.log(single["scores"][record["label"]])
        assert results.losses[row] == pytest.approx(loss, rel=1e-5)
    assert results.correct.tolist() == [
        a == b for a, b in zip(results.predictions, results.truths, strict=True)
    ]


def test_run_batches_restores_the_mode_and_reports_progress():
    records, task, tokenizer, model = fitted("classification")
    seen = []
    model.train()
    run_batches(model, task, tokenizer, records, SIZES, progress=lambda *done: seen.append(done))
    assert model.training
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
