"""Quality cost of smaller weights: the loss of a model when decoding, by weight dtype.

    python benchmarks/weights.py MODEL FILE [--rows 64] [--tokens 256] [--save]

MODEL is a directory of a causal language model, FILE a text or JSON lines file that it was not
trained on. Excerpts go through the decoding kernels token by token, as in generation.
"""

import argparse
import json
from pathlib import Path

import torch

import miniformer
from environment import environment
from miniformer.data.reading.records import as_records
from miniformer.runtime.native.decode_step import NativeRuntime
from miniformer.runtime.native.engine import get_engine

RESULTS = Path(__file__).parent / "results" / "weights.json"


def loss(model, ids, weights):
    """Loss in nats per token of rows, int [B, T]."""
    runtime = NativeRuntime(get_engine(model, weights), model)
    total = 0.0
    with torch.inference_mode():
        logits = runtime.prefill(ids[:, :1], None, ids.shape[1] - 1)
        for column in range(1, ids.shape[1]):
            total -= float(logits.log_softmax(-1).gather(1, ids[:, column, None]).sum())
            logits = runtime.step(ids[:, column])
    return total / (len(ids) * (ids.shape[1] - 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("file")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--save", action="store_true", help="write results/weights.json")
    args = parser.parse_args()
    pipeline = miniformer.load(args.model)
    model, tokenizer = pipeline.model.eval(), pipeline.tokenizer
    text = "\n".join(record["text"] for record in as_records(args.file, pipeline.task.schema))
    ids = torch.tensor(tokenizer.encode(text))
    width = min(args.tokens, model.config.max_seq_len)
    ids = ids[: len(ids) // width * width].view(-1, width)[: args.rows]
    float32_loss = None
    rows = []
    for dtype in ("float32", "bf16", "int8", "int4"):
        nats = loss(model, ids, dtype)
        float32_loss = nats if float32_loss is None else float32_loss
        increase = nats / float32_loss - 1
        rows.append({"weights": dtype, "loss": round(nats, 5), "more": round(increase, 6)})
        print(f"{dtype:8} {nats:.5f} nats per token, {increase:+.3%}")
    if args.save:
        result = {
            "environment": environment(),
            "parameters": model.config.num_params(),
            "tokens": ids.numel(),
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
