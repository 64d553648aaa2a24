"""Inspection: attention, lens and log-probabilities equal plain computations."""

import math

import pytest
import torch

from miniformer import Pipeline, Seq2SeqTransformer, Transformer, TransformerConfig, UserError
from miniformer.config.architectures import SEQ2SEQ_ARCHITECTURES, architecture_config
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.masked_lm import MaskedLM, mask_token_id
from miniformer.tasks.multilabel_classification import MultiLabelClassification
from miniformer.tasks.ordinal_regression import OrdinalRegression
from miniformer.tasks.regression import Regression
from miniformer.tasks.seq2seq import Seq2Seq
from miniformer.tasks.token_classification import TokenClassification
from tests.kit import tiny_model

TEXT = "a cat, a mat"
BYTES = Tokenizer.train("byte", [])
SIZES = {"vocab_size": BYTES.vocab_size, "n_kv_heads": 2}


def make_pipeline(task, **changes):
    return Pipeline(tiny_model(**{**SIZES, "causal": False, **changes}), BYTES, task)


@pytest.fixture(scope="module")
def language_model():
    return make_pipeline(LanguageModeling(), causal=True)


@pytest.fixture(scope="module")
def translator():
    return make_pipeline(Seq2Seq(), model=Seq2SeqTransformer)


def attention_by_hand(attention, x, memory=None, *, causal=False):
    """Weights of plain multi-head attention without positions, [H, T, S], from q and k."""
    heads, width = attention.n_heads, attention.head_dim
    q, k = attention.q_proj(x), attention.k_proj(x if memory is None else memory)
    keys = torch.stack([k[:, n * width : (n + 1) * width] for n in range(attention.kv_heads)])
    keys = keys.repeat_interleave(heads // attention.kv_heads, 0)
    rows = []
    for head in range(heads):
        scores = q[:, head * width : (head + 1) * width] @ keys[head].T / math.sqrt(width)
        if causal:
            hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, -torch.inf)
        rows.append(scores.exp() / scores.exp().sum(-1, keepdim=True))
    return torch.stack(rows)


@pytest.mark.catches("attention_of_inspection_is_the_first_layers")
@pytest.mark.parametrize("causal", [True, False])
@torch.inference_mode()
def test_inspect_attention_is_that_of_queries_and_keys(causal):
    task = LanguageModeling() if causal else MaskedLM(input_kind="text")
    pipeline = make_pipeline(task, causal=causal, position="none")
    result = pipeline.inspect(TEXT)
    stack = "decoder" if causal else "encoder"
    assert list(result.attentions) == [stack]
    layers = zip(
        pipeline.model.layers, result.hidden_states[stack], result.attentions[stack], strict=False
    )
    for layer, x, weights in layers:
        expected = attention_by_hand(layer.attention, layer.attention_norm(x), causal=causal)
        torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-4)
    assert weights.shape == (4, len(result.tokens), len(result.tokens))


@torch.inference_mode()
def test_inspect_seq2seq_has_the_attention_of_three_stacks():
    pipeline = make_pipeline(Seq2Seq(), model=Seq2SeqTransformer, position="none")
    result = pipeline.inspect("ein Hund", "a dog")
    assert list(result.attentions) == ["encoder", "decoder", "cross"]
    assert [x.shape for x in result.attentions["cross"]] == [
        (4, len(result.tokens), len(result.source_tokens))
    ] * 2
    model, states = pipeline.model, result.hidden_states
    layer = model.encoder.layers[1]
    expected = attention_by_hand(layer.attention, layer.attention_norm(states["encoder"][1]))
    torch.testing.assert_close(result.attentions["encoder"][1], expected, atol=1e-5, rtol=1e-4)
    layer = model.decoder.layers[0]
    x = states["decoder"][0]
    normed = layer.attention_norm(x)
    own = attention_by_hand(layer.attention, normed, causal=True)
    torch.testing.assert_close(result.attentions["decoder"][0], own, atol=1e-5, rtol=1e-4)
    value = layer.attention.v_proj(normed).view(len(x), 2, 4).repeat_interleave(2, 1)
    mixed = torch.einsum("hts,shd->thd", own, value).flatten(1)
    x = layer.cross_attention_norm(x + layer.attention.o_proj(mixed))
    cross = attention_by_hand(layer.cross_attention, x, states["encoder"][-1])
    torch.testing.assert_close(result.attentions["cross"][0], cross, atol=1e-5, rtol=1e-4)


