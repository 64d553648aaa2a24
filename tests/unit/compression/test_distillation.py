"""The loss term of distillation, against the divergence of plain outputs in float64."""

import pytest
import torch

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, Tokenizer, UserError
from miniformer.compression import distillation
from miniformer.compression.distillation import Distillation
from miniformer.compression.pruning.importance import record_batches
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.multilabel_classification import MultiLabelClassification
from miniformer.tasks.regression import Regression
from miniformer.tasks.seq2seq import Seq2Seq
from miniformer.tasks.token_classification import TokenClassification
from miniformer.training.loss.terms import LossTerms
from tests.kit import tiny_model
from tests.unit.compression.conftest import TOKENIZER, texts

TEXTS = texts(12, seed=2)
SIZES = {"vocab_size": TOKENIZER.vocab_size}
LABELS = ["a", "b", "c"]
CASES = {
    "language_modeling": (LanguageModeling(), {}, [{"text": x} for x in TEXTS]),
    "seq2seq": (
        Seq2Seq(label_smoothing=0.1),
        {"model": Seq2SeqTransformer, "causal": False},
        [{"source": x, "target": x[::-1]} for x in TEXTS],
    ),
    "classification": (
        Classification(classes=LABELS, input_kind="text"),
        {"causal": False, "output_dim": 3},
        [{"input": x, "label": LABELS[n % 3]} for n, x in enumerate(TEXTS)],
    ),
    "multilabel_classification": (
        MultiLabelClassification(classes=LABELS, input_kind="text"),
        {"causal": False, "output_dim": 3},
        [{"input": x, "labels": LABELS[: n % 4]} for n, x in enumerate(TEXTS)],
    ),
    "regression": (
        Regression(input_kind="text", target_mean=1.0, target_std=2.0),
        {"causal": False, "output_dim": 1},
        [{"input": x, "value": n} for n, x in enumerate(TEXTS)],
    ),
    "token_classification": (
        TokenClassification(classes=LABELS),
        {"causal": False, "output_dim": 3},
        [{"tokens": x.split(), "tags": [LABELS[len(w) % 3] for w in x.split()]} for x in TEXTS],
    ),
}  # fmt: skip


def outputs(task, model, batch):
    """Logits of labeled predictions, float64 [N, V], by the model's own methods."""
    if task.name == "seq2seq":
        logits = model(batch["source"], batch["target"], source_mask=batch.get("source_mask"))
    elif task.name == "language_modeling":
        logits = model(batch["input_ids"], segment_ids=batch.get("segment_ids"))
    elif task.name == "token_classification":
        logits = task.logits(model, batch)
    else:
        return model.classify(batch["inputs"], batch.get("attention_mask")).double()
    return logits[batch["labels"] != -100].double()


