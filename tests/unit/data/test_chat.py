"""Chat templates, compared with `apply_chat_template` of transformers."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from miniformer import Tokenizer, UserError
from miniformer.data.chat import TEMPLATES, ChatTemplate, read_template

pytest.importorskip("jinja2")

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What is <|im_end|>? "},
    {"role": "assistant", "content": "A mark."},
    {"role": "user", "content": "Thanks\n"},
]


def byte_tokenizer():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {character: n for n, character in enumerate(sorted(alphabet))}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(backend, eos_token="<|im_end|>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = byte_tokenizer()
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, eos_token=tokenizer.eos_token
    )
    want = reference.apply_chat_template(
        MESSAGES, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
    )
    assert ChatTemplate.for_tokenizer(name, tokenizer).render(MESSAGES) == want


@pytest.mark.catches("messages_make_special_tokens")
def test_text_of_a_message_is_no_special_token():
    tokenizer = byte_tokenizer()
    ids = ChatTemplate("chatml").encode(MESSAGES, tokenizer)
    start, end = (tokenizer.backend.token_to_id(x) for x in ("<|im_start|>", "<|im_end|>"))
    assert (ids.count(start), ids.count(end)) == (5, 4)
    assert "".join(tokenizer.decode([n]) for n in ids if n < 256).count("<|im_end|>") == 1


def test_a_template_that_changes_messages_refuses_special_tokens():
    template = ChatTemplate("{% for m in messages %}{{ m.content | upper | lower }}{% endfor %}")
    tokenizer = byte_tokenizer()
    plain = [{"role": "user", "content": "Hello"}]
    assert tokenizer.decode(template.encode(plain, tokenizer)) == "hello"
    with pytest.raises(UserError, match=r"contains '<\|im_end\|>', a special token"):
        template.encode(MESSAGES, tokenizer)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "the chat template is invalid"),
        ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must"),
        ("{{ messages[9].content.x }}", "refuses the messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages"),
        ("{{ 1 // 0 }}", "the chat template fails"),
        ("{{ 'x' * 2000000 }}", "more than 1,000,000 characters"),
    ],
)
def test_a_bad_template_is_one_message(source, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(source).render(MESSAGES)


def test_templates_of_a_directory_are_found(tmp_path):
    assert read_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"chat_template": [{"name": "default", "template": "A"}]}')
    assert read_template(tmp_path) == "A"
    config.write_text('{"chat_template": "B"}')
    assert read_template(tmp_path) == "B"
    (tmp_path / "chat_template.jinja").write_text("C")
    assert read_template(tmp_path) == "C"
    (tmp_path / "chat_template.jinja").unlink()
    config.write_text("{")
    with pytest.raises(UserError, match="not a JSON object"):
        read_template(tmp_path)
