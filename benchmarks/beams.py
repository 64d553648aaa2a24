"""How fast is beam search? Target tokens a second of one seq2seq model in several hands.

    python benchmarks/beams.py [--rounds 5] [--save]

A BART of random weights (3 + 3 layers x 256, vocabulary 8,000) writes 32 tokens to each of 32
sources of unequal lengths, with five beams. In each round everybody has a turn, in another order
each round, so that a busy minute hits all alike; figures are medians. Hugging Face's transformers
and CTranslate2 (which converts the same weights) have one where they are installed.
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


def by_us(model, sources, weights):
    return model.generate(sources, NEW, num_beams=BEAMS, min_new_tokens=NEW, weight_dtype=weights)


def by_transformers(model, sources):
    longest = max(map(len, sources))
    ids = torch.tensor([row + [1] * (longest - len(row)) for row in sources])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in sources])
    with torch.inference_mode():
        return model.generate(
            ids, attention_mask=mask, num_beams=BEAMS, min_new_tokens=NEW, max_new_tokens=NEW,
            do_sample=False, decoder_start_token_id=2, eos_token_id=2, pad_token_id=1,
        )  # fmt: skip


def by_ctranslate2(translator, sources):
    return translator.translate_batch(
        [[f"t{token}" for token in row] for row in sources], beam_size=BEAMS,
        min_decoding_length=NEW, max_decoding_length=NEW, max_batch_size=0,
    )  # fmt: skip


def converted(model, folder, quantization):
    """CTranslate2's own translator of a Hugging Face model, with tokens t0, t1, ..."""
    import ctranslate2
    from ctranslate2.converters.transformers import BartLoader

    spec = BartLoader().get_model_spec(model)
    tokens = [f"t{number}" for number in range(VOCABULARY)]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.bos_token, spec.config.unk_token = "t0", "t3"
    spec.config.eos_token = spec.config.decoder_start_token = "t2"
    spec.validate()
    spec.optimize(quantization=quantization)
    folder.mkdir()
    spec.save(str(folder))
    return ctranslate2.Translator(str(folder), intra_threads=torch.get_num_threads())


def hands(model, sources):
    """Name -> a function that writes."""
    found = {
        f"miniformer, {kind}": lambda kind=kind: by_us(model, sources, kind)
        for kind in ("float32", "bf16", "int8")
    }
    if importlib.util.find_spec("transformers") is None:
        return found
    import transformers

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        miniformer.to_hf(model, folder / "hf")
        theirs = transformers.BartForConditionalGeneration.from_pretrained(folder / "hf").eval()
        found["transformers, float32"] = lambda: by_transformers(theirs, sources)
        if importlib.util.find_spec("ctranslate2") is not None:
            for kind in ("float32", "int8"):
                translator = converted(theirs, folder / kind, None if kind == "float32" else kind)
                found[f"ctranslate2, {kind}"] = lambda translator=translator: by_ctranslate2(
                    translator, sources
                )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/beams.json")
    given = parser.parse_args()
    torch.manual_seed(0)
    config = TransformerConfig(**architecture_config(
        "bart", vocab_size=VOCABULARY, d_model=256, n_heads=8, n_layers=3, d_ff=1024,
        max_seq_len=128, dropout=0.0,
    ))  # fmt: skip
    model = Seq2SeqTransformer(config).eval()
    sources = [torch.randint(4, VOCABULARY, (6 + n,)).tolist() for n in range(ROWS)]
    everybody = hands(model, sources)
    rates = {name: [] for name in everybody}
    for write in everybody.values():  # what is compiled or allocated once
        write()
    for number in range(given.rounds):
        names = list(everybody)
        start = number % len(names)
        for name in names[start:] + names[:start]:
            write = everybody[name]
            write()  # a model keeps one form of its weights ready, so that the first does not count
            began = time.perf_counter()
            write()
            rates[name].append(ROWS * NEW / (time.perf_counter() - began))
        print(f"round {number + 1} of {given.rounds}", flush=True)
    found = {name: round(statistics.median(each), 1) for name, each in rates.items()}
    print(f"{config.num_params(seq2seq=True) / 1e6:.1f}M parameters; target tokens a second:")
    for name, rate in found.items():
        print(f"{name:24} {rate:8.0f}")
    if given.save:
        result = {
            "environment": environment("transformers", "ctranslate2"),
            "rounds": given.rounds,
            "rates": found,
        }
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
