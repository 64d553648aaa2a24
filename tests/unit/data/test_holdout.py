"""Validation data that is set aside from the training data."""

import json
import random
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from miniformer.config import UserError
from miniformer.data.holdout import default_val_share, hold_out
from miniformer.data.reading import schema
from miniformer.data.reading.records import InMemoryRecords, JSONLinesDataset
from tests.kit import VERSE

LABELED = {"input": schema.check_text, "label": schema.check_label}


def labeled(pairs):
    return InMemoryRecords([{"input": x, "label": y} for x, y in pairs], LABELED)


def parts_of(records, share):
    return [[(r["input"], r["label"]) for r in part] for part in hold_out(records, share)]


@pytest.mark.parametrize(
    ("count", "share"),
    [(20, 0.2), (159, 0.2), (500, 0.2), (800, 0.125), (1000, 0.1), (49_000, 0.1), (100_000, 0.05)],
)
def test_default_share_is_a_tenth_within_limits(count, share):
    assert default_val_share(InMemoryRecords(range(count), LABELED)) == share


@pytest.mark.catches("equal_inputs_are_on_both_sides")
@pytest.mark.catches("validation_has_classes_of_its_own")
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("aaaabbc")), min_size=20, max_size=120),
    st.floats(0.05, 0.5),
)
def test_held_out_records_share_no_input_and_no_new_class(pairs, share):
    records = labeled([(f"text {x}", y) for x, y in pairs])
    try:
        train, val = parts_of(records, share)
    except UserError:
        assume(False)
    assert sorted(train + val) == sorted((f"text {x}", y) for x, y in pairs)
    assert not {x for x, _ in train} & {x for x, _ in val}
    assert {y for _, y in val} <= {y for _, y in train}
    assert train
    assert val


@pytest.mark.catches("held_out_classes_are_random")
@pytest.mark.parametrize("share", [0.1, 0.25])
def test_held_out_classes_have_the_same_shares(share):
    counts = {"common": 700, "some": 200, "few": 40, "rare": 4, "single": 1}
    pairs = [(f"{name} {i}", name) for name, count in counts.items() for i in range(count)]
    random.Random(0).shuffle(pairs)
    val = parts_of(labeled(pairs), share)[1]
    held_out = Counter(label for _, label in val)
    assert len(val) == pytest.approx(share * len(pairs), abs=3)
    for name, count in counts.items():
        assert held_out[name] == pytest.approx(share * count, abs=1), name
    assert held_out["single"] == 0


@pytest.mark.catches("split_follows_the_order")
def test_split_depends_on_the_inputs_alone():
    """The same records in another order, or with a few more: the same are set aside."""
    pairs = [(f"text {i}", i % 3) for i in range(200)]
    val = set(parts_of(labeled(pairs), 0.2)[1])
    assert set(parts_of(labeled(pairs[::-1]), 0.2)[1]) == val
    more = set(parts_of(labeled([*pairs, *((f"new {i}", i % 3) for i in range(20))]), 0.2)[1])
    assert len(val - more) < 0.3 * len(val)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(str(i), 0) for i in range(19)], "19 records are too few"),
        ([("same", i % 2) for i in range(40)], "too few different inputs"),
    ],
)
def test_split_that_is_not_possible_is_an_error(pairs, message):
    with pytest.raises(UserError, match=message):
        hold_out(labeled(pairs), 0.1)


def test_sequences_of_tags_are_split_at_random_but_without_unknown_tags():
    tags = [["O", "B", "I"], ["O", "O", "B"], ["O"]]
    records = [{"tokens": [str(i)] * 3, "tags": tags[i % 3]} for i in range(60)]
    records[7]["tags"] = ["O", "B-rare", "O"]
    train, val = hold_out(InMemoryRecords(records, {"tokens": lambda x: None}), 0.2)
    assert len(val) == pytest.approx(12, abs=1)
    assert "B-rare" in {tag for record in train for tag in record["tags"]}


@pytest.mark.catches("text_is_held_out_at_its_start")
@pytest.mark.parametrize("lines", [4, 40, 20_000])
def test_last_part_of_a_text_is_held_out(tmp_path, lines):
    path = tmp_path / "text.txt"
    text = "".join(f"{i} {VERSE[: i % 50]}\n" for i in range(lines)).replace("\n\n", "\n")
    path.write_text(text)
    records = JSONLinesDataset(path, {"text": schema.check_text})
    train, val = hold_out(records, 0.25)
    texts = ["".join(record["text"] for record in part) for part in (train, val)]
    assert "".join(texts) == text
    assert len(texts[1]) / len(text) == pytest.approx(0.25, abs=0.15 if lines == 4 else 0.07)
    assert texts[0].endswith("\n")
    assert next(iter(val))["continues"]
    assert train.is_plain_text
    assert train.n_bytes + val.n_bytes == len(text)


def test_text_of_a_line_is_not_split(tmp_path):
    (tmp_path / "text.txt").write_text("a line without an end")
    records = JSONLinesDataset(tmp_path / "text.txt", {"text": schema.check_text})
    with pytest.raises(UserError, match="too few lines to set its last part aside"):
        hold_out(records, 0.1)


def test_locations_are_those_of_the_file(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = [json.dumps({"input": f"text {i}", "label": i % 2}) for i in range(50)]
    path.write_text("\n".join(lines))
    for part in hold_out(JSONLinesDataset(path, LABELED), 0.2):
        for index, record in enumerate(part):
            number = int(record["input"].split()[1]) + 1
            assert part.location(index) == f"{path}:{number}"
