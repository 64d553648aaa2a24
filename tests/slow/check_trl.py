"""Instruction tuning compared with trl's SFTTrainer: token ids, losses and gradients."""

import os
import random

import pytest
import torch

from miniformer import MiniFormerDataModule, Tokenizer
from miniformer.interop.hf.api import import_hf
from miniformer.interop.hf.export import to_hf
from miniformer.model.transformer import Transformer
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit.chat_templates import FORMATS, chat_tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"
trl = pytest.importorskip("trl")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")
SEQ_LEN = 256
# Marks of ChatML for trl, which needs them; ours follows from the messages.
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def hf_config(name, vocab_size):
    if name == "gpt2":
        return transformers.GPT2Config(
            vocab_size=vocab_size, n_positions=SEQ_LEN, n_embd=32, n_layer=2, n_head=4,
            bos_token_id=1, eos_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    return transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=SEQ_LEN,
    )  # fmt: skip


@pytest.fixture(params=["gpt2", "llama"], scope="module")
def twin(request, tmp_path_factory):
    """Directory of a random Hugging Face model with the tokenizer, and our import of it."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = chat_tokenizer("bpe", 400)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend).from_str(tokenizer.backend.to_str()),
        bos_token="<s>", eos_token="</s>", pad_token="</s>",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        hf_config(request.param, tokenizer.vocab_size)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder / "hf")
    fast.save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "ours")
    return folder


def conversations(kind, seed=0, count=12):
    draw = random.Random(seed)
    texts = ["a", "user", "asks", "the assistant", "something", "and it", "answers", "in one"]

    def message(role):
        return {"role": role, "content": " ".join(draw.choices(texts, k=draw.randint(1, 9)))}

    records = []
    for _ in range(count):
        turns = [message(role) for role in ("user", "assistant") * draw.randint(1, 3)]
        turns = [message("system"), *turns] if draw.random() < 0.5 else turns
        records.append(
            {"messages": turns} if kind == "messages"
            else {"prompt": turns[:-1], "completion": turns[-1:]}
        )  # fmt: skip
    return records


def reference(twin, records, *, packing, assistant_only):
    """Loss, number of labels and gradients by tensor name, of SFTTrainer."""
    import datasets

    fast = transformers.AutoTokenizer.from_pretrained(twin / "hf")
    fast.chat_template = MARKED if assistant_only else FORMATS["chatml"].template
    model = transformers.AutoModelForCausalLM.from_pretrained(
        twin / "hf", attn_implementation="sdpa"
    )
    arguments = trl.SFTConfig(
        output_dir=str(twin / "trl"), max_length=SEQ_LEN, packing=packing, report_to="none",
        per_device_train_batch_size=len(records), use_cpu=True, bf16=False,
        assistant_only_loss=assistant_only, gradient_checkpointing=False, save_strategy="no",
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(records),
        processing_class=fast,
    )  # fmt: skip
    (batch,) = trainer.get_train_dataloader()
    model.train()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    return float(loss.detach()), int((batch["labels"][:, 1:] != -100).sum()), {
        name: parameter.grad for name, parameter in model.named_parameters()
    }  # fmt: skip


def ours(twin, records, *, train_on):
    """Loss, number of labels and gradients under the names of Hugging Face."""
    model = Transformer.from_pretrained(twin / "ours")
    task = LanguageModeling(chat_template=FORMATS["chatml"].template, train_on=train_on)
    data = MiniFormerDataModule(
        records, tokenizer=Tokenizer.from_path(twin / "ours"), task=task, seq_len=SEQ_LEN,
        batch_size=3,
    )  # fmt: skip
    data.setup()
    total, count = torch.zeros(()), 0
    for batch in data.ordered_batches("train"):
        loss, number = data.task.loss(model.train(), batch)[:2]
        total, count = total + loss, count + int(number)
    (total / count).backward()
    gradients = Transformer(model.config)
    gradients.load_state_dict(
        {**model.state_dict(), **{name: p.grad for name, p in model.named_parameters()}}
    )
    # The export renames and reorders weights, and so it does with gradients.
    out = twin / f"gradients-{len(list(twin.iterdir()))}"
    to_hf(gradients, out, family=transformers.AutoConfig.from_pretrained(twin / "hf").model_type)
    exported = transformers.AutoModelForCausalLM.from_pretrained(out)
    return float((total / count).detach()), count, dict(exported.named_parameters())


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(
    ("kind", "train_on", "assistant_only"),
    [
        ("completion", "completion", False),
        ("completion", "assistant", True),
        ("messages", "assistant", True),
        ("messages", "all", False),
    ],
)
def test_losses_and_gradients_are_those_of_trl(twin, packing, kind, train_on, assistant_only):
    records = conversations(kind)
    want = reference(twin, records, packing=packing, assistant_only=assistant_only)
    loss, count, gradients = ours(twin, records, train_on=train_on)
    assert count == want[1]
    assert loss == pytest.approx(want[0], rel=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in want[2].values())
    for name, gradient in want[2].items():
        torch.testing.assert_close(
            gradients[name],
            gradient,
            rtol=1e-5,
            atol=1e-5 * scale,
            msg=lambda x, n=name: f"{n}: {x}",
        )
