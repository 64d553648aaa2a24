"""Instruction tuning: learned tokens/s beside trl's SFTTrainer, and answers that end their turn.

    python benchmarks/sft.py [--part speed|ends] [--data DIR] [--rounds 3] [--conversations 48]
        [--save]

speed: conversations of 20 to 400 tokens are trained on for an epoch by SFTTrainer's
batches and loss, padded and packed, and by this package, with the same optimizer of torch, on the
same weights of a Llama shape. They alternate, in a rotated order; results are medians. Without the
package trl only this one is measured.

ends: a small model learns chat records made of multi30k_ende, agnews and xquad_en (DIR has a folder
of each) from nothing. The share of greedy answers to validation prompts that end with the token of
a turn.
"""

import argparse
import importlib.util
import itertools
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch

import miniformer
from environment import environment
from miniformer import MiniFormerDataModule, Tokenizer, Transformer
from miniformer.checkpoint.chat import ChatSession
from miniformer.data.chat import TEMPLATES
from miniformer.interop.hf.api import import_hf
from miniformer.tasks.language_modeling import LanguageModeling

RESULTS = Path(__file__).parent / "results" / "sft.json"
SEQ_LEN, ROWS = 512, 8
SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
         "num_attention_heads": 6, "num_key_value_heads": 6,
         "max_position_embeddings": SEQ_LEN, "tie_word_embeddings": True}  # fmt: skip
VOCAB_SIZE = 8192
WINDOW, LONGEST_PASSAGE = 512, 700  # of `ends`: tokens of a conversation, characters of a passage
MARKED = TEMPLATES["chatml"].replace(
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n",
    "<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content }}<|im_end|>{% endgeneration %}{% else %}{{ message.content }}<|im_end|>"
    "{% endif %}{{ '\n' }}",
)


def make_conversations(count):
    """Conversations of random letters, of 20 to 400 tokens of single bytes."""
    rng = random.Random(0)
    records = []
    for _ in range(count):
        length = rng.randint(20, 400) - 16
        first = max(2, round(length * rng.uniform(0.2, 0.6)))
        texts = ["".join(rng.choices("abcdefghij ", k=n - 2)) for n in (first, length - first + 2)]
        records.append(
            {"messages": [{"role": role, "content": f"a{text}b"}
                          for role, text in zip(("user", "assistant"), texts, strict=True)]}
        )  # fmt: skip
    return records


def speed(arguments):
    """Learned tokens/s of each way."""
    import transformers

    has_trl = importlib.util.find_spec("trl") is not None
    records = make_conversations(arguments.conversations)
    tokenizer = Tokenizer.train("byte", [])
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend).from_str(tokenizer.backend.to_str()),
        eos_token=tokenizer.eos_token, pad_token=tokenizer.eos_token, chat_template=MARKED,
    )  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE, bos_token_id=0, eos_token_id=0, pad_token_id=0, **SHAPE
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "hf")
        fast.save_pretrained(folder / "hf")
        import_hf(folder / "hf", folder / "ours")
        ways = {"ours": ours(folder, records)}
        for label, packing in (("trl, padded", False), ("trl, packed", True)) if has_trl else ():
            import datasets
            import trl

            model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf")
            options = trl.SFTConfig(
                output_dir=str(folder / "trl"), max_length=SEQ_LEN, packing=packing, use_cpu=True,
                per_device_train_batch_size=ROWS, assistant_only_loss=True, bf16=False,
                gradient_checkpointing=False, report_to="none",
            )  # fmt: skip
            trainer = trl.SFTTrainer(
                model=model, args=options, train_dataset=datasets.Dataset.from_list(records),
                processing_class=fast,
            )  # fmt: skip
            ways[label] = trl_epoch(trainer, model)
        rates = {label: [] for label in ways}
        for round_number in range(arguments.rounds + 1):  # the first one warms up
            first = round_number % len(ways)
            order = [*ways][first:] + [*ways][:first]
            for label in order:
                start = time.perf_counter()
                learned = ways[label]()
                if round_number:
                    rates[label].append(learned / (time.perf_counter() - start))
        return {label: statistics.median(values) for label, values in rates.items()}


