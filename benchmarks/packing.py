"""Speedup of length buckets over random, padded batches.

    python benchmarks/packing.py --pairs train.jsonl --texts train.jsonl --save

Both train the same model and task on the same records, with the same mean number of real tokens
per batch. `useful_tokens_ratio` is the real tokens per second of Miniformer divided by those of
random batches padded to the longest record: the median over alternating rounds. `--pairs` takes
{"source", "target"} records, such as Multi30k, `--texts` {"input", "label"} records, such as SST-2;
without them, records of similar lengths are generated. Uniform lengths are always included: there,
buckets cannot be faster, and must not be slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from environment import environment
from miniformer import Seq2SeqTransformer, Transformer, TransformerConfig
from miniformer.data.batching.length_bucketing import LengthBucketBatcher
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.tasks.seq2seq import Seq2Seq


class RandomBatches(LengthBucketBatcher):
    """Batches of `batch_size` records in random order, padded, as in most data loaders."""

    def plan_batches(self, chunk, rng):
        order = np.arange(len(chunk)) if rng is None else rng.permutation(len(chunk))
        return np.split(order, range(self.batch_size, len(order), self.batch_size))


class PaddedSeq2Seq(Seq2Seq):
    """Seq2seq whose padding of targets goes through the head, as in most training loops."""

    def loss(self, model, batch):
        memory = model.encode(batch["source"], batch.get("source_mask"))
        features = model.features(batch["target"], memory)
        loss = model.cross_entropy(features.flatten(0, 1), batch["labels"].flatten())
        return loss, (batch["labels"] != IGNORE_INDEX).sum()


def generate_records(kind, count=3000):
    """Records with lengths like those of Multi30k or SST-2, or of one length."""
    random = np.random.default_rng(0)

    def text(count):
        return " ".join(random.choice(["ab", "cde", "fghi", "j"], int(count)))

    if kind == "pairs":
        lengths = np.clip(random.normal(12, 4, (count, 2)), 4, 40)
        return [{"source": text(a), "target": text(b)} for a, b in lengths]
    if kind == "texts":
        lengths = np.clip(random.gamma(4.2, 4.6, count), 2, 52)
        return [{"input": text(n), "label": int(random.integers(2))} for n in lengths]
    if kind == "uniform":
        letters = random.choice(list("abcdefgh"), (count, 24))
        return [{"input": "".join(row), "label": int(random.integers(2))} for row in letters]
    raise ValueError(kind)


def train_for(model, task, loader, seconds, optimizer):
    """Trains for `seconds`; returns real tokens per second and the fraction of padding."""
    tokens = padding = 0
    start_time = time.perf_counter()
    while time.perf_counter() - start_time < seconds:
        for batch in loader:
            loss, count = task.loss(model, batch)
            optimizer.zero_grad()
            (loss / count).backward()
            optimizer.step()
            tokens += batch["about"]["tokens"]
            padding += batch["about"]["padding"]
            if time.perf_counter() - start_time >= seconds:
                break
    return tokens / (time.perf_counter() - start_time), padding / (tokens + padding)


def compare(name, task, records, *, batch_size, rounds, seconds, tokenizer):
    data = MiniFormerDataModule(
        records, tokenizer=tokenizer, task=task, batch_size=batch_size, seq_len=128
    )
    data.setup()
    task = data.task
    config = TransformerConfig.from_dict(
        task.model_config(
            {"d_model": 128, "n_heads": 4, "n_layers": 4, "max_seq_len": 128, "dropout": 0.0},
            tokenizer,
        )
    )
    kind = Seq2SeqTransformer if isinstance(task, Seq2Seq) else Transformer
    contestants = {}
    for contestant in ("miniformer", "padded"):
        torch.manual_seed(0)
        model = kind(config).train()
        loader = data.train_dataloader()
        if contestant == "padded":
            bucketed = loader.batcher
            if not isinstance(bucketed, LengthBucketBatcher):
                raise ValueError("packed tasks have a separate comparison")
            loader.batcher = RandomBatches(
                bucketed.collate_fn, length_columns=bucketed.length_columns, batch_size=batch_size
            )
        contestants[contestant] = (model, loader, torch.optim.AdamW(model.parameters()))
    rates = {contestant: [] for contestant in contestants}
    padding = {}
    for turn in range(rounds + 1):
        order = list(contestants) if turn % 2 else list(contestants)[::-1]
        for contestant in order:
            model, loader, optimizer = contestants[contestant]
            is_padded = contestant == "padded" and task.name == "seq2seq"
            trained_task = PaddedSeq2Seq() if is_padded else task
            rate, padding[contestant] = train_for(model, trained_task, loader, seconds, optimizer)
            if turn:  # the first round is warmup
                rates[contestant].append(rate)
    ratios = [a / b for a, b in zip(rates["miniformer"], rates["padded"], strict=True)]
    row = {
        "data": name,
        "records": len(data.chunks["train"].records),
        "batch_size": batch_size,
        "useful_tokens_ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "tokens_per_second": round(statistics.median(rates["miniformer"])),
        "padding": round(padding["miniformer"], 4),
        "padding_of_random_batches": round(padding["padded"], 4),
    }
    print(json.dumps(row), flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", help="JSON lines with source and target")
    parser.add_argument("--texts", help="JSON lines with input and label")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each round")
    parser.add_argument("--save", action="store_true", help="write results/packing.json")
    options = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    pairs = options.pairs or generate_records("pairs")
    texts = options.texts or generate_records("texts")
    bpe = Tokenizer.train("bpe", _texts(pairs), 4000)
    word = Tokenizer.train("bpe", _texts(texts), 4000)
    byte = Tokenizer.train("byte", [])  # one token per letter: equal lengths
    rows = []
    for size in options.batch_sizes:
        common = {
            "batch_size": size,
            "rounds": options.rounds,
            "seconds": options.seconds,
        }
        rows.append(compare("pairs", Seq2Seq(), pairs, tokenizer=bpe, **common))
        rows.append(compare("texts", Classification(), texts, tokenizer=word, **common))
        uniform = generate_records("uniform")
        rows.append(compare("uniform", Classification(), uniform, tokenizer=byte, **common))
    result = {
        "environment": environment(),
        "pairs": "made up" if not options.pairs else Path(options.pairs).parent.name,
        "texts": "made up" if not options.texts else Path(options.texts).parent.name,
        "rows": rows,
    }
    if options.save:
        path = Path(__file__).parent / "results" / "packing.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


def _texts(source):
    if isinstance(source, str):
        source = map(json.loads, Path(source).read_text(encoding="utf-8").splitlines())
    for record in source:
        yield from (value for value in record.values() if isinstance(value, str))


if __name__ == "__main__":
    main()
