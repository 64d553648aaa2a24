"""Every option of every task survives `fit`, or a warning states that it has no effect."""

import dataclasses

import pytest

from miniformer import registry
from miniformer.config import TransformerConfig, UserError
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer

TEXTS = [
    {"input": "ab " * n, "label": n % 2, "labels": [n % 2], "value": float(n)} for n in range(1, 13)
]
PAIRS = [{**record, "input": [record["input"], "b"]} for record in TEXTS]
VECTORS = [{**record, "input": [[1.0, 2.0], [float(n), 3.0]]} for n, record in enumerate(TEXTS)]
DOCUMENTS = [{"text": "ab cd"}, {"text": "ef"}]
TAGS = [{"tokens": ["ab", "cd" * n], "tags": [0, n % 2]} for n in range(1, 13)]
TARGETS = [{"source": "ab", "target": "cd"}, {"source": "e", "target": "f"}]
SERIES = [{"source": record["input"], "target": "ab"} for record in VECTORS]
DATA = {
    "classification": [TEXTS, PAIRS, VECTORS],
    "token_classification": [TAGS],
    "regression": [TEXTS, PAIRS, VECTORS],
    "multilabel_classification": [TEXTS, PAIRS, VECTORS],
    "ordinal_regression": [TEXTS, PAIRS, VECTORS],
    "masked_lm": [DOCUMENTS, TEXTS, PAIRS],
    "language_modeling": [DOCUMENTS],
    "seq2seq": [TARGETS, SERIES],
}
# A value of each option that is not its default.
GIVEN = {
    "input_kind": ["text", "pair", "features"], "input_dim": [2, 3], "bpe_dropout": [0.1],
    "copy_noise": [0.5],
    "shared_token_types": [True], "standardize": [False], "max_input_len": [9],
    "source_kind": ["text", "features"],
    "feature_means": [[1.0, 2.0]], "feature_stds": [[2.0, 3.0]],
    "classes": [[1, 0], [0, 1, 2]], "class_weights": [[1.0, 2.0], "balanced"],
    "balanced_sampling": [0.5], "class_counts": [[3, 4]],
    "thresholds": [[0.3, 0.4], 0.2], "threshold_tuning": ["common"],
    "label_smoothing": [0.1], "r_drop": [0.5], "num_values": [2], "value_names": [["a", "b"]],
    "target_mean": [0.5], "target_std": [2.0],
    "target_delta_of": [0, 1], "scale_epsilon": [0.25], "field": ["input"],
    "mask_share": [0.3], "scheme": ["none"], "check_tags": [False], "valid_predictions": [False],
    "strict_spans": [True], "outside_bias": [1.5], "word_pooling": ["first", "last"],
    "prepend_bos": [False], "packing": ["best_fit"], "max_source_len": [9], "max_target_len": [9],
    "train_on": ["all"], "chat_template": ["chatml"], "overlong": ["refuse"],
    "start_id": [3], "eval_generate_samples": [7], "num_beams": [2], "length_penalty": [0.5],
}  # fmt: skip
# What goes with a value that cannot be given alone.
WITH = {
    "feature_means": {"feature_stds": [2.0, 3.0]}, "feature_stds": {"feature_means": [1.0, 2.0]},
    "class_weights": {"classes": [0, 1]}, "class_counts": {"classes": [0, 1]},
    "thresholds": {"classes": [0, 1]},
}  # fmt: skip
TOKENIZER = Tokenizer.train("bpe", ["ab cd ef " * 9] * 3, 300)


def test_task_options_are_all_tested():
    tested = {
        field.name
        for name in registry.names("task")
        for field in dataclasses.fields(registry.get("task", name))
    }
    assert tested == set(GIVEN)
    assert set(registry.names("task")) - {"embedding"} == set(DATA)


def cases():
    for task, data in DATA.items():
        for field in dataclasses.fields(registry.get("task", task)):
            for value in GIVEN[field.name]:
                for records in data:
                    yield task, field.name, value, records


def warnings_of(task):
    """Warnings before training; raises the error that would end it."""
    config = TransformerConfig.from_dict(task.model_config({}, TOKENIZER))
    task.check(config, TOKENIZER if task.reads_text() else None)
    return list(task.data_warnings())


