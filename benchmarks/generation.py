"""How fast is text? Tokens a second of one model in several hands, turn by turn.

    python benchmarks/generation.py [--shape 14m|110m] [--rounds 5] [--save]

A Llama of random weights writes 128 tokens to a prompt of 32, greedily; then 16 prompts of unequal
lengths; then the first token of a prompt of 512, beside a forward pass. In each round everybody has
a turn, in another order each round, which begins with a text that does not count (a model keeps one
form of its weights ready), so that a busy minute hits all alike; figures are medians. llama.cpp,
through its Python package, writes to the 16 prompts one after the other, the others at once. What
is not installed is left out: transformers; llama_cpp and gguf, which get the same weights. Beside
each figure stands the share of the memory's bandwidth at which it reads the weights; that is
measured in each round, too, by the sum of a large array.
"""

import argparse
import contextlib
import importlib.util
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

import miniformer
from environment import environment
from miniformer import Transformer, TransformerConfig
from miniformer.runtime.native.huge_pages import HugePageArena

RESULTS = Path(__file__).parent / "results" / "generation.json"
SHAPES = {
    "14m": {"vocab_size": 8192, "d_model": 384, "n_heads": 6, "n_layers": 6, "d_ff": 1024},
    "110m": {"vocab_size": 32000, "d_model": 768, "n_heads": 12, "n_layers": 12, "d_ff": 2048},
}
COMMON = {"causal": True, "norm": "rmsnorm", "activation": "swiglu", "bias": False,
          "dropout": 0.0, "norm_eps": 1e-5, "max_seq_len": 1024}  # fmt: skip
BYTES = {"float32": 4.0, "bf16": 2.0}
NEW = 128


def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bandwidth():
    """Bytes a second that all cores read from memory."""
    array = HugePageArena().copy_tensor(torch.ones(2**26))
    return max(array.nbytes / seconds(array.sum) for _ in range(5))


def hands(model, config):
    """Name -> a function that writes to prompts, the tokens it writes, and bytes of weights."""
    weights = config.num_params() - config.vocab_size * config.d_model * (not config.is_head_tied)
    found = {
        f"miniformer, {kind}": (
            lambda prompts, kind=kind: model.generate(
                prompts, NEW, temperature=0, weight_dtype=kind
            ),
            model.engine(kind).nbytes,
        )
        for kind in ("float32", "bf16", "int8", "int4")
    }
    if importlib.util.find_spec("transformers") is not None:
        import transformers

        with tempfile.TemporaryDirectory() as folder:
            miniformer.to_hf(model, Path(folder) / "hf")
            theirs = {
                name: transformers.AutoModelForCausalLM.from_pretrained(
                    Path(folder) / "hf", dtype=dtype
                ).eval()
                for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))
            }
        for name, each in theirs.items():
            found[f"transformers, {name}"] = (
                lambda prompts, each=each: by_transformers(each, prompts),
                weights * BYTES[name],
            )
    if all(importlib.util.find_spec(name) is not None for name in ("llama_cpp", "gguf")):
        import llama_cpp

        with tempfile.TemporaryDirectory() as folder:
            for kind in ("F32", "F16", "Q8_0", "Q4_0"):
                path = Path(folder) / f"{kind}.gguf"
                write_gguf(model, config, path, kind)
                loaded = llama_cpp.Llama(
                    str(path), n_ctx=1024, verbose=False, use_mmap=False,
                    n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(),
                )  # fmt: skip
                size = path.stat().st_size - config.vocab_size * config.d_model * 4 * (
                    not config.is_head_tied
                )
                found[f"llama.cpp, {kind.lower()}"] = (
                    lambda prompts, loaded=loaded: by_llama_cpp(loaded, prompts), size,
                )  # fmt: skip
    return found


