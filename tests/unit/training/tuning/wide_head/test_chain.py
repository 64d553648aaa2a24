"""Loss and fit of a conditional random field against enumeration and scikit-learn."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from miniformer.model.wide_head.chain import log_marginals
from miniformer.training.tuning.wide_head.chain import ChainProblem
from miniformer.training.tuning.wide_head.chain_loss import Chain, chain_loss
from tests.unit.model.wide_head.chain_reference import sequence_score


@pytest.mark.catches("transitions_are_free")
def test_chain_loss_and_gradients_equal_enumeration():
    generator = torch.Generator().manual_seed(0)
    lengths = np.array([2, 4, 1, 3])
    labels = torch.randint(3, (10,), generator=generator)
    values = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((10, 3), (3, 3), (3,))
    ]
    scores, transitions, start = values
    expected, first = torch.zeros((), dtype=torch.float64), 0
    for length in lengths:
        part = slice(first, first + int(length))
        first += int(length)
        totals = [
            sequence_score(scores[part], tags, transitions, start)
            for tags in itertools.product(range(3), repeat=int(length))
        ]
        score = sequence_score(scores[part], labels[part], transitions, start)
        expected = expected + torch.stack(totals).logsumexp(0) - score
    gradients = torch.autograd.grad(expected, values)

    loss, *results = chain_loss(
        scores.detach(), transitions.detach(), start.detach(), Chain(labels, lengths)
    )

    assert loss == pytest.approx(expected.item())
    for result, gradient in zip(results, gradients, strict=True):
        torch.testing.assert_close(result, gradient)


def test_chain_loss_is_exact_for_scores_far_apart():
    scores = torch.tensor([[0.0, 60.0], [60.0, 0.0]])
    transitions, start = torch.tensor([[0.0, -40.0], [30.0, 0.0]]), torch.tensor([5.0, 0.0])
    loss, *_ = chain_loss(scores, transitions, start, Chain(torch.tensor([1, 0]), np.array([2])))
    assert loss == pytest.approx(0.0, abs=1e-4)
    marginals = log_marginals(scores[None], torch.ones(1, 2, dtype=torch.bool), transitions, start)
    assert marginals[0].argmax(-1).tolist() == [1, 0]


@pytest.mark.catches("chain_has_no_penalty")
def test_fit_of_single_words_equals_logistic_regression():
    generator = np.random.default_rng(0)
    matrix = (generator.random((120, 8)) < 0.3).astype(np.float32)
    labels = (matrix @ generator.normal(size=(8, 3)) + generator.normal(size=(120, 3))).argmax(1)
    reference = LogisticRegression(C=4.0, max_iter=1000, tol=1e-8).fit(matrix, labels)
    sparse = torch.from_numpy(matrix).to_sparse_coo().coalesce()
    problem = ChainProblem(sparse, Chain(torch.from_numpy(labels), np.ones(120, dtype=np.int64)), 3)

    weight, bias, transitions, start = problem.solve(4.0, problem.zeros(), 300)

    assert transitions.abs().max() == 0
    probabilities = (torch.from_numpy(matrix) @ weight + bias + start).softmax(-1)
    np.testing.assert_allclose(probabilities, reference.predict_proba(matrix), atol=2e-3)


def test_fit_learns_from_tags_beside_a_word():
    # Nothing is known of the words, and tags alternate in runs of a fixed order.
    labels = torch.tensor([0, 1, 2] * 40)
    sparse = torch.zeros(120, 1).to_sparse_coo().coalesce()
    problem = ChainProblem(sparse, Chain(labels, np.full(20, 6)), 3)
    weight, bias, transitions, start = problem.solve(16.0, problem.zeros())
    assert transitions.argmax(1).tolist() == [1, 2, 0]
    assert problem.loss((weight, bias, transitions, start)) < 0.1
