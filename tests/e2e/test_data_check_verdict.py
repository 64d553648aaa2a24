"""`data check` reports errors in exactly the files that training refuses."""

import contextlib
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer import cli
from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.setup.prepare import prepare
from miniformer.utils.streams import make_console

SHAPE = {"d_model": 8, "n_heads": 1, "n_layers": 1, "max_seq_len": 32}
# Values of a field: sets of values that may share a file, and invalid ones.
TEXTS = ["ab", "c d", "e", "", " ", "\u2028"]
BLANK = [" ", "", "\u2028"]
INPUTS = [
    TEXTS, [["a", "b"], ["c", ""], ["", ""]], [[[1.0]], [[2.0], [3.0]], [[4]]],
    [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]], [[{"x": 1, "y": 2}], [{"y": 1.5, "x": 3}]],
    [[[3e38]], [[-3e38]]],
]  # fmt: skip
BAD_INPUTS = [
    ["a"], [], None, [[]], [[1e39]], [["1"]], [[True]], [[1.0, 2.0]], [[1.0]], "ab", ["a", "b"],
]  # fmt: skip
LABELS = [["good", "bad"], [0, 1, 2], ["good", "good "], ["bad"], [10**30, -1]]
BAD_LABELS = ["", "good", 0, True, None, 1.5]
VALUES = [[0, 1.5, -2], [1], [3e38, -3e38, 0], [1e-300, 0.0]]
BAD_VALUES = [1e300, -1e300, 10**400, "1", None, True]
BAD_LINES = ['{"a": 1}', "[]", "{", "\ufeff", '{"text": "a", "text": "b"}', '{"text": "a"}\r{}']


@st.composite
def lines(draw, fields):
    """Lines of a file with consistent records, and perhaps an invalid one."""
    choices = {name: draw(st.sampled_from(good)) for name, (good, _) in fields.items()}
    sound = st.fixed_dictionaries(
        {name: st.sampled_from(values) for name, values in choices.items()}
    )
    records = draw(st.lists(sound, min_size=1, max_size=6))
    result = [json.dumps(record) for record in records]
    spoiled = draw(st.sampled_from([None, None, None, "line", *fields]))
    if spoiled == "line":
        result.insert(draw(st.integers(0, len(result))), draw(st.sampled_from(BAD_LINES)))
    elif spoiled is not None:
        record = {**draw(sound), spoiled: draw(st.sampled_from(fields[spoiled][1]))}
        result.insert(draw(st.integers(0, len(result))), json.dumps(record))
    return result


TEXT = ([TEXTS, BLANK], [None, 3])
FIELDS = {
    "classification": {"input": (INPUTS, BAD_INPUTS), "label": (LABELS, BAD_LABELS)},
    "regression": {"input": (INPUTS, BAD_INPUTS), "value": (VALUES, BAD_VALUES)},
    "language_modeling": {"text": TEXT},
    "masked_lm": {"text": TEXT},
    "seq2seq": {"source": TEXT, "target": TEXT},
}
RUNS = [
    *((task, {}, None) for task in FIELDS),
    ("language_modeling", {}, "seq2seq"),
    ("classification", {"class_weights": "balanced"}, None),
    ("classification", {"classes": ["good", "bad"]}, None),
    ("masked_lm", {"field": "input"}, None),
]


def refused(task, task_config, model, train, val, tokenizer="byte"):
    """Error of training on the files before its first step, or None."""
    config = TrainConfig(
        task=task, task_config=task_config, model=model, train_path=str(train),
        val_path=None if val is None else str(val), tokenizer=tokenizer, model_config=SHAPE,
        batch_size=2, max_steps=1,
    )  # fmt: skip
    try:
        prepare(config, make_console())
    except UserError as error:
        if "tokenizer has no effect" in str(error):  # the inputs are vectors
            return refused(task, task_config, model, train, val, tokenizer=None)
        return str(error)
    return None


def verdict(task, task_config, train, val):
    more = [] if val is None else ["--val_path", str(val)]
    return cli.main(
        ["data", "check", str(train), "--task", task, "--task_config", json.dumps(task_config),
         *more]
    )  # fmt: skip


@pytest.mark.parametrize(("task", "task_config", "model"), RUNS)
@pytest.mark.catches("data_check_knows_records_only")
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_data_check_and_training_agree(tmp_path_factory, task, task_config, model, data):
    tmp = tmp_path_factory.mktemp("files")
    fields = FIELDS[task] if "field" not in task_config else {"input": (INPUTS, BAD_INPUTS)}
    paths = []
    for name in ("train", "val")[: data.draw(st.integers(1, 2), label="files")]:
        paths.append(tmp / f"{name}.jsonl")
        content = "\n".join(data.draw(lines(fields), label=name)) + "\n"
        paths[-1].write_text(content, encoding="utf-8")
    train, val = (*paths, None)[:2]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = verdict(task, task_config, train, val)
        refusal = refused(task, task_config, model, train, val)
    assert (code == 0) == (refusal is None), (refusal, printed.getvalue())