@pytest.mark.catches("logprobs_are_those_of_the_next_token")
def test_inspect_logprobs_are_those_of_score(language_model, translator):
    result, (scored,) = language_model.inspect(TEXT), language_model.score([TEXT])
    start = len(result.tokens) - len(scored.tokens)
    assert result.token_ids[start:] == scored.tokens
    assert result.logprobs[:start] == [None] * start
    assert result.logprobs[start:] == pytest.approx(scored.logprobs, abs=1e-5)

    result = translator.inspect("ein Hund", "a dog")
    (scored,) = translator.score(["a dog"], ["ein Hund"])
    assert "".join(result.tokens[1:]) == "a dog"
    assert "".join(result.source_tokens).startswith("ein Hund")
    assert result.logprobs[0] is None
    assert result.logprobs[1:] == pytest.approx(scored.logprobs, abs=1e-5)


def test_inspect_seq2seq_without_a_target_inspects_the_generated_one(translator):
    ((_, output),) = translator.generate_outputs(["ein Hund"], max_new_tokens=20)
    result = translator.inspect("ein Hund")
    assert result.token_ids[1:][:20] == output.tokens[:20]


@pytest.mark.catches("masked_token_is_visible")
@torch.inference_mode()
def test_inspect_masked_language_model_masks_each_token_in_turn():
    pipeline = make_pipeline(MaskedLM(input_kind="text"))
    result = pipeline.inspect("ab [MASK]c")
    ids, mask = result.token_ids, mask_token_id(BYTES)
    scored = [n for n, value in enumerate(result.logprobs) if value is not None]
    assert [result.tokens[n] for n in scored] == list("ab c")
    for position in scored:
        row = torch.tensor([ids])
        row[0, position] = mask
        expected = pipeline.model(row)[0, position].log_softmax(-1)[ids[position]]
        assert result.logprobs[position] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.catches("lens_without_the_final_norm", "lens_of_the_last_layer_is_normed_twice")
