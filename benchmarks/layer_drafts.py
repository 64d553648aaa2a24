"""Greedy decoding with drafts of the first layers of a model, compared with decoding without.

    python benchmarks/layer_drafts.py MODEL FILE [--layers 1 2 3] [--draft_tokens 4] [--save]

MODEL is a directory of a causal language model, such as one that was trained with `--early_exit`;
its prompts are excerpts of FILE. One text is decoded at a time. All drafts and plain decoding work
in turns, in rotated order; a ratio is the median of those of the rounds. The last line names the
fastest draft, or says that all are slower.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import miniformer
from environment import environment
from miniformer.data.reading.records import as_records
from miniformer.generation.speculative import Speculation

RESULTS = Path(__file__).parent / "results" / "layer_drafts.json"


def prompts_of(pipeline, file, count, length):
    """Excerpts of a file at equal distances, each of `length` tokens."""
    text = "\n".join(record["text"] for record in as_records(file, pipeline.task.schema))
    ids = pipeline.tokenizer.encode(text)
    starts = [i * (len(ids) - length) // count for i in range(count)]
    return [pipeline.tokenizer.decode(ids[start : start + length]) for start in starts]


def measure(pipeline, prompts, layers, draft_tokens, rounds, tokens):
    """Rows of the drafts, and tokens/s without a draft."""
    options = {"temperature": 0.0, "max_new_tokens": tokens, "min_new_tokens": tokens}
    drafts = [None, *((n, k) for n in layers for k in draft_tokens)]
    seconds, accepted, texts = {draft: [] for draft in drafts}, {}, {}
    for turn in range(rounds + 1):
        for step in range(len(drafts)):
            draft = drafts[(step + turn) % len(drafts)]
            speculation = None
            if draft is not None:
                speculation = Speculation(num_layers=draft[0], num_draft_tokens=draft[1])
            started = time.perf_counter()
            texts[draft] = [pipeline.generate(x, draft=speculation, **options) for x in prompts]
            if turn:
                seconds[draft].append(time.perf_counter() - started)
            if speculation is not None:
                stats = speculation.stats
                accepted[draft] = stats.num_accepted_tokens / max(1, stats.num_draft_tokens)
    rows = [
        {
            "layers": draft[0],
            "draft_tokens": draft[1],
            "accepted": round(accepted[draft], 3),
            "same_texts": texts[draft] == texts[None],
            "speed": round(
                statistics.median(
                    plain / own for plain, own in zip(seconds[None], seconds[draft], strict=True)
                ),
                3,
            ),
        }
        for draft in drafts[1:]
    ]
    return rows, len(prompts) * tokens / statistics.median(seconds[None])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("file", help="text or JSON lines that the model was not trained on")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--draft_tokens", type=int, nargs="+", default=[4])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help=f"write results/{RESULTS.name}")
    given = parser.parse_args()
    pipeline = miniformer.load(given.model)
    config = pipeline.model.config
    layers = [n for n in given.layers if n < config.n_layers]
    prompts = prompts_of(pipeline, given.file, given.prompts, given.prompt_tokens)
    rows, rate = measure(pipeline, prompts, layers, given.draft_tokens, given.rounds, given.tokens)
    print(f"without a draft: {rate:,.0f} tokens/s")
    for row in rows:
        print(json.dumps(row))
    best = max(rows, key=lambda row: row["speed"], default=None)
    if best is None or best["speed"] <= 1:
        print("slower: no draft is faster than decoding without")
    else:
        print(f"fastest: layers:{best['layers']}, {best['speed']:.2f} times as fast as without")
    if given.save:
        result = {
            "environment": environment(),
            "model": {"d_model": config.d_model, "n_layers": config.n_layers,
                      "parameters": config.num_params()},
            "tokens_per_s": round(rate, 1),
            "rows": rows,
        }  # fmt: skip
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
