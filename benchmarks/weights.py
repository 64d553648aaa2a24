"""What smaller weights cost: the loss of a model as it decodes, by how its weights are kept.

    python benchmarks/weights.py MODEL FILE [--rows 64] [--tokens 256] [--save]

MODEL is a directory of a causal language model, FILE a text or JSON lines that it was not trained
on. Pieces of the text go through the decoding kernels token by token, as when they are written.
"""

import argparse
import json
from pathlib import Path

import torch

import miniformer
from environment import environment
from miniformer.data.reading.records import as_records

RESULTS = Path(__file__).parent / "results" / "weights.json"


def loss(model, ids, weights):
    """Nats a token of rows, int [B, T], each token given those before it in its row."""
    cache = model.new_cache(len(ids), ids.shape[1], "full")
    steps = model.engine(weights).make_runner(cache)
    total = 0.0
    with torch.inference_mode():
        for column in range(ids.shape[1] - 1):
            log_p = steps(ids[:, column].contiguous()).log_softmax(-1)
            total -= float(log_p.gather(1, ids[:, column + 1, None]).sum())
    return total / (len(ids) * (ids.shape[1] - 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("file")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--save", action="store_true", help="write results/weights.json")
    given = parser.parse_args()
    pipeline = miniformer.load(given.model)
    model, tokenizer = pipeline.model.eval(), pipeline.tokenizer
    text = "\n".join(each["text"] for each in as_records(given.file, pipeline.task.schema))
    ids = torch.tensor(tokenizer.encode(text))
    width = min(given.tokens, model.config.max_seq_len)
    ids = ids[: len(ids) // width * width].view(-1, width)[: given.rows]
    whole = None
    rows = []
    for kind in ("float32", "bf16", "int8", "int4"):
        found = loss(model, ids, kind)
        whole = found if whole is None else whole
        rows.append({"weights": kind, "loss": round(found, 5), "more": round(found / whole - 1, 6)})
        print(f"{kind:8} {found:.5f} nats a token, {found / whole - 1:+.3%}")
    if given.save:
        kept = {
            "environment": environment(),
            "parameters": model.config.num_params(),
            "tokens": ids.numel(),
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