@torch.inference_mode()
def test_inspect_lens_is_the_head_of_each_layer(language_model):
    result, model = language_model.inspect(TEXT, top_k=3), language_model.model
    assert len(result.lens) == model.config.n_layers + 1
    logits = model(torch.tensor([result.token_ids]))[0]
    torch.testing.assert_close(result.logits, logits, atol=1e-5, rtol=1e-4)
    states = result.hidden_states["decoder"]
    heads = [model.final_norm(x) @ model.embedding.weight.T for x in states[:-1]]
    for layer, expected in zip(result.lens, [*heads, logits], strict=True):
        best, ids = expected.softmax(-1).topk(3)
        for row, probs, tokens in zip(layer, best, ids, strict=True):
            assert [x.value for x in row] == pytest.approx(probs.tolist(), abs=1e-5)
            texts = [BYTES.decode([int(token)]) for token in tokens]
            pairs = zip(row, texts, strict=True)
            assert [x.name for x, text in pairs if text.isalnum()] == [*filter(str.isalnum, texts)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bert", "t5"])
@torch.inference_mode()
def test_inspect_families_end_with_their_logits(family):
    sizes = {"vocab_size": BYTES.vocab_size, "d_model": 16, "n_heads": 4, "n_layers": 2}
    config = TransformerConfig.from_dict(architecture_config(family, **sizes, max_seq_len=32))
    torch.manual_seed(0)
    if family in SEQ2SEQ_ARCHITECTURES:
        pipeline = Pipeline(Seq2SeqTransformer(config).eval(), BYTES, Seq2Seq())
        result = pipeline.inspect("ein Hund", "a dog")
    else:
        task = LanguageModeling() if config.causal else MaskedLM(input_kind="text")
        pipeline = Pipeline(Transformer(config).eval(), BYTES, task)
        result = pipeline.inspect(TEXT)
        logits = pipeline.model(torch.tensor([result.token_ids]))[0]
        torch.testing.assert_close(result.logits, logits, atol=1e-5, rtol=1e-4)
    expected = result.logits.softmax(-1).topk(5).values
    shown = torch.tensor([[x.value for x in row] for row in result.lens[-1]])
    torch.testing.assert_close(shown, expected, atol=1e-5, rtol=1e-4)
    for layers in result.attentions.values():
        assert all(bool((weights.sum(-1) <= 1 + 1e-5).all()) for weights in layers)


LABEL_TASKS = [
    (Classification(classes=["x", "y", "z"], input_kind="text"), {"output_dim": 3}),
    (MultiLabelClassification(classes=["x", "y"], input_kind="text"), {"output_dim": 2}),
    (
        OrdinalRegression(classes=[1, 2, 3], input_kind="text"),
        {"output_dim": 2, "ordered_outputs": True},
    ),
    (
        Regression(input_kind="text", target_mean=5.0, target_std=2.0),
        {"output_dim": 1, "pooling": "first"},
    ),
]


@pytest.mark.catches("lens_without_pooling")
@pytest.mark.parametrize(("task", "fields"), LABEL_TASKS, ids=lambda x: getattr(x, "name", ""))
def test_inspect_label_tasks_end_with_their_prediction(task, fields):
    pipeline = make_pipeline(task, **fields)
    result, answer = pipeline.inspect(TEXT), pipeline.predict(TEXT)
    assert result.rows == ["input"]
    assert len(result.lens) == 3
    last = dict(result.lens[-1][0])
    if isinstance(answer, dict):
        expected = {str(name): value for name, value in answer["scores"].items()}
    else:
        expected = {"value": answer}
    assert last == pytest.approx(expected, abs=1e-5)
    assert result.logprobs == [None] * len(result.tokens)


def test_inspect_tags_have_a_row_for_each_word():
    task = TokenClassification(classes=["O", "B-X", "I-X"], scheme="iob2")
    pipeline = make_pipeline(task, output_dim=3)
    result = pipeline.inspect(["in", "Oslo"])
    assert result.rows == ["in", "Oslo"]
    assert [len(layer) for layer in result.lens] == [2, 2, 2]
    (answer,) = pipeline.predict_all([["in", "Oslo"]])
    probs = [{x.name: x.value for x in row} for row in result.lens[-1]]
    scores = [row[tag] for row, tag in zip(probs, answer["tags"], strict=True)]
    assert scores == pytest.approx(answer["scores"], abs=1e-5)


def test_inspect_vectors_and_models_without_a_head():
    task = Regression(input_kind="features", input_dim=2, target_mean=0.0, target_std=1.0)
    model = tiny_model(input_dim=2, output_dim=1, causal=False)
    pipeline, vectors = Pipeline(model, None, task), [[0.5, 1.0], [1.0, -1.0], [0.0, 2.0]]
    result = pipeline.inspect(vectors)
    assert (result.tokens, result.token_ids) == (["0", "1", "2"], None)
    assert result.lens[-1][0][0].value == pytest.approx(pipeline.predict(vectors), abs=1e-5)
    result = make_pipeline(EmbeddingTask(input_kind="text")).inspect(TEXT)
    assert result.lens == []
    assert "attention, mean of heads and positions:" in str(result)


@pytest.mark.catches("lens_does_not_say_that_it_lacks_the_wide_head")
def test_lens_of_a_model_with_a_wide_head_says_that_it_is_without_it():
    task = Classification(classes=["x", "y"], input_kind="text")
    group = {"type": "ngrams", "length": 2, "positions": False, "size": 5}
    results = [
        make_pipeline(task, output_dim=2, pooling="mean", wide_head=wide).inspect(TEXT)
        for wide in (None, [group])
    ]
    note = "without the wide head, which the predictions of the model have in addition"
    for result, has in zip(results, (False, True), strict=True):
        assert result.to_json()["has_wide_head"] == has
        assert (note in str(result)) == (note in result._repr_html_()) == has


def test_inspect_result_as_json(language_model):
    result = language_model.inspect(TEXT)
    report = result.to_json()
    assert len(report["tokens"]) == len(report["lens"][0]) == len(report["logprobs"])
    for row in report["attention"]["decoder"][0]:
        assert sum(row) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ("a" * 99, {}, "tokens long; the model reads at most 32; shorten it, or truncate it"),
        (["a"], {}, "inspect takes one text, a string, not a list"),
        ("a", {"target": "b"}, "a target is for seq2seq models; leave it out"),
        ("a", {"top_k": 0}, "top_k must be at least 1, not 0"),
    ],
)
def test_inspect_refuses(language_model, value, options, message):
    with pytest.raises(UserError) as error:
        language_model.inspect(value, **options)
    assert message in str(error.value)


def test_inspect_refuses_a_source_of_another_kind(translator):
    with pytest.raises(UserError):
        translator.inspect([[0.5]])


def test_inspect_truncates_if_asked(language_model):
    assert len(language_model.inspect("a" * 99, truncate=True).tokens) == 32
