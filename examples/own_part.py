# %% [markdown]
# # A part of your own
#
# A part is a module that a config names. This one is attention whose heads have a learned temperature. Masks, caches, packing,
# saving and loading work with it as with any other.

# %%
import random

import torch
from torch import Tensor

import miniformer
from miniformer import MultiHeadAttention


class TemperedAttention(MultiHeadAttention):
    """Multiplies the queries of each head by a learned factor."""

    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.temperature = torch.nn.Parameter(torch.ones(self.n_heads))

    def queries(self, x: Tensor) -> Tensor:
        return super().queries(x) * self.temperature[:, None, None]  # [B, H, T, E]


miniformer.register("attention", "tempered", TemperedAttention)

# %% [markdown]
# The leak detector changes inputs that an output must not depend on.

# %%
sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "attention": "tempered"}
config = miniformer.TransformerConfig(vocab_size=50, causal=True, **sizes)
model = miniformer.Transformer(config)
miniformer.assert_no_leaks(model)

# %% [markdown]
# It is trained by its name in the config.

# %%
random.seed(5)
LINES = ["the cat sat on the mat.", "the dog sat by the door.", "the bird sang in the tree."]
records = [{"text": " ".join(random.choices(LINES, k=8))} for _ in range(120)]
run = miniformer.train(
    records,
    max_steps=100,
    seq_len=64,
    lr=1e-2,
    model_config=sizes,
    tokenizer="word",
    quiet=True,
)
m = run.pipeline
print(m.generate("the bird", max_new_tokens=5, temperature=0))
print(m.model.layers[0].attention.temperature.tolist())

# %% [markdown]
# A saved model names the part, and cached decoding gives the logits of a full pass.

# %%
m.save("tempered")
copy = miniformer.load("tempered")
copy.model.eval()
assert type(copy.model.layers[0].attention) is TemperedAttention
ids = torch.tensor([copy.tokenizer.encode("the cat sat")])
cache = copy.model.new_cache(1, 16)
with torch.inference_mode():
    steps = [copy.model(ids[:, n : n + 1], cache=cache) for n in range(ids.shape[1])]
    torch.testing.assert_close(torch.cat(steps, 1), copy.model(ids), atol=1e-4, rtol=1e-4)

# %%
loss = run.metrics["val_loss"]
print(f"validation loss {loss:.3f} nats a token")
assert 0.15 < loss < 0.35, loss
