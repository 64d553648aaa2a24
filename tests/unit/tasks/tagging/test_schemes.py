"""Tag schemes against seqeval, and against their own inverse."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB2, IOBES, Tokens

from miniformer.tasks.tagging.schemes import (
    SCHEMES,
    Span,
    complete_tags,
    detect_scheme,
    find_spans,
    invalid_tag,
    make_tags,
    parse_tag,
)

LETTERS = {"iob2": "BI", "iob1": "BI", "iobes": "BIES", "bilou": "BILU"}
STRICT = {"iob2": IOB2, "iobes": IOBES, "bilou": BILOU}
TYPES = ("PER", "LOC", "a-b")


def any_tags(scheme):
    """Tag sequences, most of them not valid."""
    tags = ["O", "O", *(f"{letter}-{kind}" for letter in LETTERS[scheme] for kind in TYPES)]
    return st.lists(st.sampled_from(tags), max_size=8)


@st.composite
def spans(draw):
    """Spans that do not overlap, and the number of tokens."""
    borders = sorted(draw(st.lists(st.integers(0, 10), unique=True, max_size=8)))
    kinds = [draw(st.sampled_from(["", *TYPES])) for _ in borders[1:]]
    pairs = zip(pairwise(borders), kinds, strict=True)
    return [Span(kind, start, end) for (start, end), kind in pairs if kind], 10


@pytest.mark.catches("spans_of_one_type_are_merged")
@pytest.mark.parametrize("scheme", ["iob2", "iob1", "iobes"])
@given(data=st.data())
def test_spans_match_default_mode_of_seqeval(scheme, data):
    tags = data.draw(any_tags(scheme))
    expected = [Span(kind, start, end + 1) for kind, start, end in get_entities(tags)]
    assert find_spans(tags, scheme) == expected


@pytest.mark.catches("strict_spans_have_no_end")
@pytest.mark.parametrize("scheme", STRICT)
@given(data=st.data())
def test_spans_match_strict_mode_of_seqeval(scheme, data):
    tags = data.draw(any_tags(scheme))
    expected = [
        Span(entity.tag, entity.start, entity.end)
        for entity in Tokens(tags, STRICT[scheme]).entities
    ]
    assert find_spans(tags, scheme, strict=True) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
@given(drawn=spans())
def test_spans_of_made_tags_are_the_same(scheme, drawn):
    expected, length = drawn
    tags = make_tags(expected, length, scheme)
    assert find_spans(tags, scheme) == expected
    assert find_spans(tags, scheme, strict=True) == expected
    assert invalid_tag(tags, scheme) is None


@pytest.mark.catches("inside_tag_may_follow_another_type")
@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_tags_are_valid_if_their_spans_give_them_back(scheme, data):
    tags = data.draw(any_tags(scheme))
    restored = make_tags(find_spans(tags, scheme), len(tags), scheme)
    assert (invalid_tag(tags, scheme) is None) == (restored == tags)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(drawn=st.lists(spans(), min_size=1, max_size=4))
def test_detected_scheme_allows_the_tags(scheme, drawn):
    sequences = [make_tags(row, length, scheme) for row, length in drawn]
    transitions = {}
    for tags in sequences:
        for pair in pairwise([None, *tags, None]):
            transitions[pair] = transitions.get(pair, 0) + 1
    detected = detect_scheme(transitions)
    if not any(row for row, _ in drawn):
        assert detected == "none"
        return
    assert all(invalid_tag(tags, detected) is None for tags in sequences)
    expected = [find_spans(tags, scheme) for tags in sequences]
    assert [find_spans(tags, detected) for tags in sequences] == expected


def transitions_of(*sequences):
    """Counted transitions of sequences, given as words."""
    pairs = [pair for tags in sequences for pair in pairwise([None, *tags.split(), None])]
    return {pair: pairs.count(pair) for pair in pairs}


@pytest.mark.catches("iob1_is_read_as_iob2")
@pytest.mark.parametrize(
    ("scheme", "sequences"),
    [
        ("iob2", ["B-x I-x O", "B-y"]),
        ("iob2", ["B-x I-x O", "I-x O B-x I-x B-x"]),  # one wrong tag
        ("iob1", ["I-x I-x O", "I-y B-y"]),
        ("iob1", ["I-x O"]),
        ("iobes", ["S-x O B-y I-y E-y"]),
        ("bilou", ["U-x O B-y L-y"]),
        ("iob2", ["B I O B"]),
        ("none", ["NOUN VERB", "X"]),
        ("none", ["O O"]),
        ("none", ["B-x NOUN"]),
        ("none", ["S U O"]),  # letters, but no B
        ("none", ["E-x L-x O"]),  # of two schemes
    ],
)
def test_detected_scheme_of_examples(scheme, sequences):
    assert detect_scheme(transitions_of(*sequences)) == scheme


def test_tags_that_are_numbers_have_no_scheme():
    assert detect_scheme({(None, 0): 1, (0, 1): 1, (1, None): 1}) == "none"


def test_parsed_tags():
    assert parse_tag("O") == ("O", "")
    assert parse_tag("B-a-b") == ("B", "a-b")
    assert parse_tag("I") == ("I", "_")
    assert parse_tag("U-x") == ("S", "x")
    assert parse_tag("L-x") == ("E", "x")
    for tag in ("", "O-x", "B-", "Bx", "X-x", "b-x", 3, None):
        assert parse_tag(tag) is None, tag


def test_complete_tags_have_all_prefixes():
    assert complete_tags(["O", "B-x"], "iob2") == ["B-x", "I-x", "O"]
    assert complete_tags(["B", "O"], "bilou") == ["B", "I", "L", "O", "U"]


@pytest.mark.parametrize(
    ("scheme", "tags", "problem"),
    [
        ("iob2", "O I-x", "has 'I-x' at token 2 after 'O'; in IOB2 a span begins with B-: use B-x"),
        ("iob2", "I-x", "has 'I-x' at token 1 at the start; in IOB2 .*: use B-x"),
        ("iob2", "B-y I-x", "has 'I-x' at token 2 after 'B-y'; .*: use B-x"),
        ("iob1", "O B-x", "has 'B-x' at token 2 after 'O'; in IOB1 B- only .*: use I-x"),
        ("iobes", "B-x O", "has 'O' at token 2 after 'B-x'; in IOBES .*: use S-x at token 1"),
        ("iobes", "B-x I-x", "ends with 'I-x' at token 2; .*: use E-x at token 2"),
        ("iobes", "O E-x", "has 'E-x' at token 2 after 'O'; .*: use S-x"),
        ("bilou", "O I-x L-x", "has 'I-x' at token 2 after 'O'; in BILOU .*: use B-x"),
        ("bilou", "B-x U-x", "has 'U-x' at token 2 after 'B-x'; .*L-: use U-x at token 1"),
        ("iob2", "O NOUN", "has 'NOUN' at token 2, .* no tag of IOB2; .* are O, or .* B-, I-"),
        ("bilou", "O S-x", "has 'S-x' at token 2, which is no tag of BILOU; .* B-, I-, L-, U-"),
    ],
)
def test_problem_names_token_value_and_fix(scheme, tags, problem):
    assert re.fullmatch(problem, invalid_tag(tags.split(), scheme))
