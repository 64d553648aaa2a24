"""Fuzzing of imports, adapters and quantized models: randomly damaged files.

    python -m tests.fuzz --inputs 20000 [--seed random]

Each input is a small Hugging Face directory, a GGUF file, an adapter directory or a model directory
of stored integers with one file
changed: bytes flipped or cut, a wrong header, invalid config values, wrong counts, a pickle in its
place. It must be read or refused with one UserError: any other exception, more than 5 seconds, or
more than a gigabyte of memory is a finding.
"""

import argparse
import copy
import json
import random
import resource
import shutil
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

import miniformer
from miniformer import adapters
from miniformer.config import UserError
from miniformer.interop.gguf.load import import_gguf
from miniformer.model.transformer import Transformer
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model
from tests.kit.seeds import chosen_seed
from tests.unit.interop.gguf import cases

SECONDS, GIGABYTE = 5.0, 2**30
HOSTILE = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.5, 1e-300, 1e308,
    float("nan"), float("inf"), "", "x", "gelu", "../..", "\x00", "💥" * 3, [], [0], ["x"] * 3,
    [[]], {}, {"a": {}}, {"rope_type": "yarn"}, {"rope_type": "linear", "factor": 0},
    {"rope_type": []}, {"full_attention": 3}, [None] * 3, ["full_attention"] * 2,
]  # fmt: skip
FAMILIES = (
    "gpt2", "gpt_neox", "llama", "gemma3", "phi3", "bert", "roberta", "modernbert", "t5_v1_1",
    "marian", "bart",
)  # fmt: skip


def originals(folder):
    """Valid directories of several families, with all files that are read."""
    import transformers

    from tests.parity import published

    transformers.logging.set_verbosity_error()
    paths = []
    for name in FAMILIES:
        kind, settings = published.draw(name, 1)
        kind = getattr(transformers, kind)
        small = {key: 40 for key in ("vocab_size", "decoder_vocab_size") if key in settings}
        model = kind(kind.config_class(**settings | small))
        path = folder / name
        model.save_pretrained(path, max_shard_size="6KB" if name in ("llama", "t5_v1_1") else "1GB")
        byte_level = miniformer.Tokenizer.train("char", ["abc"], None)
        byte_level.save(path / "tokenizer.json")
        paths.append(path)
    for name in ("default", "llama3", "gemma3", "bert", "t5"):
        path = folder / f"gguf-{name}"
        path.mkdir(parents=True)
        model = cases.build(name, vocab_size=300, d_ff=32)
        if name == "default":
            tokenizer = miniformer.Tokenizer.train("bpe", ["abc"], 300)
            model = miniformer.Pipeline(model, tokenizer, task=LanguageModeling())
        cases.write(model, path / "model.gguf", weights="q8_0")
        paths.append(path)
    return [*paths, *adapter_directories(folder), *quantized_directories(folder)]


def adapter_directories(folder):
    """Adapters of each method with tensors of their own, of the base `base` in the folder above."""
    tokenizer, base, paths = miniformer.Tokenizer.train("byte", []), folder.parent / "base", []
    model = tiny_model(vocab_size=tokenizer.vocab_size, n_layers=1)
    miniformer.Pipeline(model, tokenizer, LanguageModeling()).save(base)
    for method in ("lora", "dora", "ia3", "bottleneck"):
        pipeline = miniformer.load(base)
        options = {"modules_to_save": ["final_norm"]} if method == "lora" else {}
        adapters.add(pipeline.model, method, **options)
        adapters.save(pipeline, folder / f"adapter-{method}", base=base)
        paths.append(folder / f"adapter-{method}")
    return paths


def quantized_directories(folder):
    """Model directories of stored integers and short floats."""
    model, paths = tiny_model(d_model=32, d_ff=64, n_layers=1), []
    for to in ("int8", "int4", "bf16"):
        paths.append(folder / f"quantized-{to}")
        miniformer.quantize(model, paths[-1], to=to)
    return paths


def change_value(value, dice):
    """A JSON value with one change."""
    value = copy.deepcopy(value)
    positions = []

    def walk(node):
        if isinstance(node, dict):
            positions.extend((node, key) for key in node)
            for item in node.values():
                walk(item)
        elif isinstance(node, list):
            positions.extend((node, index) for index in range(len(node)))
            for item in node:
                walk(item)

    walk(value)
    if not positions:
        return dice.choice(HOSTILE)
    node, key = dice.choice(positions)
    what = dice.random()
    if what < 0.15:
        del node[key]
    elif what < 0.3 and isinstance(node, dict):
        node[dice.choice(["zzz", "auto_map", "quantization_config", key + "x"])] = node[key]
    else:
        node[key] = dice.choice(HOSTILE)
    return value


