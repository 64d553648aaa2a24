"""Model directories for the destinations of exported programs."""

import pytest
import torch

import miniformer
from miniformer import Seq2SeqTransformer
from miniformer.checkpoint.directory import save_directory
from miniformer.config import GenerationConfig
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from tests.kit import tiny_model

MODELS = {
    "decoder": {"n_layers": 1, "n_kv_heads": 2, "sliding_window": 5},
    "seq2seq": {"model": Seq2SeqTransformer, "n_layers": 1, "causal": False},
    "series": {"n_layers": 1, "causal": False, "input_dim": 3, "output_dim": 2},
}


@pytest.fixture(scope="session")
def directories(tmp_path_factory):
    """A directory for each kind of model; that of the classifier has a tokenizer and a task."""
    folder = tmp_path_factory.mktemp("models")
    for name, fields in MODELS.items():
        tiny_model(**fields).save_pretrained(folder / name)
    save_directory(
        folder / "classifier", tokenizer=Tokenizer.train("byte", []),
        model=tiny_model(n_layers=1, causal=False, vocab_size=258, output_dim=2),
        task=Classification(classes=["a", "b"], input_kind="text").settings(),
        generation=GenerationConfig(), model_card="# x\n",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def classify(directories):
    """Logits of the classifier for rows of token ids without padding."""
    pipeline = miniformer.load(directories / "classifier")

    @torch.no_grad()
    def classify(ids):
        ids = torch.as_tensor(ids)
        batch = {"inputs": ids, "attention_mask": torch.ones_like(ids).bool()}
        return pipeline.task.logits(pipeline.model, batch)

    return classify
