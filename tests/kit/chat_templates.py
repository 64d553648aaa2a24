"""Ten public chat formats, written anew from their published layouts, and what each one learns."""

import dataclasses

from miniformer import Tokenizer

_ALTERNATE = (
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
)
# A system message is written with the first turn.
_FOLD_SYSTEM = (
    "{% set rest = messages %}{% set system = '' %}{% if messages[0].role == 'system' %}"
    "{% set rest = messages[1:] %}{% set system = messages[0].content %}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """A format.

    Args:
        template: Jinja text.
        before, end: what a model writes around an answer.
        strips: the template strips contents.
        has_system: system messages are accepted.
    """

    template: str
    before: str
    end: str
    strips: bool = False
    has_system: bool = True

    def learned(self, messages):
        """The texts that are learned of a conversation."""
        answers = [m["content"] for m in messages if m["role"] == "assistant"]
        return [self.before + (x.strip() if self.strips else x) + self.end for x in answers]


FORMATS = {
    "chatml": ChatFormat(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "", "<|im_end|>",
    ),
    "llama3": ChatFormat(
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message.role + "
        "'<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "", "<|eot_id|>", strips=True,
    ),
    "llama2": ChatFormat(
        _FOLD_SYSTEM + "{% for message in rest %}" + _ALTERNATE +
        "{% if loop.first and system %}{% set content = '<<SYS>>\n' + system + "
        "'\n<</SYS>>\n\n' + message.content %}{% else %}{% set content = message.content %}"
        "{% endif %}{% if message.role == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}"
        "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        " ", " </s>", strips=True,
    ),
    "mistral": ChatFormat(
        "{{ bos_token }}{% for message in messages %}" + _ALTERNATE +
        "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}",
        " ", "</s>", has_system=False,
    ),
    "gemma": ChatFormat(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}" + _ALTERNATE +
        "{% set role = 'model' if message.role == 'assistant' else message.role %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        "", "<end_of_turn>", strips=True, has_system=False,
    ),
    "phi3": ChatFormat(
        "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + "
        "'<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        "", "<|end|>",
    ),
    "zephyr": ChatFormat(
        "{% for message in messages %}\n{{ '<|' + message.role + '|>\n' + message.content + "
        "eos_token }}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>\n' }}"
        "{% endif %}\n{% endfor %}",
        "", "</s>",
    ),
    "qwen": ChatFormat(
        "{%- if messages[0].role != 'system' %}"
        "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
        "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + "
        "message.content + '<|im_end|>' + '\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}",
        "", "<|im_end|>",
    ),
    "vicuna": ChatFormat(
        _FOLD_SYSTEM + "{{ system + ' ' if system }}{% for message in rest %}"
        "{% if message.role == 'user' %}{{ 'USER: ' + message.content }}{% else %}"
        "{{ ' ASSISTANT: ' + message.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}",
        " ", "</s>",
    ),
    "alpaca": ChatFormat(
        _FOLD_SYSTEM + "{{ system + '\n\n' if system }}{% for message in rest %}"
        "{% if message.role == 'user' %}{{ '### Instruction:\n' + message.content + '\n\n' }}"
        "{% else %}{{ '### Response:\n' + message.content + eos_token + '\n\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
        "", "</s>",
    ),
}  # fmt: skip
TOKENS = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>",
    "<|system|>", "[INST]", "[/INST]",
)  # fmt: skip


def chat_tokenizer(kind="byte", vocab_size=None):
    """A tokenizer with the special tokens of all formats, BOS <s> and EOS </s>."""
    texts = ["a user asks the assistant something, and it answers in one sentence. " * 9]
    backend = Tokenizer.train(kind, texts, vocab_size).backend
    backend.add_special_tokens(list(TOKENS))
    return Tokenizer(backend, eos_token="</s>")


def text_of(tokenizer, ids):
    """The text of ids, special tokens included."""
    return tokenizer.backend.decode(list(map(int, ids)), skip_special_tokens=False)
