"""Beam search speed: target tokens per second of one seq2seq model in several libraries.

    python benchmarks/beams.py [--rounds 5] [--save]

A BART with random weights (3 + 3 layers x 256, vocabulary 8,000) generates 32 tokens for each of 32
sources of unequal lengths, with five beams. Each round runs all libraries in a different order.
Results are medians. Hugging Face's transformers and CTranslate2 (with the same weights, converted)
are included if installed.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

import miniformer
from environment import environment
from miniformer import Seq2SeqTransformer, TransformerConfig
from miniformer.config.architectures import architecture_config

RESULTS = Path(__file__).parent / "results" / "beams.json"
VOCABULARY, NEW, BEAMS, ROWS = 8000, 32, 5, 32


def run_miniformer(model, sources, weights):
    return model.generate(sources, NEW, num_beams=BEAMS, min_new_tokens=NEW, weight_dtype=weights)


def run_transformers(model, sources):
    width = max(map(len, sources))
    ids = torch.tensor([row + [1] * (width - len(row)) for row in sources])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sources])
    with torch.inference_mode():
        return model.generate(
            ids, attention_mask=mask, num_beams=BEAMS, min_new_tokens=NEW, max_new_tokens=NEW,
            do_sample=False, decoder_start_token_id=2, eos_token_id=2, pad_token_id=1,
        )  # fmt: skip


def run_ctranslate2(translator, sources):
    return translator.translate_batch(
        [[f"t{token}" for token in row] for row in sources], beam_size=BEAMS,
        min_decoding_length=NEW, max_decoding_length=NEW, max_batch_size=0,
    )  # fmt: skip


def convert_to_ctranslate2(model, folder, quantization):
    """Converts a Hugging Face model to a CTranslate2 translator with tokens t0, t1, ..."""
    import ctranslate2
    from ctranslate2.converters.transformers import BartLoader

    spec = BartLoader().get_model_spec(model)
    tokens = [f"t{index}" for index in range(VOCABULARY)]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.bos_token, spec.config.unk_token = "t0", "t3"
    spec.config.eos_token = spec.config.decoder_start_token = "t2"
    spec.validate()
    spec.optimize(quantization=quantization)
    folder.mkdir()
    spec.save(str(folder))
    return ctranslate2.Translator(str(folder), intra_threads=torch.get_num_threads())


def contenders(model, sources):
    """Maps names to generation functions."""
    result = {
        f"miniformer, {kind}": lambda kind=kind: run_miniformer(model, sources, kind)
        for kind in ("float32", "bf16", "int8")
    }
    if importlib.util.find_spec("transformers") is None:
        return result
    import transformers

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        miniformer.to_hf(model, folder / "hf")
        hf_model = transformers.BartForConditionalGeneration.from_pretrained(folder / "hf").eval()
        result["transformers, float32"] = lambda: run_transformers(hf_model, sources)
        if importlib.util.find_spec("ctranslate2") is not None:
            for kind in ("float32", "int8"):
                translator = convert_to_ctranslate2(
                    hf_model, folder / kind, None if kind == "float32" else kind
                )
                result[f"ctranslate2, {kind}"] = lambda translator=translator: run_ctranslate2(
                    translator, sources
                )
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/beams.json")
    parser.add_argument("--out", type=Path, help="write the result to this file instead")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = TransformerConfig(**architecture_config(
        "bart", vocab_size=VOCABULARY, d_model=256, n_heads=8, n_layers=3, d_ff=1024,
        max_seq_len=128, dropout=0.0,
    ))  # fmt: skip
    model = Seq2SeqTransformer(config).eval()
    sources = [torch.randint(4, VOCABULARY, (6 + n,)).tolist() for n in range(ROWS)]
    runs = contenders(model, sources)
    rates = {name: [] for name in runs}
    for run in runs.values():  # warm-up: compilation and allocation
        run()
    for index in range(args.rounds):
        names = list(runs)
        start = index % len(names)
        for name in names[start:] + names[:start]:
            run = runs[name]
            run()  # untimed: a model caches weights of one dtype
            start_time = time.perf_counter()
            run()
            rates[name].append(ROWS * NEW / (time.perf_counter() - start_time))
        print(f"round {index + 1} of {args.rounds}", flush=True)
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    print(f"{config.num_params(seq2seq=True) / 1e6:.1f}M parameters; target tokens per second:")
    for name, rate in medians.items():
        print(f"{name:24} {rate:8.0f}")
    if args.save or args.out:
        result = {
            "environment": environment("transformers", "ctranslate2"),
            "rounds": args.rounds,
            "rates": medians,
        }
        (args.out or RESULTS).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
