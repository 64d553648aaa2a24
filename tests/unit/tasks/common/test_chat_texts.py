"""Conversations in language modeling: records, packing, labels, settings."""

import json

import numpy as np
import pytest
import torch

import miniformer
from miniformer import MiniFormerDataModule, Tokenizer, UserError
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.data.chat import TEMPLATES
from miniformer.data.reading.records import JSONLinesDataset
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.prefix_language_modeling import PrefixLanguageModeling
from tests.kit import tiny_model
from tests.kit.chat_templates import text_of

USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}


def chat(*contents, system=None):
    turns = [
        {"role": "assistant" if n % 2 else "user", "content": x} for n, x in enumerate(contents)
    ]
    return {"messages": ([] if system is None else [{**SYSTEM, "content": system}]) + turns}


CHATS = [chat("one", "two"), chat("a", "bcd", "e" * 20, "f", system="be brief"), chat("x", "yy")]
CHATML = {"chat_template": "chatml"}


def tokenizer_for(task):
    tokenizer = Tokenizer.train("byte", [])
    tokenizer.add_special_tokens(task.special_tokens())
    return tokenizer


def datamodule(records, *, seq_len=256, task_options=CHATML, batch_size=8, **options):
    task = LanguageModeling(**task_options)
    data = MiniFormerDataModule(
        records, tokenizer=tokenizer_for(task), task=task, seq_len=seq_len, batch_size=batch_size,
        **options,
    )  # fmt: skip
    data.setup()
    return data


def labels_of(data, split="train"):
    """The texts of the labels of each row, without those that are not learned."""
    return [
        text_of(data.tokenizer, row[row >= 0])
        for batch in data.ordered_batches(split)
        for row in batch["labels"]
    ]


@pytest.mark.catches("packing_drops_the_mask", "labels_one_early", "answers_without_their_end")
def test_packed_labels_are_the_answers_and_their_ends():
    (labels,) = labels_of(datamodule(CHATS))
    assert labels == "bcd<|im_end|>f<|im_end|>two<|im_end|>yy<|im_end|>"


@pytest.mark.catches("packing_drops_the_mask", "labels_one_early")
def test_each_label_is_the_next_token_of_its_own_conversation():
    data = datamodule(CHATS)
    (batch,) = data.ordered_batches("train")
    ids, labels, segments = (batch[x][0] for x in ("input_ids", "labels", "segment_ids"))
    learned = (labels >= 0).nonzero().flatten()
    assert (ids[learned + 1] == labels[learned]).all()
    assert (segments[learned + 1] == segments[learned]).all()
    assert segments.max() == len(CHATS)


def test_a_packed_conversation_sees_itself_only():
    """Losses and gradients of a window are those of each conversation in a row of its own."""
    data = datamodule(CHATS)
    task, rows = data.task, [datamodule([item]) for item in CHATS]
    results = []
    for batches in ([*data.ordered_batches("train")], [b for x in rows for b in
                    x.ordered_batches("train")]):  # fmt: skip
        model = tiny_model(vocab_size=data.tokenizer.vocab_size, max_seq_len=256)
        totals = [task.loss(model, batch)[:2] for batch in batches]
        loss = sum(x for x, _ in totals)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append((float(loss.detach()), sum(int(n) for _, n in totals), gradients))
    assert results[0][1] == results[1][1] == 13
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-4, atol=1e-4)


@pytest.mark.catches("overlong_answers_are_cut")
def test_long_conversations_are_dropped_and_counted():
    data = datamodule(CHATS, seq_len=60)
    assert labels_of(data) == ["two<|im_end|>", "yy<|im_end|>"] or labels_of(data) == [
        "two<|im_end|>yy<|im_end|>"
    ]
    assert data.truncation_warning("train") == (
        "warning: 1 of 3 train records are conversations longer than seq_len=60 (the longest has "
        "85 tokens) and are left out"
    )
    with pytest.raises(UserError, match=r"no record has a token .*the shortest has 24 tokens"):
        datamodule(CHATS, seq_len=8)


