# %% [markdown]
# # A LoRA classifier, to peft and back
#
# A classifier of remarks about cars learns remarks about hotels by a small adapter, which is written in the files of peft and read
# again. The base is trained here in seconds, so that the notebook needs no download; a checkpoint of your own takes its place.

# %%
import random
import tempfile
from pathlib import Path

from safetensors import safe_open

import miniformer

random.seed(6)
folder = Path(tempfile.mkdtemp())  # of all that this notebook writes
CARS = ["the engine", "the gearbox", "the screen", "the battery", "the seat", "the radio"]
HOTELS = ["the room", "the breakfast", "the pool", "the bed", "the staff", "the view"]
WORDS = {
    "car": {"good": ["works well", "is quiet", "starts at once"],
            "bad": ["broke at once", "is too loud", "never starts"]},
    "hotel": {"good": ["was lovely", "is clean", "made us happy"],
              "bad": ["was dirty", "is a shame", "made us angry"]},
}  # fmt: skip


def remarks(kind, count):
    things = CARS if kind == "car" else HOTELS
    for _ in range(count):
        label = random.choice(["good", "bad"])
        text = f"{random.choice(things)} {random.choice(WORDS[kind][label])}"
        yield {"input": f"{text}, {random.choice(['week', 'day'])} {random.randrange(9)}", "label": label}  # fmt: skip


cars, hotels = list(remarks("car", 200)), list(remarks("hotel", 200))
texts = [record["input"] for record in cars + hotels]
miniformer.Tokenizer.train("word", texts).save(folder / "words.json")
made = miniformer.train(
    cars,
    task="classification",
    max_epochs=5,
    model_config={
        "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "norm": "rmsnorm",
        "activation": "swiglu", "bias": False, "causal": True, "pooling": "last",
    },
    wide_head="off",
    tokenizer=folder / "words.json",
    work_dir=folder,
    quiet=True,
)  # fmt: skip
miniformer.to_hf(made.pipeline, folder / "checkpoint")

# %% [markdown]
# `from_hf` reads a checkpoint of a published family; here it is a Llama with a head for two classes, which knows remarks about
# cars.

# %%
base = miniformer.from_hf(folder / "checkpoint")
base.save(folder / "imported")
base

# %% [markdown]
# Only the adapter and the head are trained.

# %%
run = miniformer.train(
    hotels,
    task="classification",
    init_from=folder / "imported",
    adapter="lora",
    adapter_config={"r": 4},
    max_epochs=9,
    lr=3e-3,
    work_dir=folder,
    quiet=True,
)
run

# %% [markdown]
# `export` writes the adapter with the names of the Hugging Face family, which peft reads: `PeftModel.from_pretrained(model,
# "for-peft")`. The way back is `load` with this folder on the imported base.

# %%
miniformer.export(run.model, folder / "for-peft", to="peft")
with safe_open(folder / "for-peft/adapter_model.safetensors", "pt") as file:
    print(*sorted(file.keys())[:3], sep="\n")
back = miniformer.load(folder / "imported", adapter=folder / "for-peft")
back

# %%
test = list(remarks("hotel", 100))
texts = [record["input"] for record in test]
first, second = run.pipeline.predict(texts), back.predict(texts)
largest = max(abs(a["score"] - b["score"]) for a, b in zip(first, second, strict=True))
print(f"largest difference of a probability: {largest:.1e}")
assert largest < 1e-5, largest

# %%
before = base.evaluate(test).metrics["accuracy"]
accuracy = back.evaluate(test).metrics["accuracy"]
print(f"accuracy {accuracy:.2f}; of the base {before:.2f}")
assert accuracy >= 0.9, accuracy