def reference(task, student, teacher, temperature):
    """The term, prediction by prediction."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        if task.name == "regression":
            total += ((s - t) ** 2).sum()
        elif task.name == "multilabel_classification":
            for x, y in zip(s / temperature, t / temperature, strict=True):
                p, q = 1 / (1 + torch.exp(-y)), 1 / (1 + torch.exp(-x))
                total += temperature**2 * (
                    p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
                )
        else:
            p, q = torch.softmax(t / temperature, -1), torch.softmax(s / temperature, -1)
            total += temperature**2 * (p * torch.log(p / q)).sum()
    return total


@pytest.mark.catches("the_temperature_has_no_factor", "distillation_includes_padding")
@pytest.mark.parametrize("name", CASES)
def test_the_term_equals_that_of_plain_outputs(name, tmp_path):
    task, changes, records = CASES[name]
    teacher, student = (tiny_model(seed=n, **{**changes, **SIZES}) for n in (1, 2))
    pipeline = Pipeline(teacher, TOKENIZER, task)
    pipeline.save(tmp_path / "teacher")
    term = Distillation(str(tmp_path / "teacher"), temperature=1.5)
    term.start(student, task, TOKENIZER)
    for batch in record_batches(pipeline, records):
        with torch.no_grad():
            own = term(student, batch)
            seen = term.observe(student)
            loss, count, *_ = task.loss(seen, batch)
            recorded = term(student, batch)
            plain_loss, plain_count, *_ = task.loss(student, batch)
            pair = [outputs(task, model, batch) for model in (student, teacher)]
        assert torch.equal(loss, plain_loss)
        assert torch.equal(count, plain_count)
        expected = float(reference(task, *pair, 1.5))
        assert expected > 0.01
        assert float(own.total) == pytest.approx(expected, rel=1e-4)
        assert torch.equal(recorded.total, own.total)
        assert own.count is None


@pytest.mark.catches("gradients_of_chunks_are_lost")
def test_chunks_of_logits_have_the_same_gradients(tmp_path, monkeypatch):
    task, _, records = CASES["language_modeling"]
    teacher, student = (tiny_model(seed=n, **SIZES) for n in (1, 2))
    pipeline = Pipeline(teacher, TOKENIZER, task)
    pipeline.save(tmp_path / "teacher")
    term = Distillation(str(tmp_path / "teacher"))
    (batch, *_) = record_batches(pipeline, records)
    gradients = []
    for limit in (2**24, 7 * TOKENIZER.vocab_size):
        monkeypatch.setattr(distillation, "_MAX_LOGITS", limit)
        total = term(student, batch).total
        gradients.append(torch.autograd.grad(total, [*student.parameters()]))
    for single, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, single, rtol=1e-4, atol=1e-4)


@pytest.mark.catches("the_teacher_is_trained")
def test_a_run_reports_the_term_of_its_model(trained, tmp_path):
    trained.save(tmp_path / "teacher")
    student = tiny_model(seed=3, **{**trained.model.config.to_dict(), "d_ff": 16})
    start = Pipeline(student, TOKENIZER, LanguageModeling())
    records = [{"text": x} for x in texts(40)]
    settings = {"in_memory": True, "start": start, "max_steps": 3, "batch_size": 4}
    settings |= {"optimizer": "adamw", "lr": 1e-3, "scheduler": "none", "precision": "float32"}
    term = {"type": "distillation", "teacher": str(tmp_path / "teacher"), "weight": 0.7}
    result = miniformer.train(records, loss_terms=[term], val=records[:8], **settings)
    values = {}
    for name, model in (("before", student), ("after", result.pipeline.model)):
        total, count = 0.0, 0
        for batch in record_batches(trained, records[:8]):
            with torch.no_grad():
                pair = [outputs(start.task, x, batch) for x in (model, trained.model)]
            total += float(reference(start.task, *pair, 2.0))
            count += len(pair[0])
        values[name] = total / count
    assert result.metrics["val_distillation"] == pytest.approx(values["after"], rel=1e-4)
    assert values["after"] < 0.99 * values["before"]


@pytest.mark.catches("the_teacher_is_trained", "distillation_is_a_pass_of_its_own")
def test_the_model_runs_once_and_the_teacher_stays(trained, tmp_path):
    trained.save(tmp_path / "teacher")
    terms = LossTerms(
        trained.task, [{"type": "distillation", "teacher": str(tmp_path / "teacher")}]
    )
    model = tiny_model(**trained.model.config.to_dict()).train()
    terms.start(model, trained.task, TOKENIZER)
    passes = []
    model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    (batch, *_) = record_batches(trained, [{"text": x} for x in TEXTS])
    _, _, values = terms.loss(trained.task, model, batch)
    assert len(passes) == 1
    values["distillation"].total.backward()
    assert all(x.grad is not None for x in model.parameters())
    teacher = terms.configured["distillation"].component.teacher.model
    assert not teacher.training
    assert not any(x.requires_grad for x in teacher.parameters())
    assert all(x.grad is None for x in teacher.parameters())


@pytest.mark.catches("teachers_of_other_classes_are_taken")
def test_teachers_that_do_not_fit(tmp_path):
    task, changes, _ = CASES["classification"]
    model = tiny_model(**{**changes, **SIZES})
    Pipeline(model, TOKENIZER, task).save(tmp_path / "teacher")
    term = Distillation(str(tmp_path / "teacher"))
    with pytest.raises(UserError, match="a model for classification, and the run trains regress"):
        term.start(model, CASES["regression"][0], TOKENIZER)
    reordered = Classification(classes=["b", "a", "c"], input_kind="text")
    with pytest.raises(UserError, match="classes of the teacher differs; train with the classes"):
        term.start(model, reordered, TOKENIZER)
    chars = Tokenizer.train("char", ["abc"])
    with pytest.raises(UserError, match="the tokenizer of the teacher differs"):
        term.start(model, task, chars)
    wide = tiny_model(**{**changes, **SIZES, "output_dim": 4})
    with pytest.raises(UserError, match="the teacher has 3 outputs, and the model 4"):
        term.start(wide, task, TOKENIZER)
    with pytest.raises(UserError, match="temperature must be above 0, not 0"):
        Distillation(str(tmp_path / "teacher"), temperature=0)
    with pytest.raises(UserError, match="nowhere"):
        Distillation("nowhere")
    student = Pipeline(tiny_model(**SIZES), TOKENIZER, LanguageModeling())
    settings = {"loss_terms": [{"type": "distillation", "teacher": str(tmp_path / "teacher")}]}
    with pytest.raises(UserError, match="a model for classification, and the run trains language"):
        miniformer.train([{"text": "a"}], in_memory=True, start=student, max_steps=1, **settings)
