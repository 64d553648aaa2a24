"""Predicted tags and their statistics, against plain loops over words."""

import pytest
import torch

from miniformer.tasks.tagging.predictions import predict_tags, word_stats

CLASSES = ["B-x", "O", "B-y"]
LENGTHS = torch.tensor([[1, 2, 1], [1, 3, 0]])  # the second window has two words
BATCH = {
    "word_lengths": LENGTHS,
    "first_word": torch.tensor([0, 4]), "words_after": torch.tensor([0, 3]),
    "records": torch.tensor([7, 9]), "labels": torch.tensor([[0, 1, 2], [1, 1, -100]]),
}  # fmt: skip
BIASES = (0.0, 1.5)


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(2, 3, 3)


@pytest.mark.catches("every_outside_bias_is_the_first")
def test_bias_lowers_the_tag_outside_of_spans(logits):
    logprobs = logits.log_softmax(-1)
    tags = predict_tags(logprobs, BATCH, CLASSES, None, BIASES)
    assert tags.shape == (2, 2, 3)
    for number, bias in enumerate(BIASES):
        for row in range(2):
            for word in range(3):
                scores = logprobs[row, word].tolist()
                scores[1] -= bias
                assert int(tags[number, row, word]) == scores.index(max(scores))
    assert not torch.equal(*tags)


@pytest.mark.parametrize("biases", [BIASES, BIASES[1:]])
def test_statistics_are_those_of_the_words_of_each_window(logits, biases):
    stats = word_stats(logits, BATCH, CLASSES, None, biases)
    probabilities = logits.softmax(-1)
    expected = predict_tags(logits.log_softmax(-1), BATCH, CLASSES, None, biases)
    cells = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert stats["word_records"].tolist() == [7, 7, 7, 9, 9]
    assert stats["positions"].tolist() == [0, 1, 2, 4, 5]
    assert stats["in_parts"].tolist() == [False] * 3 + [True] * 2
    assert stats["labels"].tolist() == [0, 1, 2, 1, 1]
    for n, (row, word) in enumerate(cells):
        tag, label = int(expected[0, row, word]), int(BATCH["labels"][row, word])
        assert int(stats["predictions"][n]) == tag
        assert float(stats["scores"][n]) == pytest.approx(float(probabilities[row, word, tag]))
        loss = -float(probabilities[row, word, label].log())
        assert float(stats["losses"][n]) == pytest.approx(loss, rel=1e-5)
    assert ("biased_predictions" in stats) == (len(biases) > 1)
    inputs = {name: value for name, value in BATCH.items() if name != "labels"}
    answers = word_stats(logits, inputs, CLASSES, None, biases[:1])
    assert answers.keys().isdisjoint({"labels", "losses"})
