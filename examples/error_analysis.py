# %% [markdown]
# # A classifier and its errors
#
# One number hides which records a model gets wrong. This notebook trains a classifier of reviews whose labels are partly wrong, and
# looks at intervals, classes, groups and single errors.

# %%
import random

import miniformer

random.seed(1)
WORDS = {
    "good": ["lovely", "superb", "great", "charming", "brilliant"],
    "bad": ["dull", "awful", "poor", "tedious", "clumsy"],
    "mixed": ["uneven", "so-so", "average", "half good", "passable"],
}
THINGS = ["film", "book", "song", "play", "meal"]


def review(noise):
    """A record; with `noise` some labels are wrong, and reviews of meals are."""
    label, thing = random.choice(list(WORDS)), random.choice(THINGS)
    text = f"a {random.choice(WORDS[label])} {thing}, number {random.randrange(100)}"
    wrong = noise and random.random() < (0.4 if thing == "meal" else 0.02)
    shown = random.choice([name for name in WORDS if name != label]) if wrong else label
    return {"input": text, "label": shown, "thing": thing}


train = [review(noise=False) for _ in range(400)]
test = [review(noise=True) for _ in range(200)]

# %%
run = miniformer.train(
    train,
    task="classification",
    max_epochs=4,
    model_config={"d_model": 64, "n_heads": 4, "n_layers": 2},
    tokenizer="word",
    quiet=True,
)

# %% [markdown]
# Metrics have 95 % intervals, and `by` divides the records into groups: one of them stands out.

# %%
evaluation = run.pipeline.evaluate(test, by="thing")
evaluation

# %% [markdown]
# The most confident errors are often wrong labels.

# %%
answers = run.pipeline.predict([record["input"] for record in test])
errors = [
    (answer["score"], record["input"], record["label"], answer["label"])
    for record, answer in zip(test, answers, strict=True)
    if answer["label"] != record["label"]
]
for score, text, label, predicted in sorted(errors, reverse=True)[:8]:
    print(f"{score:.2f}  {text:<40} label {label:<6} predicted {predicted}")

# %% [markdown]
# Almost all errors are in reviews of meals, where two of five labels are wrong.

# %%
of_meals = sum("meal" in text for _, text, _, _ in errors) / len(errors)
accuracy = evaluation.metrics["accuracy"]
print(f"accuracy {accuracy:.3f}; {of_meals:.0%} of the errors are in reviews of meals")
assert 0.82 <= accuracy <= 0.97, accuracy
assert of_meals >= 0.6, of_meals