def test_long_conversations_are_refused_with_their_line(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in CHATS))
    options = {**CHATML, "overlong": "refuse"}
    with pytest.raises(UserError, match=r"chats.jsonl:2: the record has 85 tokens, more than "):
        datamodule(str(path), seq_len=60, task_options=options)


@pytest.mark.parametrize(
    ("record", "options", "labels"),
    [
        ({"prompt": [USER], "completion": [ANSWER]}, {}, "A<|im_end|>"),
        ({"prompt": [USER], "completion": [ANSWER]}, {"train_on": "completion"}, "A<|im_end|>\n"),
        ({"prompt": [SYSTEM, USER, ANSWER, USER], "completion": [ANSWER, USER, ANSWER]}, {},
         "A<|im_end|>A<|im_end|>"),
        ({"messages": [USER, ANSWER, USER, ANSWER]}, {"train_on": "completion"}, "A<|im_end|>\n"),
        ({"messages": [USER, {**ANSWER, "learn": False}, USER, ANSWER, USER]}, {}, "A<|im_end|>"),
        ({"messages": [USER, ANSWER]}, {"train_on": "all"},
         "user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"),
        ({"messages": [USER, ANSWER]}, {"chat_template": "question_answer"}, " A<|endoftext|>"),
        ({"messages": [USER, ANSWER]}, {"chat_template": None}, " A<|endoftext|>"),
        ({"messages": [USER, ANSWER]},
         {"chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"},
         "A\n<|endoftext|>"),
    ],
)  # fmt: skip
def test_shapes_of_records(record, options, labels):
    assert labels_of(datamodule([record], task_options={**CHATML, **options})) == [labels]


def test_prompts_of_texts_are_learned_by_all():
    record = {"prompt": "Q", "completion": "A"}
    options = {"train_on": "all", "packing": "best_fit"}
    assert labels_of(datamodule([record], task_options=options)) == ["QA<|endoftext|>"]
    del options["train_on"]
    assert labels_of(datamodule([record], task_options=options)) == ["A<|endoftext|>"]


def test_texts_among_conversations():
    records = [CHATS[0], {"text": "plain"}, {"prompt": "Q", "completion": "A"}]
    (labels,) = labels_of(datamodule(records))
    assert sorted(labels.replace("<|im_end|>", "|").replace("<|endoftext|>", "|").split("|")) == [
        "", "A", "plain", "two",
    ]  # fmt: skip
    with pytest.raises(UserError, match="set packing: best_fit and a chat_template"):
        datamodule(records[::-1], task_options={})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": []}, "'messages' is an empty list"),
        ({"messages": "hi"}, "'messages' must be a list of messages, not a string"),
        ({"messages": [USER, "hi"]}, "message 2 is a string; each is an object such as"),
        ({"messages": [USER, {"role": "bot", "content": "A"}]},
         "message 2 has the role 'bot'; use 'assistant'"),
        ({"messages": [USER, {"role": "narrator", "content": "A"}]}, "'narrator'; use one of sys"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2 has no 'content'"),
        ({"messages": [{"from": "human", "value": "Q"}]}, "data convert FILE OUT --from sharegpt"),
        ({"messages": [USER, {**ANSWER, "content": " "}]}, r"\(assistant\) has an empty content"),
        ({"messages": [USER, {**ANSWER, "content": None}]}, r"\(assistant\) has null as content"),
        ({"messages": [USER, {**ANSWER, "learn": 1}]}, "has an integer as learn"),
        ({"messages": [USER]}, "has no assistant turn"),
        ({"messages": [ANSWER]}, "message 1 is an assistant turn without a user turn"),
        ({"messages": [USER, USER, ANSWER]}, "message 2 is a second user turn in a row"),
        ({"messages": [USER, ANSWER, ANSWER]}, "message 3 is a second assistant turn in a row"),
        ({"messages": [USER, SYSTEM, ANSWER]}, "message 2 is a system message after others"),
        ({"messages": [USER, {"role": "tool", "content": "1"}, ANSWER]}, "follows no assistant"),
        ({"prompt": [USER], "completion": "A"}, "text must be a string|must be a string"),
        ({"prompt": [USER], "completion": [USER]}, "is a second user turn|assistant"),
        ({"prompt": [USER], "completion": []}, "'completion' is an empty list"),
        ({"prompt": 1, "completion": [ANSWER]}, "'prompt' must be a string or a list of messages"),
    ],
)  # fmt: skip
def test_invalid_conversations_are_named(tmp_path, record, message):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(CHATS[0]) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError, match=rf"chats\.jsonl:2: .*({message})"):
        datamodule(str(path))


