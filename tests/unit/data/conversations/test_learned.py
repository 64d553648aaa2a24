"""Learned tokens of conversations, in ten public formats."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer import UserError
from miniformer.data.chat import ChatTemplate
from miniformer.data.conversations.learned import encode_learned, find_learned, turn_end_ids
from tests.kit.chat_templates import FORMATS, TOKENS, chat_tokenizer, text_of

TOKENIZERS = {"byte": chat_tokenizer(), "bpe": chat_tokenizer("bpe", 320)}
_WORDS = (
    "a", "user", "assistant", " ", "\n", "\n\n", "### Response:", "ASSISTANT:", "é", "🙂",
    "answers.", "{{ x }}", "{% generation %}",
)  # fmt: skip


def contents(parts):
    first = st.sampled_from([part for part in parts if part.strip()])
    rest = st.lists(st.sampled_from(parts), max_size=5)
    return st.builds(lambda x, y, n: "".join([*y[:n], x, *y[n:]]), first, rest, st.integers(0, 5))


_PLAIN, _CONTENT = contents(_WORDS), contents((*TOKENS, *_WORDS))


@st.composite
def conversations(draw, plain=False):
    content = _PLAIN if plain else _CONTENT
    system = [{"role": "system", "content": draw(content)}] if draw(st.booleans()) else []
    turns = draw(st.integers(1, 3)) * ["user", "assistant"] + draw(st.booleans()) * ["user"]
    return system + [{"role": role, "content": draw(content)} for role in turns]


def without_system(messages, item):
    return messages if item.has_system else [m for m in messages if m["role"] != "system"]


def spoken(tokenizer, ids, mask):
    """The texts of the runs of learned tokens."""
    edges = np.flatnonzero(np.diff([False, *mask, False])).reshape(-1, 2)
    return [text_of(tokenizer, ids[a:b]) for a, b in edges.tolist()]


@pytest.mark.catches(
    "answers_without_their_end", "prompts_are_learned", "template_marks_are_needed",
    "messages_make_special_tokens_in_training",
)  # fmt: skip
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=12)
@given(messages=conversations(), kind=st.sampled_from([*TOKENIZERS]))
def test_labels_are_the_answers_and_their_ends(name, messages, kind):
    item, tokenizer = FORMATS[name], TOKENIZERS[kind]
    messages = without_system(messages, item)
    template = ChatTemplate.for_tokenizer(item.template, tokenizer)
    learned = find_learned(template, tokenizer, messages, "assistant")
    ids, mask = encode_learned(learned, tokenizer)
    assert spoken(tokenizer, ids, mask) == item.learned(messages)
    assert text_of(tokenizer, ids) == template.render(messages, add_generation_prompt=False)
    # The end is one special token, and none is in a content.
    special = {tokenizer.backend.token_to_id(token) for token in TOKENS}
    answers = sum(m["role"] == "assistant" for m in messages)
    assert sum(token in special for token in np.array(ids)[mask].tolist()) == answers
    assert not learned.needs_end


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=12)
@given(messages=conversations(plain=True), kind=st.sampled_from([*TOKENIZERS]))
def test_rendering_is_that_of_transformers(name, messages, kind):
    import transformers

    item, tokenizer = FORMATS[name], TOKENIZERS[kind]
    messages = without_system(messages, item)
    reference = _REFERENCES.setdefault(
        kind,
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=type(tokenizer.backend).from_str(tokenizer.backend.to_str()),
            bos_token="<s>", eos_token="</s>",
        ),
    )  # fmt: skip
    template = ChatTemplate(item.template, {"bos_token": "<s>", "eos_token": "</s>"})
    for prompt in (False, True):
        options = {"chat_template": item.template, "add_generation_prompt": prompt}
        want = reference.apply_chat_template(messages, tokenize=False, **options)
        assert template.render(messages, add_generation_prompt=prompt) == want
    learned = find_learned(template, tokenizer, messages, "all")
    want = reference.apply_chat_template(
        messages, chat_template=item.template, tokenize=True, return_dict=False
    )
    assert encode_learned(learned, tokenizer)[0] == want


_REFERENCES = {}


@pytest.mark.parametrize("name", FORMATS)
def test_the_prompt_of_an_answer_begins_the_conversation(name):
    """The ids before an answer in training are those of its prompt in a chat."""
    item, tokenizer = FORMATS[name], TOKENIZERS["bpe"]
    template = ChatTemplate(item.template, {"bos_token": "<s>", "eos_token": "</s>"})
    messages = [
        {"role": "user", "content": "user asks"},
        {"role": "assistant", "content": "the assistant answers. "},
    ]
    ids, mask = encode_learned(find_learned(template, tokenizer, messages, "assistant"), tokenizer)
    assert ids[: mask.tolist().index(True)] == template.encode(messages[:1], tokenizer)
    (end,) = turn_end_ids(template, tokenizer)
    assert tokenizer.backend.id_to_token(end) == item.end.strip()


MARKED = (
    "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %} "
    "{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %};{% endfor %}"
)
MESSAGES = [
    {"role": "user", "content": "Q1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "Q2"},
    {"role": "assistant", "content": "A2"},
]


def texts(source, messages, train_on="assistant"):
    tokenizer = TOKENIZERS["byte"]
    learned = find_learned(ChatTemplate(source), tokenizer, messages, train_on)
    return spoken(tokenizer, *encode_learned(learned, tokenizer))


def test_marks_of_a_template_are_honored():
    assert texts(MARKED, MESSAGES) == [" A1<|end|>", " A2<|end|>"]
    shorter = MARKED.replace("{{ m.content }}<|end|>{% endg", "{{ m.content }}{% endg")
    assert texts(shorter, MESSAGES) == [" A1", " A2"]
    unmarked = MARKED.replace("'assistant'", "'robot'")
    with pytest.raises(UserError, match=r"no part of message 2 \(assistant\) by \{% generation"):
        texts(unmarked, MESSAGES)


def test_turns_may_be_left_out():
    messages = [MESSAGES[0], {**MESSAGES[1], "learn": False}, *MESSAGES[2:]]
    assert texts(FORMATS["phi3"].template, messages) == ["A2<|end|>"]
    assert texts(MARKED, messages) == [" A2<|end|>"]


def test_completions_and_all():
    source = FORMATS["phi3"].template
    assert texts(source, MESSAGES, "completion") == ["A2<|end|>\n"]
    prompt = [{**message, "learn": False} for message in MESSAGES[:1]]
    rest = "A1<|end|>\n<|user|>\nQ2<|end|>\n<|assistant|>\nA2<|end|>\n"
    assert texts(source, [*prompt, *MESSAGES[1:]], "completion") == [rest]
    assert texts(source, MESSAGES, "all") == [f"<|user|>\nQ1<|end|>\n<|assistant|>\n{rest}"]


def test_an_end_without_a_special_token():
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer = TOKENIZERS["byte"]
    learned = find_learned(ChatTemplate(source), tokenizer, MESSAGES, "assistant")
    assert learned.needs_end
    assert turn_end_ids(ChatTemplate(source), tokenizer) == []
    assert spoken(tokenizer, *encode_learned(learned, tokenizer)) == ["A1\n", "A2\n"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages[1:] %}{{ m.content }}{% endfor %}", "leaves out .* message 1 "),
        ("{% for m in messages * 2 %}{{ m.content }}{% endfor %}", "repeats, 2 times, "),
        ("{% for m in messages %}{{ m.content[:1] }}{% endfor %}", "leaves out"),
        ("{% for m in messages %}{{ m.content | upper | replace('A', 'B') }}{% endfor %}",
         "leaves out"),
        ("{% for m in messages %}{{ m.content }}{{ m.content | length }}{% endfor %}",
         "changes the content of message"),
    ],
)  # fmt: skip
def test_templates_that_drop_contents_are_refused(source, message):
    with pytest.raises(UserError, match=message):
        texts(source, MESSAGES)
