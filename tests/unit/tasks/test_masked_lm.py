"""Masked language modeling: masking, predictions and errors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniformer.config import GenerationConfig, TransformerConfig, UserError
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.masked_lm import MaskedLM, collate_masked, mask_token_id
from tests.kit import tiny_model

BYTES = Tokenizer.train("byte", [])
B, M = BYTES.eos_id, mask_token_id(BYTES)
SPECIAL = np.array([B, M])


def hidden(rows, seed=0, share=0.15):
    random = None if seed is None else np.random.default_rng(seed)
    examples = [{"inputs": np.array(row)} for row in rows]
    return collate_masked(
        examples, random, mask_share=share, mask=M, special=SPECIAL, vocab_size=BYTES.vocab_size
    )


@pytest.mark.catches("special_tokens_are_guessed")
@given(
    st.lists(st.lists(st.integers(2, 257), min_size=1, max_size=30), min_size=1, max_size=6),
    st.none() | st.integers(0, 9),
    st.sampled_from([0.1, 0.5, 0.9]),
)
def test_masked_lm_masks_a_share_of_each_text(texts, seed, share):
    batch = hidden([[B, *text] for text in texts], seed, share)
    for row, text in enumerate(texts):
        labels, inputs = batch["labels"][row].tolist(), batch["inputs"][row].tolist()
        guessed = [index for index, label in enumerate(labels) if label != IGNORE_INDEX]
        assert len(guessed) == max(1, round(share * len(text)))
        assert 0 not in guessed  # the boundary
        assert max(guessed) <= len(text)  # nor padding
        full = [B, *text]
        assert all(labels[index] == full[index] for index in guessed)
        retained = [index for index in range(len(full)) if index not in guessed]
        assert all(inputs[index] == full[index] for index in retained)


def test_masked_lm_replaces_80_10_10():
    text = [B] + [7] * 4000
    batch = hidden([text] * 5, share=0.5)
    inputs = batch["inputs"][batch["labels"] != IGNORE_INDEX]
    assert len(inputs) == 10_000
    assert (inputs == M).float().mean() == pytest.approx(0.8, abs=0.015)
    assert (inputs == 7).float().mean() == pytest.approx(0.1, abs=0.015)
    replaced = inputs[(inputs != M) & (inputs != 7)]
    assert len(replaced.unique()) > 200  # any token of the vocabulary


def test_masked_lm_masks_are_fixed_in_validation_only():
    records = [{"text": "abcdefghij" * 3}]
    options = {"task": MaskedLM().fit(None), "tokenizer": BYTES, "batch_size": 4, "seq_len": 64}
    data = MiniFormerDataModule(records, val_path=records, **options)
    first, reloaded = (next(iter(data.val_dataloader()))["inputs"] for _ in range(2))
    assert torch.equal(first, reloaded)
    batches = data.train_dataloader()
    train_batch, next_train_batch = (next(iter(batches))["inputs"] for _ in range(2))
    assert not torch.equal(train_batch, next_train_batch)


@pytest.mark.catches("only_the_start_of_a_long_text_is_read")
@given(st.lists(st.text("abc", max_size=40), min_size=1, max_size=4), st.integers(2, 20))
def test_masked_lm_splits_long_texts_without_losing_tokens(texts, seq_len):
    task = MaskedLM().fit(None)
    examples = task.encode([{"text": text} for text in texts], BYTES, seq_len)
    assert all(len(example["inputs"]) <= seq_len for example in examples)
    ids = [i for example in examples for i in example["inputs"].tolist()]
    assert BYTES.decode(ids) == "".join(texts)
    assert not any((example["inputs"] == B).all() for example in examples)  # nothing to guess


def test_masked_lm_inputs_have_the_layout_of_classification():
    records = [{"input": ["ab", "cd"], "label": 1}]
    task = MaskedLM(field="input").fit(as_records(records, MaskedLM(field="input").schema))
    (example,) = task.encode(records, BYTES, 16)
    assert BYTES.decode(example["inputs"].tolist()) == "abcd"
    assert example["token_types"].tolist() == [0, 0, 0, 1, 1, 1]
    assert list(task.texts(records[0])) == ["ab", "cd"]
    assert task.model_config({}, BYTES)["token_types"] == 2


def trained(texts, steps=150):
    """A model trained to predict masked tokens of some texts."""
    task = MaskedLM(mask_share=0.3).fit(None)
    data = MiniFormerDataModule(
        [{"text": text} for text in texts], task=task, tokenizer=BYTES, batch_size=16, seq_len=16
    )
    model = tiny_model(
        vocab_size=BYTES.vocab_size, causal=False, max_seq_len=16, d_model=32
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batches = data.train_dataloader()
    done = 0
    while done < steps:
        for batch in batches:
            loss, count = task.loss(model, batch)
            optimizer.zero_grad()
            (loss / count).backward()
            optimizer.step()
            done += 1
    return task, model.eval()


def test_masked_lm_predict_fills_masks_from_both_sides():
    texts = ["a1x", "b2x", "a3y", "b4y"] * 8  # the middle follows from both ends, not from one
    task, model = trained(texts)
    answers = task.predict(model, BYTES, ["a[MASK]x", "b[MASK]x", "a[MASK]y", "[MASK]4y"], None)
    assert [item["text"] for item in answers] == ["a1x", "b2x", "a3y", "b4y"]
    assert [len(item["gaps"]) for item in answers] == [1] * 4
    best = answers[0]["gaps"][0]
    assert [best[0]["token"], len(best)] == ["1", 5]
    assert best[0]["score"] > 0.5 > best[1]["score"]
    both = task.predict(model, BYTES, ["[MASK]2[MASK]"], GenerationConfig())[0]
    assert [len(both["text"]), both["text"][1]] == [3, "2"]  # unmasked tokens are unchanged
    assert len(both["gaps"]) == 2


def test_masked_lm_metrics_count_masked_tokens():
    task = MaskedLM(mask_share=0.3).fit(None)
    model = tiny_model(vocab_size=BYTES.vocab_size, causal=False)
    batches = [hidden([[B, 5, 6, 7, 8], [B, 9]], seed) for seed in range(3)]
    for batch in batches:  # the model guesses the second text right, and the first one wrong
        best = model(batch["inputs"], batch["attention_mask"]).argmax(-1)
        batch["labels"] = torch.where(batch["labels"] == IGNORE_INDEX, IGNORE_INDEX, best)
        batch["labels"][0, batch["labels"][0] != IGNORE_INDEX] ^= 1
    with torch.no_grad():
        actual = task.compute_metrics([task.eval_step(model, batch) for batch in batches], BYTES)
    losses, right = [], []
    for batch in batches:
        logits = model(batch["inputs"], batch["attention_mask"]).detach().double()
        for row, index in (batch["labels"] != IGNORE_INDEX).nonzero().tolist():
            label = int(batch["labels"][row, index])
            losses.append(-float(logits[row, index].log_softmax(-1)[label]))
            right.append(int(logits[row, index].argmax()) == label)
    assert actual["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert actual["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert actual["accuracy"] == pytest.approx(np.mean(right))
    assert np.mean(right) == 0.5


def test_masked_lm_rejects_invalid_settings():
    task = MaskedLM().fit(None)
    config = TransformerConfig(vocab_size=258, d_model=16, n_heads=2, causal=True)
    with pytest.raises(UserError, match="causal must be false for masked_lm"):
        task.check(config, BYTES)
    config = TransformerConfig(vocab_size=258, d_model=16, n_heads=2, output_dim=3)
    with pytest.raises(UserError, match="output_dim must be null for this data, not 3"):
        task.check(config, BYTES)
    of_inputs = MaskedLM(field="input")
    vectors = as_records([{"input": [[1.0]]}], of_inputs.schema)
    with pytest.raises(UserError, match="masked_lm needs texts, not vectors"):
        of_inputs.fit(vectors)
    model = tiny_model(vocab_size=258, causal=False, max_seq_len=8)
    with pytest.raises(UserError, match=r"input 1 must be a text with a \[MASK\], not 'b'"):
        task.predict(model, BYTES, ["[MASK]", "b"], None)
    with pytest.raises(UserError, match="input 0 is 11 tokens long; the model reads at most 8"):
        task.predict(model, BYTES, ["a[MASK]" + "b" * 8], None)


def test_masked_lm_rejects_a_tokenizer_without_a_mask():
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<eos>": 1, "?": 2}, "?"))
    with pytest.raises(UserError, match="has no mask token"):
        mask_token_id(Tokenizer(backend))
