"""Tiny models of each task with each kind of input, as pipelines with random weights."""

from miniformer import (
    Pipeline,
    Seq2SeqTransformer,
    Tokenizer,
    Transformer,
    TransformerConfig,
    registry,
)
from miniformer.data.reading.records import as_records
from miniformer.tasks.embedding import EmbeddingTask
from tests.kit import tiny_model

BYTES = Tokenizer.train("byte", [])
SIZES = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32, "dropout": 0.0}
TEXTS = ("a cat", "two dogs", "a cat and a dog", "no dog")
SERIES = (
    [[1.0, 2.0], [2.0, 0.0]],
    [[0.5, 1.0]],
    [[3.0, 1.0], [1.0, 1.0], [0.0, 2.0]],
    [[2.0, 2.0]],
)


def rows(inputs, **fields):
    """Records of inputs, with the values of further fields in turn."""
    return [
        {"input": x, **{name: values[n % len(values)] for name, values in fields.items()}}
        for n, x in enumerate(inputs)
    ]


PAIRS = [[text, TEXTS[0]] for text in TEXTS]
SENTENCES = [
    {"tokens": text.split(), "tags": ["B-X" if word == "cat" else "O" for word in text.split()]}
    for text in TEXTS
]
TRANSLATIONS = [{"source": text, "target": text[::-1]} for text in TEXTS]
# Task, kind of its model, and records.
CASES = {
    "classification of texts": ("classification", "encoder", rows(TEXTS, label=["a", "b"])),
    "classification of pairs": ("classification", "encoder", rows(PAIRS, label=["a", "b"])),
    "classification of vectors": ("classification", "encoder", rows(SERIES, label=["a", "b"])),
    "several labels": (
        "multilabel_classification", "encoder", rows(TEXTS, labels=[["a"], ["b", "a"], [], ["b"]]),
    ),
    "ordered classes": ("ordinal_regression", "encoder", rows(TEXTS, label=[1, 2, 3, 4])),
    "a value of a text": ("regression", "encoder", rows(TEXTS, value=[1.0, 2.5, 3.0, 0.0])),
    "a value of vectors": ("regression", "encoder", rows(SERIES, value=[1.0, 2.5, 3.0, 0.0])),
    "several values": (
        "regression", "encoder", rows(TEXTS, value=[[1.0, 2.0], [2.5, 0.0], [3.0, 1.0]]),
    ),
    "tags": ("token_classification", "encoder", SENTENCES),
    "masked texts": ("masked_lm", "encoder", [{"text": text} for text in TEXTS]),
    "language": ("language_modeling", "encoder", [{"text": text} for text in TEXTS]),
    "language with an encoder": (
        "language_modeling", "seq2seq", [{"text": text} for text in TEXTS],
    ),
    "translation": ("seq2seq", "seq2seq", TRANSLATIONS),
    "translation of vectors": (
        "seq2seq", "seq2seq",
        [{"source": x, "target": text} for x, text in zip(SERIES, TEXTS, strict=True)],
    ),
    "embedding": ("embedding", "encoder", []),
}  # fmt: skip


def make_pipeline(case):
    """The pipeline of a case."""
    name, kind, records = CASES[case]
    if name == "embedding":
        task = EmbeddingTask(input_kind="text")
        return Pipeline(tiny_model(vocab_size=BYTES.vocab_size, causal=False), BYTES, task)
    task = registry.get("task", name)().for_model(kind)
    task = task.fit(as_records(records, task.schema))
    tokenizer = BYTES if task.reads_text() or kind == "seq2seq" else None
    config = TransformerConfig(**task.model_config(SIZES, tokenizer))
    task.check(config, tokenizer)
    model_class = Seq2SeqTransformer if kind == "seq2seq" else Transformer
    return Pipeline(tiny_model(model=model_class, **config.to_dict()), tokenizer, task)