def ours(folder, records):
    """An epoch of this package."""
    model = Transformer.from_pretrained(folder / "ours").train()
    task = LanguageModeling(chat_template="chatml")
    data = MiniFormerDataModule(
        records, tokenizer=Tokenizer.from_path(folder / "ours"), task=task, seq_len=SEQ_LEN,
        batch_size=ROWS,
    )  # fmt: skip
    data.setup()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def epoch():
        learned = 0
        for batch in data.ordered_batches("train"):
            loss, count = data.task.loss(model, batch)[:2]
            (loss / count).backward()
            optimizer.step()
            optimizer.zero_grad()
            learned += int(count)
        return learned

    return epoch


def trl_epoch(trainer, model):
    """An epoch of SFTTrainer's batches and loss, without the rest of its loop."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def epoch():
        learned = 0
        model.train()
        for batch in trainer.get_train_dataloader():
            learned += int((batch["labels"][:, 1:] != -100).sum())
            trainer.compute_loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        return learned

    return epoch


def chat_records(folder, split, count):
    """Questions and answers of translations, topics and passages, in turns."""
    with open(folder / "multi30k_ende" / f"{split}.jsonl", encoding="utf-8") as file:
        pairs = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
    with open(folder / "agnews" / f"{split}.jsonl", encoding="utf-8") as file:
        news = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
    names = ("World", "Sports", "Business", "Technology")
    translations = [(f"Translate: {pair['source']}", pair["target"]) for pair in pairs]
    topics = [(f"Topic? {item['input'][:120]}", names[item["label"]]) for item in news]
    rounds = itertools.zip_longest(translations, topics, passage_records(folder, split, count))
    return [record for members in rounds for record in members if record is not None]


def passage_records(folder, split, count):
    """Questions about a short passage with their answers; one in eight questions is in val."""
    lines = (folder / "xquad_en" / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    passages = {row["id"]: row["text"] for row in map(json.loads, lines)}
    lines = (folder / "xquad_en" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [
        row for n, row in enumerate(map(json.loads, lines)) if (n % 8 == 0) == (split == "val")
    ]
    return [
        (f"{passages[row['passage_id']]} {row['question']}", row["answers"][0]["text"])
        for row in questions[:count]
        if len(passages[row["passage_id"]]) <= LONGEST_PASSAGE
    ]


def ends(arguments):
    """The share of answers that end their turn."""
    folder = Path(arguments.data)
    train = [
        {"messages": [{"role": "user", "content": question},
                      {"role": "assistant", "content": answer}]}
        for question, answer in chat_records(folder, "train", arguments.records)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        result = miniformer.train(
            train, task_config={"chat_template": "chatml"}, work_dir=name, logger="none",
            max_steps=arguments.steps, seq_len=WINDOW,
            model_config={"d_model": 128, "n_layers": 3, "n_heads": 4, "max_seq_len": WINDOW},
        )  # fmt: skip
        session = ChatSession(result.pipeline, temperature=0.0, max_new_tokens=80)
        questions = [
            question for question, _ in chat_records(folder, "val", arguments.answers // 3)
        ]
        ended = 0
        for question in questions:
            session.reset()
            for _ in session.ask(question):
                pass
            ended += not session.notes
        return {"answers": len(questions), "ended": ended, "share": ended / len(questions)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", choices=("speed", "ends"), default="ends")
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=48)
    parser.add_argument("--records", type=int, default=2000, help="of each data set")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    result = {"speed": speed, "ends": ends}[arguments.part](arguments)
    print(json.dumps(result, indent=2))
    if arguments.save:
        stored = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        result = {**result, "environment": environment("trl", "transformers")}
        stored = {**stored, arguments.part: result}
        RESULTS.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
