"""Targets that a model generates in an evaluation, against plain generation and sacrebleu."""

import sys

import numpy as np
import pytest
import torch

from miniformer.config import UserError
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.tasks.common.generated_texts import make_results
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import tiny_model
from tests.kit.tasks import batches_of

BYTES = Tokenizer.train("byte", [])
B = BYTES.eos_id
TARGETS = [{"source": "ab" * n, "target": "c" * (n % 5)} for n in range(12)]


def seq2seq_model(**changes):
    fields = {"vocab_size": 258, "max_seq_len": 64, "causal": False, **changes}
    return tiny_model(model=Seq2SeqTransformer, **fields)


def served(task, records):
    return batches_of(task, records, BYTES, seq_len=64, batch_size=4)


def test_generated_metrics_match_their_definitions():
    import sacrebleu

    task = Seq2Seq()
    written = ["a cat sits on the mat", "the dog barks at night", "no"]
    required = ["a cat sits on the mat", "the dog sleeps at night", "yes"]
    batch_stats = [
        {"loss": 6.0, "count": 2.0, "generated": list(map(BYTES.encode, written[:2])),
         "references": required[:2]},
        {"loss": 2.0, "count": 2.0, "generated": [BYTES.encode(written[2])],
         "references": required[2:]},
        {"loss": 4.0, "count": 2.0},
    ]  # fmt: skip
    metrics = task.compute_metrics(batch_stats, BYTES)
    assert metrics["loss"] == pytest.approx(2.0)
    assert metrics["exact_match"] == pytest.approx(1 / 3)
    assert metrics["bleu"] == pytest.approx(
        sacrebleu.BLEU().corpus_score(written, [required]).score
    )
    assert metrics["chrf"] == pytest.approx(
        sacrebleu.CHRF().corpus_score(written, [required]).score
    )
    assert "3 examples" in task.report_markdown(batch_stats)


def test_without_sacrebleu_omits_its_metrics_and_warns(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    task = Seq2Seq()
    batch_stats = [
        {"loss": 1.0, "count": 1.0, "generated": [BYTES.encode("a")], "references": ["a"]}
    ]
    assert task.compute_metrics(batch_stats, BYTES) == {"loss": 1.0, "exact_match": 1.0}
    (note,) = task.pre_run_warnings("loss")
    assert note == 'BLEU and chrF are not computed; they need pip install "miniformer[eval]"'
    with pytest.raises(UserError, match="checkpoint_metric=bleu needs the package sacrebleu"):
        list(task.pre_run_warnings("bleu"))


@pytest.mark.catches("validation_searches_like_a_test")
def test_validation_generates_what_the_model_generates():
    task = Seq2Seq(eval_generate_samples=7, num_beams=4)  # which validation leaves alone
    model = seq2seq_model()
    batches = served(task, TARGETS)
    batch_stats = [task.eval_step(model, batch) for batch in batches]
    written = [row for item in batch_stats for row in item.get("generated", [])]
    references = [text for item in batch_stats for text in item.get("references", [])]
    assert len(written) == len(references) == 7
    by_target = {}
    for record in TARGETS:
        by_target.setdefault(record["target"], []).append(record["source"])
    for row, reference in zip(written, references, strict=True):
        possible = [
            model.generate(
                [[*BYTES.encode(source), B]], max_new_tokens=max(1, len(row) + 1), start_id=B,
                temperature=0, eos_id=B,
            )[0][: len(row)]
            for source in by_target[reference]
        ]  # fmt: skip
        assert row in possible


def test_test_generates_for_all_examples_with_beam_search():
    task = Seq2Seq(eval_generate_samples=1, num_beams=3)
    model = seq2seq_model()
    batches = served(task, TARGETS)
    batch_stats = [task.test_step(model, batch) for batch in batches]
    assert sum(len(item["generated"]) for item in batch_stats) == len(TARGETS)
    assert f"beam search with 3 beams, {len(TARGETS)} examples" in task.report_markdown(batch_stats)
    longest = int((batches[0]["labels"] != IGNORE_INDEX).sum(1).max())
    searched = model.generate(
        batches[0]["source"], 2 * longest + 10, source_mask=batches[0].get("source_mask"),
        start_id=B, num_beams=3, eos_id=B,
    )  # fmt: skip
    ids = [[x for x in row if x != B] for row in searched.tolist()]
    assert [[x for x in row if x != B] for row in batch_stats[0]["generated"]] == ids
    assert "generated" not in Seq2Seq(eval_generate_samples=0).test_step(model, batches[0])


@pytest.mark.catches("tests_ignore_the_length_penalty", "models_ignore_the_length_penalty")
def test_beam_search_uses_the_length_penalty_of_the_task():
    model = seq2seq_model(head_bias=True)
    with torch.no_grad():
        model.head.bias[B] += 2.0  # an end is likely enough for the penalty to decide
    lengths = set()
    for penalty in (-2.0, 1.0, 3.0):
        task = Seq2Seq(num_beams=3, length_penalty=penalty)
        total = 0
        for batch in served(task, TARGETS):
            longest = int((batch["labels"] != IGNORE_INDEX).sum(1).max())
            searched = model.generate(
                batch["source"], 2 * longest + 10, source_mask=batch.get("source_mask"),
                start_id=B, num_beams=3, eos_id=B, temperature=0, length_penalty=penalty,
            )  # fmt: skip
            expected = [[x for x in row if x != B] for row in searched.tolist()]
            written = task.test_step(model, batch)["generated"]
            assert [[x for x in row if x != B] for row in written] == expected
            total += sum(map(len, expected))
        lengths.add(total)
        config = task.default_generation_config(model.config, BYTES)
        assert (config.num_beams, config.length_penalty) == (3, penalty)
    assert len(lengths) == 3


@pytest.mark.catches("results_are_in_the_order_of_batches")
def test_results_are_in_the_order_of_the_records():
    """Batches of similar lengths have the records in another order."""
    stats = [
        {"records": torch.tensor([2, 0]), "token_records": torch.tensor([2, 2, 0]),
         "token_losses": torch.tensor([1.0, 3.0, 5.0]),
         "generated": [BYTES.encode("c"), BYTES.encode("x")], "references": ["c", "a"]},
        {"records": torch.tensor([1]), "token_records": torch.tensor([1]),
         "token_losses": torch.tensor([7.0]), "generated": [BYTES.encode("b")],
         "references": ["b"]},
    ]  # fmt: skip
    results = make_results(stats, BYTES)
    assert results.records.tolist() == [0, 1, 2]
    assert results.predictions == ["x", "b", "c"]
    assert results.truths == ["a", "b", "c"]
    np.testing.assert_array_equal(results.correct, [False, True, True])
    np.testing.assert_allclose(results.losses, [5.0, 7.0, 2.0])
    np.testing.assert_array_equal(results.weights, [1, 1, 2])
    assert make_results(stats, None).predictions == [None] * 3
