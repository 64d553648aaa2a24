# %% [markdown]
# # Translation with attention maps
#
# A small language of nouns, adjectives and verbs is translated into another one, whose adjectives stand after the nouns. The
# attention from the target to the source shows which word is read for which.

# %%
import random

import miniformer
from miniformer.inspection.plots import plot_attention, plot_logprobs

random.seed(3)
NOUNS = {"dog": "hundo", "cat": "kato", "bird": "birdo", "horse": "cevalo", "fish": "fiso"}
ADJECTIVES = {"red": "ruga", "small": "eta", "old": "olda", "fast": "rapida", "white": "blanka"}
VERBS = {"sees": "vidas", "follows": "sekvas", "knows": "konas", "likes": "satas"}


def noun_phrase():
    noun, adjective = random.choice(list(NOUNS)), random.choice(list(ADJECTIVES))
    return f"the {adjective} {noun}", f"la {NOUNS[noun]} {ADJECTIVES[adjective]}"


def sentence():
    subject, target_subject = noun_phrase()
    target_object = noun_phrase()
    verb = random.choice(list(VERBS))
    return {
        "source": f"{subject} {verb} {target_object[0]}",
        "target": f"{target_subject} {VERBS[verb]} {target_object[1]}",
    }


records = list({r["source"]: r for r in (sentence() for _ in range(900))}.values())
train, test = records[:-100], records[-100:]
print(len(train), train[0])

# %%
run = miniformer.train(
    train,
    task="seq2seq",
    max_epochs=10,
    model_config={"d_model": 64, "n_heads": 4, "n_layers": 2},
    tokenizer="word",
    lr=2e-3,
    quiet=True,
)
m = run.pipeline
m.predict(["the old horse likes the white bird"])

# %% [markdown]
# `inspect` generates the target and records what the layers compute. A row of a map predicts the next word of the target. Some
# heads read the word of the source that it translates: the row of a noun reads the adjective before it.

# %%
result = m.inspect("the old horse likes the white bird")
print(result)

# %%
plot_attention(result, stack="cross", layer=-1)

# %%
plot_logprobs(result)

# %%
predicted = m.predict([record["source"] for record in test])
exact = sum(p == record["target"] for p, record in zip(predicted, test, strict=True)) / len(test)
print(f"{exact:.0%} of the sentences are translated without an error")
assert exact >= 0.9, exact
