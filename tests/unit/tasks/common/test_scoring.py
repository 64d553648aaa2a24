"""Log-probabilities of given text, compared with full passes over the visible tokens."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer import Seq2SeqTransformer, cli
from miniformer.checkpoint.directory import save_directory
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, UserError
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput
from miniformer.tasks.classification import Classification
from miniformer.tasks.common.scoring import score
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import VERSE, tiny_model

BYTES = Tokenizer.train("byte", [])
LONGEST = 8


def one_by_one(model, row, first, stride):
    """Each token after all that a window of the definition holds before it."""
    log_probs, end = [], min(LONGEST, len(row) - 1)
    if end < first:
        end = min(first - 1 + stride, len(row) - 1)
    for position in range(first, len(row)):
        if position > end:
            end = min(end + stride, len(row) - 1)
        seen = row[max(0, end - LONGEST) : position]
        log_p = model(torch.tensor([seen]))[0, -1].detach().log_softmax(-1)
        log_probs.append(float(log_p[row[position]]))
    return log_probs


@pytest.mark.catches("window_scores_a_token_again")
@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 25)), min_size=1, max_size=4),
    st.integers(1, LONGEST),
)
def test_score_counts_every_token_once_with_its_window(lengths, stride):
    model = tiny_model(max_seq_len=LONGEST)
    random = torch.Generator().manual_seed(sum(map(sum, lengths)))
    rows = [torch.randint(0, 31, (a + b,), generator=random).tolist() for a, b in lengths]
    starts = [GenerationInput(row[:a]) for row, (a, _) in zip(rows, lengths, strict=True)]
    texts = [row[a:] for row, (a, _) in zip(rows, lengths, strict=True)]
    actual = score(model, starts, texts, stride=stride)
    for row, start, text, scored in zip(rows, starts, texts, actual, strict=True):
        assert scored.tokens == text
        expected = one_by_one(model, row, len(start.input_ids), stride)
        assert scored.logprobs == pytest.approx(expected, abs=1e-4)
        assert scored.total_logprob == pytest.approx(math.fsum(expected), abs=1e-3)


def test_score_of_targets_given_sources():
    model = tiny_model(model=Seq2SeqTransformer, causal=False)
    sources, targets = [[3, 1, 4], [1, 5, 9, 2]], [[6, 5], [3, 5, 8]]
    starts = [GenerationInput([2], source) for source in sources]
    for source, target, scored in zip(sources, targets, score(model, starts, targets), strict=True):
        log_p = model(torch.tensor([source]), torch.tensor([[2, *target[:-1]]]))[0].detach()
        expected = log_p.log_softmax(-1).gather(1, torch.tensor(target)[:, None])[:, 0]
        assert scored.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    with pytest.raises(
        UserError, match="target 0 is 33 tokens long; the model generates at most 32"
    ):
        score(model, [GenerationInput([2], [3])], [[4] * 33])


def language_model(**changes):
    model = tiny_model(vocab_size=258, max_seq_len=64, **changes)
    return Pipeline(model, BYTES, task=LanguageModeling(), generation=GenerationConfig())


def test_score_depends_on_the_prefix():
    m = language_model()
    alone, after = m.score(["cat"]), m.score(["cat"], prompts=["the "])
    ids = [BYTES.eos_id, *BYTES.encode("the cat")]
    log_p = m.model(torch.tensor([ids]))[0].detach().log_softmax(-1)
    expected = [float(log_p[position - 1, ids[position]]) for position in range(5, 8)]
    assert after[0].logprobs == pytest.approx(expected, abs=1e-4)
    assert alone[0].logprobs != pytest.approx(expected, abs=1e-4)
    with pytest.raises(UserError, match="1 texts need as many prompts, not 2"):
        m.score(["cat"], prompts=["a", "b"])


def test_score_of_a_file_matches_validation():
    """If one window holds all documents, validation has the same metrics."""
    m = language_model()
    records = [{"text": "the cat sat"}, {"text": ""}, {"text": "on the mat\nall day"}]
    actual = m.perplexity(records)
    data = MiniFormerDataModule(
        records, val_path=records, task=m.task, tokenizer=BYTES, seq_len=64, batch_size=4
    )
    with torch.no_grad():
        measured = [m.task.eval_step(m.model, batch) for batch in data.val_dataloader()]
    expected = m.task.compute_metrics(measured)
    # A validation also predicts the end of the empty document.
    assert actual["tokens"] == 12 + 19 + 1
    for name in ("loss", "perplexity", "bits_per_byte"):
        assert actual[name] == pytest.approx(expected[name], rel=1e-4)
    nats = actual["loss"] * actual["tokens"]
    assert actual["word_perplexity"] == pytest.approx(math.exp(nats / (3 + 5 + 1)), rel=1e-6)


@pytest.mark.catches("bits_per_byte_count_characters")
def test_score_bits_per_byte_count_utf8_bytes():
    m, text = language_model(), "žluťoučký 猫"
    assert (len(text), len(text.encode())) == (11, 17)
    result = m.perplexity([{"text": text}])
    nats = -m.score([text])[0].total_logprob  # the byte tokenizer's ids, no end
    ids = torch.tensor([[BYTES.eos_id, *BYTES.encode(text)]])
    end = float(m.model(ids)[0, -1].detach().log_softmax(-1)[BYTES.eos_id])
    assert result["tokens"] == 17 + 1
    assert result["bits_per_byte"] == pytest.approx((nats - end) / math.log(2) / 17, rel=1e-5)


def test_score_of_plain_text_does_not_depend_on_blocks(tmp_path):
    m = language_model()
    m.task = LanguageModeling(prepend_bos=False)
    path = tmp_path / "text.txt"
    path.write_text(VERSE * 3)
    actual = m.perplexity(str(path), stride=5)
    row = [BYTES.eos_id, *BYTES.encode(VERSE * 3)]
    expected = -score(m.model, [GenerationInput(row[:1])], [row[1:]], stride=5)[0].total_logprob
    assert actual["tokens"] == len(row) - 1
    assert actual["loss"] == pytest.approx(expected / (len(row) - 1), rel=1e-6)


@pytest.mark.catches("score_ignores_its_stride")
def test_score_command(tmp_path, capsys):
    m = language_model()
    save_directory(tmp_path / "model", model=m.model, tokenizer=BYTES, task=m.task.settings(),
                   generation=m.generation, model_card="# x\n")  # fmt: skip
    (tmp_path / "a.jsonl").write_text('{"text": "the cat"}\n')
    assert cli.main(["score", str(tmp_path / "model"), str(tmp_path / "a.jsonl")]) == 0
    actual = json.loads(capsys.readouterr().out)
    assert actual["loss"] == pytest.approx(m.perplexity([{"text": "the cat"}])["loss"], abs=1e-4)
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": VERSE * 3}) + "\n")
    long = ["score", str(tmp_path / "model"), str(tmp_path / "long.jsonl"), "--stride", "40"]
    assert cli.main(long) == 0
    actual = json.loads(capsys.readouterr().out)
    expected = m.perplexity([{"text": VERSE * 3}], stride=40)["loss"]
    assert expected != pytest.approx(
        m.perplexity([{"text": VERSE * 3}], stride=1)["loss"], abs=1e-3
    )
    assert actual["loss"] == pytest.approx(expected, abs=1e-4)
    for more, message in (
        (["--stride", "0"], "stride must be between 1 and max_seq_len=64, not 0"),
        (["--stride", "65"], "stride must be between 1 and max_seq_len=64, not 65"),
    ):
        arguments = ["score", str(tmp_path / "model"), str(tmp_path / "a.jsonl"), *more]
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_score_rejects_tasks_without_perplexity():
    m = language_model()
    with pytest.raises(UserError, match="every record's text is empty"):
        m.perplexity([{"text": ""}])
    m.task = Seq2Seq()
    with pytest.raises(UserError, match="perplexity needs a causal language model"):
        m.perplexity([{"text": "a"}])
    m.task = Classification(classes=[0, 1], input_kind="text")
    with pytest.raises(UserError, match="generates no text"):
        m.score(["a"])
