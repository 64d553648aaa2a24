"""Conversations with a model."""

import json

import pytest
import torch

from miniformer import GenerationConfig, Tokenizer, UserError
from miniformer.checkpoint.chat import ChatSession
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.commands import chat as command
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model


def make_pipeline(max_seq_len=256, answers=" fine."):
    """A pipeline whose model answers with a fixed text and then EOS."""
    tokenizer = Tokenizer.train("byte", [])
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=max_seq_len)
    generation = GenerationConfig(max_new_tokens=16, temperature=0, eos_id=tokenizer.eos_id)
    pipeline = Pipeline(model, tokenizer, task=LanguageModeling(), generation=generation)
    ids = [*tokenizer.encode(answers), tokenizer.eos_id]
    pipeline.prompts = []

    def stream_input(self, model, tokenizer, start, options, **more):
        pipeline.prompts.append(tokenizer.backend.decode(start.input_ids, False))
        pipeline.limit = options.max_new_tokens
        for token in ids[: options.max_new_tokens]:
            if token not in options.eos_token_ids:
                yield tokenizer.decode([token])

    pipeline.stream_input = stream_input
    return pipeline


@pytest.fixture
def pipeline(monkeypatch):
    result = make_pipeline()
    monkeypatch.setattr(LanguageModeling, "stream_input", result.stream_input)
    return result


def test_the_history_is_part_of_the_prompt(pipeline):
    session = ChatSession(pipeline, template="plain", system="Be kind.")
    assert "".join(session.ask("One?")) == " fine."
    assert "".join(session.ask("Two?")) == " fine."
    assert pipeline.prompts[1] == (
        "System: Be kind.\nUser: One?\nAssistant: fine.<|endoftext|>\nUser: Two?\nAssistant:"
    ).replace("Assistant: fine.", "Assistant: fine.")
    assert [m["role"] for m in session.messages] == ["system", *["user", "assistant"] * 2]
    assert session.notes == []


@pytest.mark.catches("reset_keeps_the_messages")
def test_commands_of_a_conversation(pipeline, tmp_path):
    session, notes, texts = ChatSession(pipeline, template="plain", system="S"), [], []
    path = tmp_path / "chats.jsonl"
    lines = [f"/save {path}", "/save", "Hi", f"/save {path}", "/reset", "/x", "/usr/bin?", "  ",
             "/exit", "never"]  # fmt: skip
    code = command.talk(
        session, iter(lines), interactive=True, write=texts.append, note=notes.append
    )
    assert code == 0
    assert "".join(texts) == " fine.\n fine.\n"
    assert notes[:4] == [
        "there is no answer to save yet", "/save needs a file, such as /save chat.jsonl",
        f"added to {path}", "a new conversation",
    ]  # fmt: skip
    assert notes[4].startswith("/x is no command; /reset starts anew")
    assert pipeline.prompts[-1] == "System: S\nUser: /usr/bin?\nAssistant:"
    assert json.loads(path.read_text())["messages"][2] == {"role": "assistant", "content": "fine."}
    for name in ("a.txt", "no/a.jsonl"):
        with pytest.raises(UserError, match=r"name a .jsonl file|cannot be written"):
            session.save(tmp_path / name)


@pytest.mark.catches("left_out_turns_are_not_stated")
def test_a_full_context_leaves_out_the_oldest_turns(monkeypatch):
    pipeline = make_pipeline(max_seq_len=96)
    monkeypatch.setattr(LanguageModeling, "stream_input", pipeline.stream_input)
    session = ChatSession(pipeline, template="plain", system="S")
    for number in range(4):
        list(session.ask(f"Question {number}"))
    assert session.notes == [
        "the context of 96 tokens is full: the first 4 messages are left out; /reset starts anew"
    ]
    assert pipeline.prompts[-1].startswith("System: S\nUser: Question 2\n")
    with pytest.raises(UserError, match=r"the message has 127 tokens .* 96; shorten it"):
        next(session.ask("x" * 100))
    assert len(session.messages) == 9
    list(session.ask("x" * 60))  # leaves less than max_new_tokens
    assert pipeline.limit == 9


def test_answers_that_are_cut_are_named(monkeypatch):
    pipeline = make_pipeline(answers="x" * 30)
    monkeypatch.setattr(LanguageModeling, "stream_input", pipeline.stream_input)
    session = ChatSession(pipeline, template="plain")
    assert "".join(session.ask("Q")) == "x" * 16
    assert session.notes == ["the answer was stopped after 16 tokens; raise max_new_tokens"]


@pytest.mark.catches("ctrl_c_ends_a_chat_at_once")
def test_ctrl_c_stops_an_answer_and_then_ends(pipeline):
    session, notes, texts = ChatSession(pipeline, template="plain"), [], []

    def write(text):
        texts.append(text)
        if len(texts) == 2:
            raise KeyboardInterrupt

    def lines():
        yield "Hi"
        yield "again"
        raise KeyboardInterrupt

    class Prompt:
        def __init__(self):
            self.count = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.count += 1
            if self.count in (3, 4):
                raise KeyboardInterrupt
            return "Hi"

    code = command.talk(session, Prompt(), interactive=True, write=write, note=notes.append)
    assert code == 130
    assert notes == ["stopped; Ctrl-C again ends"] * 2
    # What there was of the answer is in the conversation.
    assert [m["content"] for m in session.messages] == ["Hi", "f", "Hi", "fine."]
    assert command.talk(session, lines(), write=write, note=notes.append) == 130


def test_a_model_that_cannot_chat_says_what_to_do(pipeline, tmp_path):
    with pytest.raises(UserError, match="a base model without a chat template; continue texts"):
        ChatSession(pipeline)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    pipeline.directory = tmp_path
    assert list(ChatSession(pipeline).ask("Hi"))
    with pytest.raises(UserError, match="the message is empty"):
        next(ChatSession(pipeline).ask(" "))
    from miniformer.tasks.embedding import EmbeddingTask

    pipeline.task = EmbeddingTask()
    with pytest.raises(UserError, match="needs a causal language model"):
        ChatSession(pipeline)


def test_each_line_of_a_pipe_is_a_message(tmp_path, capsys, monkeypatch):
    import io

    pipeline = make_pipeline()
    Pipeline(pipeline.model, pipeline.tokenizer, task=LanguageModeling()).save(tmp_path / "model")

    class Pipe(io.TextIOWrapper):
        def isatty(self):
            return False

    def run(content, **values):
        monkeypatch.setattr("sys.stdin", Pipe(io.BytesIO(content)))
        directory = {"directory": str(tmp_path / "model"), "chat_template": "plain"}
        return command.run({**directory, "max_new_tokens": 4, **values})

    torch.manual_seed(0)
    assert run(b"Hi\r\nMore\n/reset\n", temperature=0.0) == 0
    output = capsys.readouterr()
    assert output.out.count("\n") >= 2
    assert "(a new conversation)" in output.err
    with pytest.raises(UserError, match="standard input: line 2: "):
        run(b"Hi\n\xff\n")
    with pytest.raises(UserError, match="shorten it"):
        run(b"x" * 300 + b"\n")
