"""example_gradients: equal to a loop over single examples, for each task and position."""

import dataclasses

import pytest
import torch

from miniformer.config import UserError
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.tasks.classification import Classification
from miniformer.tasks.common.example_gradients import example_gradients
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.masked_lm import MaskedLM
from miniformer.tasks.multilabel_classification import MultiLabelClassification
from miniformer.tasks.ordinal_regression import OrdinalRegression
from miniformer.tasks.prefix_language_modeling import PrefixLanguageModeling
from miniformer.tasks.regression import Regression
from miniformer.tasks.seq2seq import Seq2Seq
from miniformer.tasks.token_classification import TokenClassification
from tests.kit import tiny_model

IDS, MASK = torch.randint(1, 31, (3, 6)), torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
LABELS = torch.where(MASK, IDS, -100)
SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1]])
INPUTS = {"inputs": IDS, "attention_mask": MASK}
CLASSES = {"classes": ["a", "b", "c"], "input_kind": "text"}
WORDS = {"word_starts": torch.tensor([[0, 2], [0, 1], [0, 0]]),
         "word_lengths": torch.tensor([[2, 3], [1, 3], [1, 0]])}  # fmt: skip

# Task, batch, and fields of the model.
CASES = {
    "language_modeling": (
        LanguageModeling(label_smoothing=0.1),
        {"input_ids": IDS, "labels": LABELS, "segment_ids": SEGMENTS, "about": {"tokens": 3}},
        {},
    ),
    "seq2seq": (
        Seq2Seq(label_smoothing=0.1),
        {"source": IDS, "source_mask": MASK, "target": IDS.flip(1), "labels": LABELS},
        {"causal": False},
    ),
    "prefix": (
        PrefixLanguageModeling(),
        {"source": IDS, "target": IDS.flip(1), "labels": LABELS, "bytes": 3.0},
        {"causal": False},
    ),
    "masked_lm": (
        MaskedLM(),
        {**INPUTS, "labels": LABELS},
        {"causal": False, "head": "masked_lm"},
    ),
    "classification": (
        Classification(**CLASSES, class_weights=[0.5, 1.0, 3.0], label_smoothing=0.1),
        {**INPUTS, "labels": torch.tensor([2, 0, 1])},
        {"causal": False, "output_dim": 3},
    ),
    "ordinal_regression": (
        OrdinalRegression(classes=[1, 2, 3], input_kind="text"),
        {**INPUTS, "labels": torch.tensor([2, 0, 1])},
        {"causal": False, "output_dim": 2, "ordered_outputs": True, "pooling": "first"},
    ),
    "multilabel": (
        MultiLabelClassification(**CLASSES, class_weights=[0.5, 1.0, 3.0], label_smoothing=0.1),
        {**INPUTS, "labels": torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.uint8)},
        {"causal": False, "output_dim": 3, "pooling": "mean+max"},
    ),
    "regression": (
        Regression(input_kind="text"),
        {**INPUTS, "labels": torch.tensor([0.5, -1.0, 2.0])},
        {"causal": False, "output_dim": 1, "pooling": "last"},
    ),
    "token_classification": (
        TokenClassification(classes=["a", "b", "c"]),
        {**INPUTS, **WORDS, "labels": torch.tensor([[1, 0], [2, 2], [1, -100]])},
        {"causal": False, "output_dim": 3},
    ),
}  # fmt: skip
PROMISED = ("language_modeling", "seq2seq", "classification")
POSITIONS = ("rotary", "learned", "alibi", "t5_relative")
PARAMETERS = [
    *((name, position, True) for name in PROMISED for position in POSITIONS),
    *((name, "rotary", False) for name in ("language_modeling", "seq2seq")),
    *((name, "rotary", True) for name in CASES if name not in PROMISED),
]


def model_of(name, position="rotary", tied=True):
    kind = {"model": Seq2SeqTransformer} if name in ("seq2seq", "prefix") else {}
    fields = {"n_layers": 1, "tie_embeddings": tied, **CASES[name][2]}
    return tiny_model(position=position, **fields, **kind)


def example(batch, row):
    """The batch of one example."""
    return {
        name: value[row : row + 1] if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


@pytest.mark.catches("example_losses_count_padding", "example_losses_ignore_class_weights")
@pytest.mark.parametrize(("name", "position", "tied"), PARAMETERS)
def test_gradients_equal_a_loop(name, position, tied):
    """In float64, up to the float32 of some losses; the reference is `Task.loss` of one example."""
    task, batch, _ = CASES[name]
    model = model_of(name, position, tied).train().double()
    gradients = example_gradients(model, task, batch)
    losses = task.example_losses(model, batch)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for row in range(3):
        model.zero_grad()
        loss, _ = task.loss(model, example(batch, row))
        loss.backward()
        torch.testing.assert_close(losses[row], loss, rtol=1e-6, atol=1e-6)
        for key, parameter in model.named_parameters():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(gradients[key][row], grad, rtol=1e-6, atol=1e-6)


@pytest.mark.catches("attention_stays_plain")
def test_frozen_parameters_and_backends_stay():
    task, batch, _ = CASES["classification"]
    model = model_of("classification")
    model.embedding.weight.requires_grad_(False)
    backends = [layer.attention.backend for layer in model.layers]
    assert "embedding.weight" not in example_gradients(model, task, batch)
    assert [layer.attention.backend for layer in model.layers] == backends == ["auto"]


def test_each_example_has_its_own_dropout():
    task, batch, _ = CASES["regression"]
    model = model_of("regression")
    model.dropout.p = 0.5
    same = {name: value[:1].expand(8, *value.shape[1:]) for name, value in batch.items()}
    rows = example_gradients(model.train(), task, same)["head.weight"]
    assert len({tuple(row.flatten().tolist()) for row in rows}) > 1
    rows = example_gradients(model.eval(), task, same)["head.weight"]
    torch.testing.assert_close(rows, rows[:1].expand_as(rows))


def test_a_task_without_example_losses():
    task = dataclasses.replace(EmbeddingTask(), input_kind="text")
    with pytest.raises(UserError, match="task=embedding has no losses of single examples"):
        example_gradients(tiny_model(), task, INPUTS)