def test_problems_of_a_template_have_the_line_of_the_record(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in CHATS))
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    source += TEMPLATES["plain"]
    with pytest.raises(UserError, match=r"chats\.jsonl:2: .*refuses the messages: no system"):
        datamodule(str(path), task_options={"chat_template": source})
    drop = "{% for m in messages[-2:] %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match=r":2: .*leaves out the content of message 1 \(system\)"):
        datamodule(str(path), task_options={"chat_template": drop})


def test_templates_are_found(tmp_path):
    for setting, message in [
        (str(tmp_path / "none.jinja"), "is no file; name a file"),
        (str(tmp_path), "has no chat_template.jinja"),
        ("{% for %}", "the chat template is invalid"),
    ]:
        with pytest.raises(UserError, match=message):
            datamodule(CHATS, task_options={"chat_template": setting})
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["question_answer"])
    for setting in (str(tmp_path), str(tmp_path / "chat_template.jinja")):
        data = datamodule(CHATS, task_options={"chat_template": setting})
        assert data.task.chat_template == TEMPLATES["question_answer"]


def test_a_tokenizer_without_the_tokens_is_refused():
    task = LanguageModeling(chat_template="chatml").fit([{"text": CHATS[0]["messages"]}])
    tokenizer = Tokenizer.train("byte", [])
    config = tiny_model(vocab_size=tokenizer.vocab_size).config
    with pytest.raises(UserError, match=r"add-tokens DIR OUT '<\|im_start\|>' '<\|im_end\|>'"):
        task.check(config, tokenizer)
    with pytest.raises(miniformer.UserError, match="chat_template is for causal models"):
        PrefixLanguageModeling(chat_template="chatml")


def test_a_model_directory_has_the_template_and_stops_at_the_end_of_a_turn(tmp_path):
    data = datamodule(CHATS)
    model = tiny_model(vocab_size=data.tokenizer.vocab_size)
    pipeline = Pipeline(model, data.tokenizer, task=data.task)
    end = data.tokenizer.backend.token_to_id("<|im_end|>")
    assert pipeline.generation.eos_token_ids == [data.tokenizer.eos_id, end]
    pipeline.save(tmp_path / "model")
    assert (tmp_path / "model/chat_template.jinja").read_text() == TEMPLATES["chatml"]
    assert "chat_template" not in json.loads((tmp_path / "model/task.json").read_text())
    loaded = load(tmp_path / "model")
    assert loaded.task == data.task
    assert loaded.generation.eos_token_ids == [data.tokenizer.eos_id, end]


def test_bytes_of_records_are_those_of_batches():
    for train_on in ("assistant", "completion", "all"):
        data = datamodule(CHATS, task_options={**CHATML, "train_on": train_on})
        batches = sum(float(batch["bytes"]) for batch in data.ordered_batches("train"))
        records = data.chunks["train"].records
        by_record = data.task._record_bytes([], records, np.arange(3))
        assert by_record.sum() == pytest.approx(batches)
    assert by_record.tolist() == [6, 33, 3]


def test_message_files_are_read_by_column(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"talk": CHATS[0]["messages"]}) + "\n")
    from miniformer.data.reading.mapping import FieldMapping

    records = JSONLinesDataset(
        path, LanguageModeling().schema, mapping=FieldMapping(text_field="talk")
    )
    assert records[0]["text"] == CHATS[0]["messages"]
