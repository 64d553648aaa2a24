# %% [markdown]
# # Export and serve
#
# A model leaves Python as ONNX files, which a runner without torch reads, and answers HTTP requests.

# %%
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import miniformer

folder = Path(tempfile.mkdtemp())  # of all that this notebook writes
THINGS = ["invoice", "ticket", "parcel", "contract", "letter"]
records = [
    {"input": f"the {thing} {word} {n}", "label": label}
    for n in range(6)
    for thing in THINGS
    for label, words in {
        "late": ["is overdue", "did not come"],
        "fine": ["arrived", "is here"],
    }.items()
    for word in words
]
run = miniformer.train(
    records,
    task="classification",
    max_epochs=8,
    model_config={"d_model": 32, "n_heads": 4, "n_layers": 2},
    tokenizer="word",
    work_dir=folder,
    quiet=True,
)
run

# %% [markdown]
# `export` compares the files with the model before it writes them.

# %%
miniformer.export(run.model, folder / "exported", to="onnx")

# %%
sorted(path.name for path in (folder / "exported").iterdir())

# %% [markdown]
# The server is a command; here it runs beside the notebook.

# %%
server = subprocess.Popen(
    [sys.executable, "-m", "miniformer.cli", "serve", str(run.model), "--port", "8123"],
    stdout=subprocess.DEVNULL,
)


def post(path, values):
    request = urllib.request.Request(
        f"http://127.0.0.1:8123{path}",
        json.dumps(values).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


try:
    for _ in range(240):
        try:
            urllib.request.urlopen("http://127.0.0.1:8123/ready", timeout=5).close()
            break
        except OSError:
            time.sleep(0.25)
    texts = [record["input"] for record in records]
    served = post("/v1/classify", {"input": texts})["predictions"]
finally:
    server.terminate()
    server.wait()
served[0]

# %%
direct = run.pipeline.predict(texts)
accuracy = sum(a["label"] == r["label"] for a, r in zip(served, records, strict=True)) / len(
    records
)
largest = max(abs(a["score"] - b["score"]) for a, b in zip(served, direct, strict=True))
print(f"accuracy {accuracy:.2f}; largest difference to the model in this process {largest:.1e}")
assert accuracy >= 0.95, accuracy
assert largest < 1e-4, largest