@pytest.mark.parametrize(
    ("name", "option", "value", "records"),
    [
        pytest.param(*case, id=f"{case[0]}-{case[1]}-{case[2]}-{number}")
        for number, case in enumerate(cases())
    ],
)
@pytest.mark.catches("fit_overwrites_what_was_given")
def test_task_options_survive_fit_or_are_refused_or_announced(name, option, value, records):
    problem = None
    try:
        given = registry.get("task", name).from_dict({option: value, **WITH.get(option, {})})
        task = given.fit(as_records(records, given.schema))
        messages = warnings_of(task)
    except UserError as error:
        problem = str(error)
    if problem is not None:  # by the option's own name, or since records have no such field
        assert any(name in problem for name in (option, "input", "label", "source"))
        return
    if (option, value) == ("class_weights", "balanced"):
        assert isinstance(task.class_weights, list)  # computed from the data
        return
    retained = getattr(task, option) == value
    warned = any(line.startswith("warning: ") and option in line for line in messages)
    assert retained or warned, (getattr(task, option), messages)
    for required, default in WITH.get(option, {}).items():
        assert getattr(task, required) == default


@pytest.mark.parametrize("name", DATA)
def test_fit_of_a_fitted_task_changes_nothing(name):
    for records in DATA[name]:
        for settings in ({}, {"field": "input"}) if name == "masked_lm" else ({},):
            first = registry.get("task", name)(**settings)
            try:
                task = first.fit(as_records(records, first.schema))
            except UserError:
                continue
            assert task.fit(as_records(records, task.schema)) == task


def test_scale_epsilon_without_a_series_is_announced():
    task = registry.get("task", "regression")(scale_epsilon=0.5)
    task = task.fit(as_records(VECTORS, task.schema))
    assert any("scale_epsilon has no effect" in line for line in task.data_warnings())


# The least and the most that each number may be, and a value just beyond each.
LIMITS = {
    "input_dim": [(1, 0)], "max_input_len": [(1, 0)], "bpe_dropout": [(0.0, -0.001), (0.99, 0.991)],
    "copy_noise": [(0.0, -0.001), (1.0, 1.001)],
    "balanced_sampling": [(0.0, -0.001), (1.0, 1.001)],
    "thresholds": [(0.0, -0.001), (1.0, 1.001)],
    "label_smoothing": [(0.0, -0.001), (0.99, 0.991)], "r_drop": [(0.0, -0.001)],
    "mask_share": [(0.001, 0.0), (0.9, 0.901)], "max_source_len": [(2, 1)],
    "max_target_len": [(2, 1)], "start_id": [(0, -1)], "eval_generate_samples": [(0, -1)],
    "num_beams": [(1, 0)],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(DATA) - {"language_modeling"}))
def test_task_options_have_their_documented_limits(name):
    kind = registry.get("task", name)
    options = {field.name for field in dataclasses.fields(kind)} & set(LIMITS)
    if name == "masked_lm":
        options -= {"input_dim"}  # it reads no vectors
    for option in options:
        for allowed, beyond in LIMITS[option]:
            assert getattr(kind.from_dict({option: allowed}), option) == allowed
            with pytest.raises(UserError, match=f"{option} must be .*, not {beyond}"):
                kind.from_dict({option: beyond})


@pytest.mark.catches("short_models_have_no_room_for_a_text")
@pytest.mark.parametrize(
    ("name", "records", "least"),
    [
        ("classification", TEXTS, 2), ("classification", PAIRS, 4), ("regression", PAIRS, 4),
        ("masked_lm", PAIRS, 4), ("classification", VECTORS, 1), ("seq2seq", TARGETS, 2),
        ("token_classification", TAGS, 2),
    ],
)  # fmt: skip
def test_task_rejects_max_seq_len_without_room_for_each_text(name, records, least):
    options = {"field": "input"} if name == "masked_lm" else {}
    task = registry.get("task", name).from_dict(options)
    task = task.fit(as_records(records, task.schema))
    tokenizer = TOKENIZER if task.reads_text() else None

    def config(length):
        return TransformerConfig.from_dict(
            {**task.model_config({}, TOKENIZER), "max_seq_len": length}
        )

    task.check(config(least), tokenizer)
    for example in task.encode(records, tokenizer, least):
        assert all(len(example[array]) <= least for array in task.token_arrays)
    if least > 1:
        with pytest.raises(UserError, match=f"max_seq_len must be at least {least} for .*, not"):
            task.check(config(least - 1), tokenizer)
