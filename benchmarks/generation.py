"""Decoding speed: tokens per second of one model in several libraries.

    python benchmarks/generation.py [--shape 14m|110m] [--rounds 5] [--save]

A Llama with random weights generates 128 tokens greedily, first for one prompt of 32 tokens, then
for 16 prompts of unequal lengths. Then the time to the first token of a prompt of 512 is compared
with a forward pass. Each round runs all libraries in a different order; each run follows an untimed
one, because a model caches weights of one dtype. Results are medians. llama.cpp, through its Python
package, processes the 16 prompts one by one, the others as a batch. Libraries that are not
installed are skipped: transformers; llama_cpp and gguf, which get the same weights. Each result has
the fraction of the memory bandwidth at which it reads the weights. Each round measures the
bandwidth with the sum of a large array.
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
from miniformer.runtime.native.engine import get_engine
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


def seconds(run):
    start_time = time.perf_counter()
    run()
    return time.perf_counter() - start_time


def bandwidth():
    """Memory read bandwidth of all cores in bytes per second."""
    array = HugePageArena().copy_tensor(torch.ones(2**26))
    return max(array.nbytes / seconds(array.sum) for _ in range(5))


def contenders(model, config):
    """Maps names to a generation function of prompts and the bytes of weights per token."""
    weights = config.num_params() - config.vocab_size * config.d_model * (not config.is_head_tied)
    result = {
        f"miniformer, {kind}": (
            lambda prompts, kind=kind: model.generate(
                prompts, NEW, temperature=0, weight_dtype=kind
            ),
            get_engine(model, kind).nbytes,
        )
        for kind in ("float32", "bf16", "int8", "int4")
    }
    if importlib.util.find_spec("transformers") is not None:
        import transformers

        with tempfile.TemporaryDirectory() as folder:
            miniformer.to_hf(model, Path(folder) / "hf")
            hf_models = {
                name: transformers.AutoModelForCausalLM.from_pretrained(
                    Path(folder) / "hf", dtype=dtype
                ).eval()
                for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))
            }
        for name, hf_model in hf_models.items():
            result[f"transformers, {name}"] = (
                lambda prompts, hf_model=hf_model: run_transformers(hf_model, prompts),
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
                result[f"llama.cpp, {kind.lower()}"] = (
                    lambda prompts, loaded=loaded: run_llama_cpp(loaded, prompts), size,
                )  # fmt: skip
    return result


def write_gguf(model, config, path, kind):
    """Exports the model for llama.cpp, whose rotary embedding rotates adjacent channels."""
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
    quantized_type = gguf.GGMLQuantizationType[kind]

    def add(name, weight):
        array = weight.detach().float().numpy()
        is_float32 = array.ndim == 1 or kind == "F32"
        dtype = gguf.GGMLQuantizationType.F32 if is_float32 else quantized_type
        writer.add_tensor(name, gguf.quants.quantize(array, dtype), raw_dtype=dtype)

    def adjacent(weight):
        return (
            weight.view(-1, 2, config.head_width // 2, config.d_model)
            .transpose(1, 2)
            .reshape(weight.shape)
        )

    add("token_embd.weight", model.embedding.weight)
    add("output_norm.weight", model.final_norm.weight)
    if not config.is_head_tied:
        add("output.weight", model.head.weight)
    for index, layer in enumerate(model.layers):
        attention, ffn = layer.attention, layer.feed_forward
        for name, weight in (
            ("attn_norm", layer.attention_norm.weight),
            ("attn_q", adjacent(attention.q_proj.weight)),
            ("attn_k", adjacent(attention.k_proj.weight)),
            ("attn_v", attention.v_proj.weight),
            ("attn_output", attention.o_proj.weight),
            ("ffn_norm", layer.feed_forward_norm.weight),
            ("ffn_gate", ffn.gate_proj.weight),
            ("ffn_up", ffn.up_proj.weight),
            ("ffn_down", ffn.down_proj.weight),
        ):
            add(f"blk.{index}.{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run_transformers(model, prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip


def run_llama_cpp(model, prompts):
    for prompt in prompts:
        model.reset()
        for count, _ in enumerate(model.generate(prompt, temp=0.0), 1):
            if count == NEW:
                break


def first_token(model):
    """Median seconds to the first token of a long prompt, and of a forward pass over it."""
    prompt = torch.randint(0, 8000, (1, 512))
    with torch.inference_mode():
        pairs = [
            (
                seconds(lambda: model.generate(prompt, 1, temperature=0)),
                seconds(lambda: model.logits(model.features(prompt)[:, -1])),
            )
            for _ in range(6)
        ]
    return [statistics.median(times) for times in zip(*pairs[1:], strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="14m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--batched_only", action="store_true",
        help="leave out the 16 prompts where they are processed one by one",
    )  # fmt: skip
    parser.add_argument("--save", action="store_true", help="write results/generation.json")
    parser.add_argument("--out", type=Path, help="write the result to this file instead")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = TransformerConfig(**SHAPES[args.shape], **COMMON)
    model = Transformer(config).eval()
    single = [torch.randint(0, 8000, (32,)).tolist()]
    ragged = [torch.randint(0, 8000, (8 + 3 * n,)).tolist() for n in range(16)]
    runs = contenders(model, config)
    for run, _ in runs.values():  # warm-up: compilation and allocation
        run(single)
    rates = {(name, batch): [] for name in runs for batch in (1, 16)}
    bandwidths, first_token_times = [], []
    for index in range(args.rounds):
        bandwidths.append(bandwidth())
        first_token_times.append(first_token(model))
        names = list(runs)
        start = index % len(names)
        for name in names[start:] + names[:start]:
            run, _ = runs[name]
            run(single)
            is_serial = args.batched_only and name.startswith("llama.cpp")
            for batch, prompts in ((1, single), (16, ragged))[: 1 if is_serial else 2]:
                duration = seconds(partial(run, prompts))
                rates[name, batch].append(len(prompts) * NEW / duration)
        print(f"round {index + 1} of {args.rounds}", flush=True)
    bytes_per_second = statistics.median(bandwidths)
    print(
        f"memory bandwidth {bytes_per_second / 1e9:.1f} GB/s; "
        f"{config.num_params() / 1e6:.1f}M parameters"
    )
    rows = []
    for name, (_, size) in runs.items():
        rate_1, rate_16 = (statistics.median(rates[name, batch] or [0.0]) for batch in (1, 16))
        fraction = rate_1 * size / bytes_per_second
        rows.append({
            "name": name, "batch_1": round(rate_1, 1), "batch_16": round(rate_16, 1) or None,
            "share": round(fraction, 3),
        })  # fmt: skip
        print(
            f"{name:24} {rate_1:8.0f} tokens/s {fraction:6.0%} of bandwidth "
            f"{rate_16:9.0f} tokens/s with 16 rows"
        )
    ratio = statistics.median(first / forward for first, forward in first_token_times)
    print(f"time to first token (512 tokens): {ratio:.2f} forward passes")
    if args.save or args.out:
        path = args.out or RESULTS
        results = {}
        with contextlib.suppress(FileNotFoundError):
            results = json.loads(path.read_text())
        results[args.shape] = {
            "environment": environment("transformers", "llama-cpp-python", "gguf"),
            "rounds": args.rounds, "bandwidth": round(bytes_per_second / 1e9, 1),
            "first_token": round(ratio, 3), "rows": rows,
        }  # fmt: skip
        path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
