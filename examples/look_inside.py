# %% [markdown]
# # A look inside
#
# A language model learns the sums of the numbers 0 to 3. Its hidden states, its attention and the predictions of its layers show where the
# answer appears.

# %%
import random

import miniformer
from miniformer.inspection.plots import (
    plot_attention,
    plot_hidden_states,
    plot_lens,
    plot_logprobs,
)

random.seed(4)
sums = [f"{a}+{b}={a + b}." for a in range(4) for b in range(4)]
texts = [{"text": "".join(random.choices(sums, k=10))} for _ in range(200)]
texts[0]

# %%
run = miniformer.train(
    texts,
    max_steps=200,
    seq_len=64,
    batch_size=8,
    lr=1e-2,
    model_config={"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 64},
    tokenizer="char",
    quiet=True,
)
m = run.pipeline
m.generate("3+2=", max_new_tokens=2, temperature=0)

# %% [markdown]
# The columns of the table are the inputs of the layers and of the head: the logit lens. A row predicts the next token.

# %%
result = m.inspect("3+2=5.2+1=3.")
print(result)

# %%
plot_lens(result)

# %% [markdown]
# The numbers of a question cannot be predicted, and its answer can.

# %%
plot_logprobs(result)

# %%
plot_attention(result, layer=1)

# %%
plot_hidden_states(result)


# %% [markdown]
# The answer becomes more probable from layer to layer, on average over all sums.


# %%
inspections = [m.inspect(text[:-2], top_k=20) for text in sums]


def answer_probability(layer):
    """Mean probability of the answer in the lens of a layer."""
    total = 0.0
    for text, inspection in zip(sums, inspections, strict=True):
        row = inspection.lens[layer][-1]
        total += next((p.value for p in row if p.name == text[-2]), 0.0)
    return total / len(sums)


by_layer = [answer_probability(layer) for layer in range(4)]
print([round(p, 3) for p in by_layer])
assert by_layer[-1] >= 0.9, by_layer
assert by_layer[0] < 0.5 * by_layer[-1], by_layer
