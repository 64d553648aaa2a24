"""A small language, and a model that was trained on it."""

import pytest
import torch

from miniformer import Pipeline, Tokenizer, Transformer
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_config

SIZES = {"d_model": 32, "n_layers": 2, "d_ff": 64, "max_seq_len": 32}
TOKENIZER = Tokenizer.train("byte", [])


def texts(count, seed=0):
    """Texts of a small language, of different lengths."""
    dice = torch.Generator().manual_seed(seed)
    vocabulary = ["the", "cat", "saw", "a", "bird", "and", "dog", "ran", "home", "by", "sea", "oak"]
    rows = []
    for _ in range(count):
        state, row = int(torch.randint(12, (1,), generator=dice)), []
        for _ in range(int(torch.randint(1, 7, (1,), generator=dice))):
            row.append(vocabulary[state])
            state = (5 * state + int(torch.randint(3, (1,), generator=dice))) % 12
        rows.append(" ".join(row))
    return rows


@pytest.fixture(scope="session")
def trained():
    """A trained language model."""
    torch.manual_seed(0)
    model = Transformer(tiny_config(**{**SIZES, "vocab_size": TOKENIZER.vocab_size}))
    ids = torch.tensor(TOKENIZER.encode(" ".join(texts(1500))))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(100):
        starts = torch.randint(len(ids) - 33, (16, 1))
        batch = ids[starts + torch.arange(33)]
        loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).mT, batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Pipeline(model.eval(), TOKENIZER, LanguageModeling())
