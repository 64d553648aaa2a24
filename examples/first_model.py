# %% [markdown]
# # A first model
#
# A table of short messages becomes a model that sorts them. The table is made here; a file of your own has its own columns, which
# `input_field` and `label_field` name.

# %%
import csv
import random

import miniformer

random.seed(0)
TOPICS = {
    "card": ["my card is blocked", "the card was stolen", "I lost my card", "a new card please"],
    "refund": ["where is my refund", "the money never came back", "refund my order", "I was charged twice"],
    "delivery": ["the parcel is late", "nothing was delivered", "track my parcel", "the courier left"],
}  # fmt: skip
ENDINGS = ["", ", please help", " since Monday", ", order {n}", "!", " - thank you"]


def messages(count):
    for n in range(count):
        category = random.choice(list(TOPICS))
        text = random.choice(TOPICS[category]) + random.choice(ENDINGS).format(n=n)
        yield {"text": text, "category": category}


for name, count in (("tickets.csv", 300), ("later.csv", 60)):
    with open(name, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["text", "category"])
        table.writeheader()
        table.writerows(messages(count))

# %% [markdown]
# Training takes the file and the task. All other settings follow from the data; the run prints them. In a notebook the progress is
# a table and a curve.

# %%
run = miniformer.train(
    "tickets.csv",
    task="classification",
    input_field="text",
    label_field="category",
    max_epochs=6,
    model_config={"d_model": 64, "n_heads": 4, "n_layers": 2},
)
run

# %% [markdown]
# The result has the best model as a pipeline.

# %%
m = run.pipeline
m

# %%
m.predict(["someone has my card", "where does the parcel stay"])

# %% [markdown]
# A file that came later gives the metrics, with intervals.

# %%
evaluation = m.evaluate("later.csv", input_field="text", label_field="category")
evaluation

# %%
accuracy = evaluation.metrics["accuracy"]
assert 0.9 <= accuracy <= 1.0, accuracy
