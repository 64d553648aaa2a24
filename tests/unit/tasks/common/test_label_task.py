"""Classes, their counts and warnings about them, shared by the tasks with classes."""

import json

import pytest

from miniformer.config import TransformerConfig, UserError
from miniformer.data.reading.records import as_records
from miniformer.tasks.classification import Classification
from miniformer.tasks.multilabel_classification import MultiLabelClassification


def fitted(kind, records, **options):
    task = kind(**options)
    return task.fit(as_records(records, task.schema))


def single(labels):
    return [{"input": "x", "label": label} for label in labels]


def test_class_counts_are_of_the_training_data():
    assert fitted(Classification, single("abbb")).class_counts == [1, 3]
    assert fitted(Classification, single("abbb"), classes=["b", "c", "a"]).class_counts == [3, 0, 1]


@pytest.mark.catches("single_labels_are_not_announced")
def test_record_warnings_name_labels_that_occur_once_with_their_line(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [["a"], ["a", "b"], ["a", "c"], ["b"]]
    path.write_text("".join(json.dumps({"input": "x", "labels": row}) + "\n" for row in rows))
    task = MultiLabelClassification()
    records = as_records(str(path), task.schema)
    task = task.fit(records)
    assert list(task.record_warnings(records)) == [
        f"warning: labels that occur once: 'c' ({path}:3); one record teaches little and may be a "
        "misspelling: correct it, add records, or leave it out"
    ]
    many = single(["often"] * 9 + [f"class {n}" for n in range(9)])
    task = fitted(Classification, many)
    most, line = task.record_warnings(as_records(many, task.schema))
    assert "9 of 10 labels occur once: check that the column of labels is not one of ids" in most
    assert "'class 4' (record 13) and 4 more;" in line


def test_record_warnings_name_classes_without_records():
    records = single("aabb")
    task = fitted(Classification, records, classes=["a", "b", "z"])
    (line,) = task.record_warnings(as_records(records, task.schema))
    assert line == "warning: no training record is of class 'z'; it cannot be learned"


@pytest.mark.parametrize("given", [{}, {"class_weights": "balanced"}, {"balanced_sampling": 0.5}])
def test_setting_notes_suggest_weights_for_unequal_classes(given):
    notes = fitted(Classification, single("a" * 7 + "bb"), **given).setting_notes()
    assert (not notes) == bool(given)
    assert fitted(Classification, single("aaabb")).setting_notes() == []
    if notes:
        assert (notes[0].name, notes[0].value) == ("task_config.class_weights", None)
        assert "classes are unequal, 7 of 'a' and 2 of 'b'" in notes[0].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": "balanced", "balanced_sampling": 0.5}, "leave one of them out"),
        ({"class_counts": [1, 2]}, "class_counts need classes"),
        ({"class_counts": [1, 2], "classes": [1, 2, 3]}, "class_counts has 2 counts for 3 classes"),
        ({"class_counts": [1, -2], "classes": [1, 2]}, "class_counts must be at least 0"),
    ],
)
def test_label_options_reject_invalid_values(options, message):
    with pytest.raises(UserError, match=message):
        Classification(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": "balanced"}, "class_weights=balanced needs the number of records"),
        ({"balanced_sampling": 0.5}, "balanced_sampling needs the number of records"),
    ],
)
def test_options_that_need_class_counts_are_refused_for_streams(options, message):
    """A stream is not read before training."""
    task = Classification(classes=["a", "b"], input_kind="text", **options)
    config = TransformerConfig(vocab_size=258, d_model=16, n_heads=2, output_dim=2)
    with pytest.raises(UserError, match=message):
        task.check(config, None)


def test_classification_of_lists_names_the_task_for_them():
    with pytest.raises(UserError, match="use task multilabel_classification"):
        fitted(Classification, [{"input": "x", "label": ["a", "b"]}])
    with pytest.raises(UserError, match="use task multilabel_classification"):
        fitted(Classification, [{"input": "x", "labels": ["a", "b"]}])