def write_gguf(model, config, path, kind):
    """The model as a file for llama.cpp, whose rotary positions turn neighbours."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ff_width)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rotary_base)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    quantised = gguf.GGMLQuantizationType[kind]

    def add(name, weight):
        array = weight.detach().float().numpy()
        exact = array.ndim == 1 or kind == "F32"
        to = gguf.GGMLQuantizationType.F32 if exact else quantised
        writer.add_tensor(name, gguf.quants.quantize(array, to), raw_dtype=to)

    def neighbours(weight):
        return (
            weight.view(-1, 2, config.head_width // 2, config.d_model)
            .transpose(1, 2)
            .reshape(weight.shape)
        )

    add("token_embd.weight", model.embedding.weight)
    add("output_norm.weight", model.final_norm.weight)
    if not config.is_head_tied:
        add("output.weight", model.head.weight)
    for number, layer in enumerate(model.layers):
        attention, feed = layer.attention, layer.feed_forward
        for name, weight in (
            ("attn_norm", layer.attention_norm.weight),
            ("attn_q", neighbours(attention.q_proj.weight)),
            ("attn_k", neighbours(attention.k_proj.weight)),
            ("attn_v", attention.v_proj.weight),
            ("attn_output", attention.o_proj.weight),
            ("ffn_norm", layer.feed_forward_norm.weight),
            ("ffn_gate", feed.gate_proj.weight),
            ("ffn_up", feed.up_proj.weight),
            ("ffn_down", feed.down_proj.weight),
        ):
            add(f"blk.{number}.{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_transformers(model, prompts):
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip


def by_llama_cpp(model, prompts):
    for prompt in prompts:
        model.reset()
        for written, _ in enumerate(model.generate(prompt, temp=0.0), 1):
            if written == NEW:
                break


def first_token(model):
    """Seconds to the first token of a long prompt, and of a forward pass over it."""
    prompt = torch.randint(0, 8000, (1, 512))
    with torch.inference_mode():
        pairs = [
            (
                seconds(lambda: model.generate(prompt, 1, temperature=0)),
                seconds(lambda: model.logits(model.features(prompt)[:, -1])),
            )
            for _ in range(6)
        ]
    return [statistics.median(each) for each in zip(*pairs[1:], strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="14m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/generation.json")
    given = parser.parse_args()
    torch.manual_seed(0)
    config = TransformerConfig(**SHAPES[given.shape], **COMMON)
    model = Transformer(config).eval()
    single = [torch.randint(0, 8000, (32,)).tolist()]
    ragged = [torch.randint(0, 8000, (8 + 3 * n,)).tolist() for n in range(16)]
    everybody = hands(model, config)
    for write, _ in everybody.values():  # what is compiled or allocated once
        write(single)
    rates = {(name, batch): [] for name in everybody for batch in (1, 16)}
    reads, firsts = [], []
    for number in range(given.rounds):
        reads.append(bandwidth())
        firsts.append(first_token(model))
        names = list(everybody)
        start = number % len(names)
        for name in names[start:] + names[:start]:
            write, _ = everybody[name]
            write(single)
            for batch, prompts in ((1, single), (16, ragged)):
                taken = seconds(partial(write, prompts))
                rates[name, batch].append(len(prompts) * NEW / taken)
        print(f"round {number + 1} of {given.rounds}", flush=True)
    read = statistics.median(reads)
    print(f"memory is read at {read / 1e9:.1f} GB/s; {config.num_params() / 1e6:.1f}M parameters")
    rows = []
    for name, (_, size) in everybody.items():
        one, many = (statistics.median(rates[name, batch]) for batch in (1, 16))
        rows.append({"name": name, "batch_1": round(one, 1), "batch_16": round(many, 1),
                     "share": round(one * size / read, 3)})  # fmt: skip
        print(
            f"{name:24} {one:8.0f} tokens/s {one * size / read:6.0%} of it {many:9.0f} with 16 rows"
        )
    ratio = statistics.median(first / whole for first, whole in firsts)
    print(f"first token of 512: {ratio:.2f} times a forward pass")
    if given.save:
        kept = {}
        with contextlib.suppress(FileNotFoundError):
            kept = json.loads(RESULTS.read_text())
        kept[given.shape] = {
            "environment": environment("transformers", "llama-cpp-python", "gguf"),
            "rounds": given.rounds,
            "bandwidth": round(read / 1e9, 1), "first_token": round(ratio, 3), "rows": rows,
        }  # fmt: skip
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
