# %% [markdown]
# # Fine-tuning an imported model
#
# A checkpoint in Hugging Face's format is imported and trained further on 60 labels. The checkpoint is made here: a
# language model that was trained in seconds on texts without labels, so that the notebook needs no download. A published one takes
# its place.

# %%
import json
import random
import tempfile
from pathlib import Path

import miniformer

random.seed(8)
folder = Path(tempfile.mkdtemp())  # of all that this notebook writes
THINGS = {
    "animal": ["the cat", "a horse", "the old dog", "our goat", "a sparrow", "the fox"],
    "tool": ["the saw", "a hammer", "the old drill", "our chisel", "a wrench", "the file"],
}
DEEDS = {
    "animal": ["sleeps in the barn", "eats the hay", "runs over the field", "hides from the rain"],
    "tool": ["hangs on the wall", "cuts the board", "lies in the box", "needs a new handle"],
}


def sentence(kind):
    return f"{random.choice(THINGS[kind])} {random.choice(DEEDS[kind])}"


texts = [
    {"text": ". ".join(sentence(kind) for _ in range(3))}
    for kind in random.choices(list(THINGS), k=400)
]
made = miniformer.train(
    texts,
    max_steps=80,
    seq_len=32,
    lr=3e-3,
    model_config={"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    tokenizer="word",
    work_dir=folder,
    quiet=True,
)
miniformer.to_hf(made.pipeline, folder / "checkpoint")
json.loads((folder / "checkpoint/config.json").read_text(encoding="utf-8"))

# %% [markdown]
# `from_hf` reads the checkpoint, which is now that of a GPT-NeoX. The command is `miniformer import checkpoint imported`.

# %%
base = miniformer.from_hf(folder / "checkpoint")
base.save(folder / "imported")
base

# %% [markdown]
# `init_from` takes the weights and the tokenizer. The head is new, since the checkpoint has none for classes. The learning rate is
# a tenth of the usual one unless it is given.

# %%


def records(count):
    kinds = random.choices(list(THINGS), k=count)
    return [{"input": sentence(kind), "label": kind} for kind in kinds]


labels = records(60)
run = miniformer.train(
    labels,
    task="classification",
    init_from=folder / "imported",
    max_epochs=10,
    lr=1e-3,
    work_dir=folder,
    quiet=True,
)
run

# %%
seen = {record["input"] for record in labels}
test = [record for record in records(300) if record["input"] not in seen]
evaluation = run.pipeline.evaluate(test)
evaluation

# %% [markdown]
# No sentence of the test was among the labels.

# %%
accuracy = evaluation.metrics["accuracy"]
assert accuracy >= 0.9, accuracy
