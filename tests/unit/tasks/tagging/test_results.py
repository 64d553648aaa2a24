"""Results of records against plain loops."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from miniformer.tasks.tagging.results import counts_table, make_results, tag_counts
from miniformer.tasks.tagging.span_metrics import count_spans
from miniformer.tasks.tagging.tagged_words import TaggedWords

RANDOM = np.random.default_rng(0)
CLASSES = ["B-x", "I-x", "O"]


def stats_of_batches():
    """Two batches of words, in no order, of records 3, 5 and 8."""
    keys = [(record, word) for record, count in ((3, 2), (5, 1), (8, 4)) for word in range(count)]
    keys = [keys[row] for row in RANDOM.permutation(len(keys))]
    columns = {
        "word_records": np.array([record for record, _ in keys]),
        "positions": np.array([word for _, word in keys]),
        "in_parts": np.zeros(len(keys), dtype=bool),
        "predictions": RANDOM.integers(3, size=len(keys)),
        "labels": RANDOM.integers(3, size=len(keys)),
        "scores": RANDOM.random(len(keys)).astype(np.float32),
        "losses": RANDOM.random(len(keys)).astype(np.float32),
    }
    columns["predictions"][columns["word_records"] == 5] = 1  # a record that is right
    columns["labels"][columns["word_records"] == 5] = 1
    return [{name: x[:4] for name, x in columns.items()}, {n: x[4:] for n, x in columns.items()}]


STATS = stats_of_batches()
WORDS = TaggedWords.from_stats(STATS, CLASSES)
ROWS = sorted(
    zip(*(np.concatenate([s[n] for s in STATS]).tolist() for n in STATS[0]), strict=True)
)  # records, positions, in_parts, predictions, labels, scores, losses


@pytest.mark.catches("record_is_correct_with_one_right_tag")
@pytest.mark.parametrize("with_spans", [True, False])
def test_results_of_records_match_plain_loops(with_spans):
    spans = None
    if with_spans:
        tags = (WORDS.tags(WORDS.labels), WORDS.tags(WORDS.predictions))
        spans = count_spans(*tags, "iob2", ["x"])
    results = make_results(WORDS, ["x"], spans)
    assert results.records.tolist() == [3, 5, 8]
    for row, record in enumerate((3, 5, 8)):
        rows = [word for word in ROWS if word[0] == record]
        assert results.predictions[row] == [CLASSES[word[3]] for word in rows]
        assert results.truths[row] == [CLASSES[word[4]] for word in rows]
        assert results.correct[row] == all(word[3] == word[4] for word in rows)
        assert results.scores[row] == pytest.approx(np.prod([word[5] for word in rows]))
        assert results.losses[row] == pytest.approx(np.mean([word[6] for word in rows]))
        assert results.weights[row] == len(rows)
    assert results.correct.tolist() == [False, True, False]
    if with_spans:
        assert results.classes == ["x"]
        assert results.class_counts.tolist() == spans.sum(0).tolist()
    else:
        assert results.classes == CLASSES
        expected = confusion_matrix([w[4] for w in ROWS], [w[3] for w in ROWS], labels=range(3))
        assert results.confusion.tolist() == expected.tolist()


def test_counts_table_matches_sklearn():
    counts = tag_counts(WORDS)
    assert counts.shape == (3, 3, 3)
    lines = counts_table("tag", ["a", "b|c", "d"], counts.sum(0), "tokens").splitlines()
    assert lines[0] == "| tag | precision | recall | F1 | tokens |"
    expected = precision_recall_fscore_support(
        [w[4] for w in ROWS], [w[3] for w in ROWS], labels=range(3), zero_division=0
    )
    for row, name in enumerate(("a", "b\\|c", "d")):
        p, r, f1, support = (column[row] for column in expected)
        assert lines[2 + row] == f"| {name} | {p:.3f} | {r:.3f} | {f1:.3f} | {support} |"
