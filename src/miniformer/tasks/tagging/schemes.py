"""Tag schemes: spans of tokens, such as names, written as one tag for each token.

| tokens | Anna  | lives | in | New   | York  | City  |                                       |
|--------|-------|-------|----|-------|-------|-------|---------------------------------------|
| iob2   | B-PER | O     | O  | B-LOC | I-LOC | I-LOC | B begins a span (BIO)                 |
| iob1   | I-PER | O     | O  | I-LOC | I-LOC | I-LOC | B only after a span of the same type  |
| iobes  | S-PER | O     | O  | B-LOC | I-LOC | E-LOC | E ends a span, S is a whole one       |
| bilou  | U-PER | O     | O  | B-LOC | I-LOC | L-LOC | the same with L and U                 |

The types may be left out, as in B, I, O; the type of a span is then "_".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

SCHEMES = ("iob2", "iob1", "iobes", "bilou")
OUTSIDE = "O"
NO_TYPE = "_"
_PREFIXES = {"iob2": "BI", "iob1": "BI", "iobes": "BIES", "bilou": "BILU"}
_AS_IOBES = {"L": "E", "U": "S"}


class Tag(NamedTuple):
    """A tag of a scheme.

    Args:
        prefix: O, B, I, E or S; the L and U of BILOU are E and S.
        type: type of the span; empty for O.
    """

    prefix: str
    type: str


class Span(NamedTuple):
    """Tokens `start` to `end`, which is exclusive."""

    type: str
    start: int
    end: int


_BORDER = Tag(OUTSIDE, "")  # before the first token and after the last one


def parse_tag(tag: object) -> Tag | None:
    """Parses `B-PER`, `B` or `O`; None: the tag is of no scheme."""
    if not isinstance(tag, str) or not tag or tag[0] not in "OBIESLU":
        return None
    if tag == OUTSIDE:
        return _BORDER
    prefix = _AS_IOBES.get(tag[0], tag[0])
    if len(tag) == 1:
        return Tag(prefix, NO_TYPE)
    return Tag(prefix, tag[2:]) if tag[1] == "-" and tag[2:] and tag[0] != OUTSIDE else None


def is_valid_transition(scheme: str, previous: Tag | None, current: Tag | None) -> bool:
    """True if a scheme allows a tag after another one; None: the border of the sequence."""
    previous, current = previous or _BORDER, current or _BORDER
    same = previous.type == current.type
    in_span = previous.prefix in ("B", "I")  # and the span may continue
    if scheme == "iob2":
        return current.prefix != "I" or (in_span and same)
    if scheme == "iob1":
        return current.prefix != "B" or (in_span and same)
    if in_span:
        return current.prefix in ("I", "E") and same
    return current.prefix not in ("I", "E")


def detect_scheme(transitions: Mapping[tuple[object, object], int]) -> str:
    """Detects the scheme of tag sequences: one of `SCHEMES`, or none.

    IOB1 and IOB2 have the same tags; the one with fewer invalid transitions is detected.

    Args:
        transitions: number of times that a tag follows another one; None: a border.
    """
    tags = {tag for pair in transitions for tag in pair if tag is not None}
    parsed = {tag: parse_tag(tag) for tag in tags}
    letters = {str(tag)[0] for tag in tags} - {OUTSIDE}
    if not letters or None in parsed.values():
        return "none"
    if {len(str(tag)) for tag in tags} == {1} and "B" not in letters:
        return "none"  # letters are more likely classes of their own
    fitting = [name for name in SCHEMES if letters <= set(_PREFIXES[name])]

    def num_invalid(scheme: str) -> int:
        return sum(
            count
            for (previous, current), count in transitions.items()
            if not is_valid_transition(scheme, parsed.get(previous), parsed.get(current))
        )

    return min(fitting, key=num_invalid) if fitting else "none"


def complete_tags(tags: Iterable[str], scheme: str) -> list[str]:
    """Tags with all prefixes of each type, sorted; data may lack one, such as a rare I-."""
    complete = set(tags)
    for tag in tags:
        if tag != OUTSIDE:
            complete |= {prefix + tag[1:] for prefix in _PREFIXES[scheme]}
    return sorted(complete)


def invalid_tag(tags: Sequence[str], scheme: str) -> str | None:
    """Problem of the first tag that a scheme does not allow, with its fix, or None.

    The phrase follows the name of the field: `'tags' has 'I-LOC' at token 3, ...`.
    """
    letters = _PREFIXES[scheme]
    parsed = [parse_tag(tag) for tag in tags]
    for number, (tag, item) in enumerate(zip(tags, parsed, strict=True), 1):
        if item is None or tag[0] not in letters + OUTSIDE:
            prefixes = ", ".join(f"{letter}-" for letter in letters)
            return (
                f"has {tag!r} at token {number}, which is no tag of {scheme.upper()}; its tags are "
                f"{OUTSIDE}, or begin with {prefixes}"
            )
    for index, (previous, current) in enumerate(zip([None, *parsed], [*parsed, None], strict=True)):
        if not is_valid_transition(scheme, previous, current):
            return _describe_transition(tags, index, scheme)
    return None


def _describe_transition(tags: Sequence[str], index: int, scheme: str) -> str:
    """Problem of tag `index`, which may not follow the one before; len(tags): of the end."""
    previous = parse_tag(tags[index - 1]) if index else None
    after = f"after {tags[index - 1]!r}" if index else "at the start"
    where = f"has {tags[index]!r} at token {index + 1} {after}" if index < len(tags) else (
        f"ends with {tags[-1]!r} at token {len(tags)}"
    )  # fmt: skip
    if scheme == "iob2":
        return f"{where}; in IOB2 a span begins with B-: use B{tags[index][1:]}"
    if scheme == "iob1":
        return (
            f"{where}; in IOB1 B- only begins a span after another one of its type: use "
            f"I{tags[index][1:]}"
        )
    end, single = ("L", "U") if scheme == "bilou" else ("E", "S")
    rule = f"in {scheme.upper()} a span is one {single}-, or begins with B- and ends with {end}-"
    if previous is not None and previous.prefix in ("B", "I"):
        letter = single if previous.prefix == "B" else end
        return f"{where}; {rule}: use {letter}{tags[index - 1][1:]} at token {index}"
    letter = "B" if tags[index][0] == "I" else single
    return f"{where}; {rule}: use {letter}{tags[index][1:]}"


def find_spans(tags: Sequence[str], scheme: str, *, strict: bool = False) -> list[Span]:
    """Spans of a sequence, by the definition of seqeval 1.2.2.

    Its default mode reads invalid tags as conlleval does: a span ends before O, B, S and another
    type, and after E and S; any other tag begins a span after these. Its strict mode ignores
    tokens that the scheme does not allow, and spans without their end.

    Args:
        tags: of the tokens; a tag that is of no scheme counts as O.
        scheme: iob2, iob1, iobes or bilou.
        strict: strict mode; for iob1, whose tokens always have a meaning, it is the default mode.
    """
    parsed = [parse_tag(tag) or _BORDER for tag in tags]
    if strict and scheme != "iob1":
        return list(_strict_spans(parsed, scheme))
    spans, start = [], 0
    for index, current in enumerate([*parsed, _BORDER]):
        previous = parsed[index - 1] if index else _BORDER
        ended = previous.prefix in ("E", "S", OUTSIDE)
        if ended or current.prefix in ("B", "S", OUTSIDE) or previous.type != current.type:
            if previous.prefix != OUTSIDE:
                spans.append(Span(previous.type, start, index))
            start = index
    return spans


def _strict_spans(tags: Sequence[Tag], scheme: str) -> Iterator[Span]:
    index = 0
    while index < len(tags):
        start, (prefix, kind) = index, tags[index]
        index += 1
        if prefix == "B":
            inside = (Tag("I", kind), Tag("E", kind))
            while index < len(tags) and prefix != "E" and tags[index] in inside:
                prefix = tags[index].prefix
                index += 1
        if prefix == "S" or (tags[start].prefix == "B" and (scheme == "iob2" or prefix == "E")):
            yield Span(kind, start, index)


def make_tags(spans: Iterable[Span], length: int, scheme: str) -> list[str]:
    """Tags of `length` tokens with these spans, which do not overlap."""
    tags = [OUTSIDE] * length
    end, single = {"iobes": ("E", "S"), "bilou": ("L", "U")}.get(scheme, ("I", "B"))
    last_end, last_type = -1, ""
    for kind, start, stop in sorted(spans, key=lambda span: span.start):
        suffix = "" if kind == NO_TYPE else f"-{kind}"
        prefixes = ["B", *"I" * (stop - start - 2), end] if stop - start > 1 else [single]
        if scheme == "iob1" and not (start == last_end and kind == last_type):
            prefixes[0] = "I"
        tags[start:stop] = [prefix + suffix for prefix in prefixes]
        last_end, last_type = stop, kind
    return tags