def change_bytes(data, dice):
    """Bytes flipped, truncated, inserted or replaced."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 5])):
        if not data:
            break
        position = (
            dice.randrange(len(data))
            if dice.random() < 0.5
            else dice.randrange(min(300, len(data)))
        )
        what = dice.randrange(4)
        if what == 0:
            data[position] ^= 1 << dice.randrange(8)
        elif what == 1:
            del data[position:]
        elif what == 2:
            data[position:position] = dice.choice(
                [b"\x80", b"\xff\xfe", b"{", b"\x00" * 8, b"9" * 30]
            )
        else:
            data[position] = dice.randrange(256)
    return bytes(data)


def change_json(data, dice):
    return json.dumps(change_value(json.loads(data), dice)).encode("utf-8", "surrogatepass")


def change_header(data, dice):
    """A safetensors file with a changed header, whose length is correct or wrong."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(change_value(header, dice)).encode()
    size = len(text) if dice.random() < 0.8 else dice.choice([0, 1, 2**40, 2**63, len(text) + 9])
    return size.to_bytes(8, "little") + text + data[8 + length :]


def change_count(data, dice):
    """A GGUF file with a number of eight bytes replaced, in its header with most."""
    position = dice.randrange(min(len(data), dice.choice([32, 2000, len(data)])))
    value = dice.choice([0, 1, 7, 2**16, 2**31, 2**40, 2**60, 2**64 - 1])
    return data[:position] + value.to_bytes(8, "little") + data[position + 8 :]


def load(path):
    """Imports a directory, or the GGUF file in it, or adds an adapter to its base."""
    if (path / "model.gguf").exists():
        import_gguf(path / "model.gguf", path / "out")
    elif (path / "adapter_config.json").exists():
        miniformer.load(path.with_name("base"), adapter=path)
    elif (path / "format_version").exists():
        Transformer.from_pretrained(path)
    else:
        miniformer.from_hf(path)


def mutate(path, dice):
    """Changes one file of a directory; returns its name and the kind of change."""
    file = dice.choice(
        sorted(item for item in path.iterdir() if item.suffix in (".json", ".safetensors", ".gguf"))
    )
    if (path / "quantization.json").exists():
        file = path / dice.choice(["quantization.json", "model.safetensors"])
    elif dice.random() < 0.5 and (path / "config.json").exists():
        file = path / "config.json"
    data = file.read_bytes()
    if dice.random() < 0.02:
        data, what = b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.", "pickle"
    elif dice.random() < 0.75:
        changes = {".safetensors": change_header, ".gguf": change_count, ".json": change_json}
        change = changes[file.suffix]
        try:
            data, what = change(data, dice), "value"
        except (ValueError, RecursionError):  # already invalid
            data, what = change_bytes(data, dice), "bytes"
    else:
        data, what = change_bytes(data, dice), "bytes"
    file.write_bytes(data)
    return file.name, what


def run(count, seed=0, report=lambda *_: None, make=originals):
    """Tries `count` inputs of the directories that `make` writes; counts of outcomes, findings."""
    outcomes, findings = Counter(), []
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        starts = make(folder / "originals")
        for number in range(count):
            dice = random.Random(f"{seed} {number}")
            path = folder / "input"
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(dice.choice(starts), path)
            done = [mutate(path, dice) for _ in range(dice.choice([1, 1, 1, 2]))]
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            start_time = time.monotonic()
            try:
                load(path)
                outcomes["imported"] += 1
            except UserError as error:
                outcomes["refused"] += 1
                # A config error has one line for each problem.
                text = str(error).replace("\n  - ", " ")
                if "\n" in text or len(text) > 2000:
                    findings.append((number, done, f"a message of {len(str(error))} characters"))
            except BaseException as error:
                findings.append((number, done, f"{type(error).__name__}: {error}"))
            took = time.monotonic() - start_time
            more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if took > SECONDS:
                findings.append((number, done, f"{took:.1f} s"))
            if more * 1024 > GIGABYTE:
                findings.append((number, done, f"{more / 1e6:.1f} GB"))
            report(number, outcomes, findings)
        if Path("pwned").exists():
            findings.append((-1, [], "a pickle was run"))
    return outcomes, findings


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20000)
    parser.add_argument(
        "--seed", type=chosen_seed, default=chosen_seed() or 0, help="a number, or random"
    )
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    torch.set_num_threads(1)
    start_time = time.monotonic()

    def report(number, outcomes, findings):
        if number % 1000 == 999:
            print(number + 1, dict(outcomes), f"{len(findings)} findings", flush=True)

    outcomes, findings = run(options.inputs, options.seed, report)
    for finding in findings[:50]:
        print(*finding)
    print(f"{options.inputs} inputs in {time.monotonic() - start_time:.0f} s: {dict(outcomes)}, "
          f"{len(findings)} findings")  # fmt: skip
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
